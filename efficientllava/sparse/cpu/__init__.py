"""Sparse and dense products for decoding on a CPU, by LLVM: paths for AVX-512, AVX2 and the rest."""
