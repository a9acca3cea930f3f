"""ONNX graphs of a checkpoint: tracing, matrices written one by one, padded heads, counted zeros."""
