"""ONNX graphs of a checkpoint, their parity with PyTorch, their speed, and answers through them."""
