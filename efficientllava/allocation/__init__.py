"""The ratio of every matrix: OWL, and the paper's search with its evolving projector."""
