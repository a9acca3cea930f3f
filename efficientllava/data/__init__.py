"""Proxy data, benchmark records and the embedded data."""
