"""ONNX graphs of a checkpoint: traced, their matrices written one by one, zeros counted."""
