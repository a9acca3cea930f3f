"""Pruned matrices as bitmasks and packed values: format, checkpoints, layers, their kernels."""
