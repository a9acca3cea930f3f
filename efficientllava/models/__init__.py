"""Finding decoder blocks, prunable matrices and the projector; loading and saving checkpoints."""
