"""Products with packed and dense matrices on a CPU, by LLVM: AVX-512, AVX2 and any processor."""
