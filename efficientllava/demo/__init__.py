"""The demo model: a tiny LLaVA that trains itself in minutes, and what it is made of."""
