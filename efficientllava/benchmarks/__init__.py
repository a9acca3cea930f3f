"""Benchmarks, a folder each: questions are read and put to a model, answers are scored."""
