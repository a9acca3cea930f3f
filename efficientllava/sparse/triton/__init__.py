"""Products with packed matrices on CUDA, in Triton."""
