"""Calibration data through the model: block walk, proxy loss, structural risk, memory they need."""
