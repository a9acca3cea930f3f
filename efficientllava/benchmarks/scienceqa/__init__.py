"""ScienceQA: multiple-choice questions from school books."""
