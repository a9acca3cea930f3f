"""What gradients of the whole model say of its matrices, and the samples that they come from."""
