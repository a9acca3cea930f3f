"""Pruning a whole model: the methods, sequential pruning, the final model, refinement."""
