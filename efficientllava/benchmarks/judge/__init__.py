"""A model that judges answers, behind an OpenAI-compatible endpoint."""
