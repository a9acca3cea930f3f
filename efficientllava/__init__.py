"""EfficientLLaVA: generalizable auto-pruning for large vision-language models (CVPR 2025)."""

__version__ = "0.1.0"
