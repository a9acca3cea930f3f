"""The OBS kernel for CUDA, in Triton."""
