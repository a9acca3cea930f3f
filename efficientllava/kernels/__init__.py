"""OBS for one matrix: Hessian, masks, the eager reference, and kernels that are faster."""
