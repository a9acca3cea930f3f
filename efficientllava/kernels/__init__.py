"""OBS for one matrix: Hessian, masks, the eager reference, and the kernels that give its result faster."""
