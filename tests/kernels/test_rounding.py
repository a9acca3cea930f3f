"""Rounding to half precision keeps the number of zeros."""

from __future__ import annotations

import torch

from efficientllava.kernels.masks import in_dtype


def test_no_weight_vanishes_in_float16() -> None:
    weights = torch.tensor([0.0, 1e-9, -1e-9, 0.5, -0.25])
    rounded = in_dtype(weights, torch.float16)
    assert rounded.dtype == torch.float16
    assert (rounded == 0).tolist() == [True, False, False, False, False]
    assert rounded[1] > 0 > rounded[2] and rounded.abs()[1:3].max() < 1e-7
    assert rounded[3:].tolist() == [0.5, -0.25]


def test_the_same_dtype_is_the_same_tensor() -> None:
    weights = torch.randn(4)
    assert in_dtype(weights, torch.float32) is weights
