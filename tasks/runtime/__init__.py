"""What all stages share: parameters, workspace lock, devices, executors, progress."""
