"""The ratio of every matrix: uniform, by block, by sensitivity, or by the paper's search."""
