"""How a family's processor is made to fit: image tokens, pictures, models that take text alone."""
