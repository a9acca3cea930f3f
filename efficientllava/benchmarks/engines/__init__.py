"""Who asks a model and scores its answers: our own benchmarks, or the package lmms-eval."""
