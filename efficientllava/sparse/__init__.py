"""The sparse runtime: packed matrices of pruned models, and products with them."""
