"""The demo questions: multiple choice, answered by likelihood."""
