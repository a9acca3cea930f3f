"""The compiled OBS kernel for the CPU: the bits of the eager reference, by numba and LLVM."""
