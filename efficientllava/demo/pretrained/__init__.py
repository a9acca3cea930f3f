"""A LLaVA around a pretrained language model of the package index: SmolLM2-135M-Instruct."""
