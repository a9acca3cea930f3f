"""The demo questions: pictures, stories and facts, and multiple-choice questions about them."""
