"""Shared by all stages: parameters, workspace lock, devices, executors, progress."""
