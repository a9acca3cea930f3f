"""Structured pruning: heads and channels, whole decoder blocks, compensation."""
