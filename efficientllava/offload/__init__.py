"""Offload of weights: devices, placement, blocks streamed to a device, blocks on disk."""
