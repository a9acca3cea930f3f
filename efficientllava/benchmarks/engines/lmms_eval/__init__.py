"""The package lmms-eval as an engine: its tasks and scores, our loader, prompts and encoding."""
