"""Text, questions, images and prompts; proxy data made of them."""
