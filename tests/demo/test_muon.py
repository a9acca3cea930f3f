"""Muon over stacked matrices moves them as torch's Muon does."""

from __future__ import annotations

import torch
from torch import nn

from efficientllava.demo.muon import StackedMuon

SHAPES = [(6, 6), (9, 6), (6, 9), (6, 6), (9, 6)]
SETTINGS = {"lr": 0.02, "weight_decay": 0.01, "momentum": 0.95}


def test_stacked_steps_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    theirs = [nn.Parameter(matrix.detach().clone()) for matrix in ours]
    before = [matrix.detach().clone() for matrix in ours]
    for optimiser, matrices in (
        (StackedMuon(ours, **SETTINGS), ours),
        (torch.optim.Muon(theirs, **SETTINGS), theirs),
    ):
        gradients = torch.Generator().manual_seed(1)
        for _ in range(5):
            for matrix in matrices:
                matrix.grad = torch.randn(matrix.shape, generator=gradients)
            optimiser.step()
    for old, one, other in zip(before, ours, theirs, strict=True):
        # torch iterates in bfloat16, which has three digits
        assert (one - other).norm() < 0.03 * (other - old).norm()
