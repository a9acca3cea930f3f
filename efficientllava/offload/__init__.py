"""Where weights lie: devices, placement, blocks streamed to a device, blocks on disk."""
