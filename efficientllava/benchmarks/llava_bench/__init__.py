"""LLaVA-Bench in the wild: open questions, compared with GPT-4's answers by a judge."""
