"""Experts of a mixture: their matrices in a checkpoint's files, and the module that holds them."""
