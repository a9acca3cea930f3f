"""The loss of many tokens over a vocabulary, with no logits kept for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = 64
"""Tokens whose logits are formed at a time: over 2,560 words these 0.7 MB stay in the cache."""


class _WeightedLoss(torch.autograd.Function):
    """The gradients are formed in the forward pass, as the weights are known by then."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Tensor, wanted: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        of_states, of_head = torch.empty_like(states), torch.zeros_like(head)
        losses = states.new_empty(len(states))
        for start in range(0, len(states), ROWS):
            rows = slice(start, start + ROWS)
            logits, places, weight = states[rows] @ head.T, wanted[rows, None], weights[rows, None]
            largest = logits.amax(dim=1, keepdim=True)
            chosen = logits.gather(1, places)
            exponents = logits.sub_(largest).exp_()
            total = exponents.sum(dim=1, keepdim=True)
            losses[rows] = (total.log() + largest - chosen)[:, 0]
            gradient = exponents.mul_(weight / total).scatter_add_(1, places, -weight)
            torch.mm(gradient, head, out=of_states[rows])
            of_head.addmm_(gradient.T, states[rows])
        ctx.save_for_backward(of_states, of_head)
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        of_states, of_head = ctx.saved_tensors
        return of_states * gradient, of_head * gradient, None, None


def weighted_loss(
    states: Tensor, head: Tensor, wanted: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross entropy of tokens, weighted and summed.

    Args:
        states: [n, width].
        head: [vocabulary, width].
        wanted: [n] int64, the tokens.
        weights: [n]; they get no gradient.

    Returns:
        The sum, and the loss of every token [n], without a gradient.
    """
    total, losses = _WeightedLoss.apply(states, head, wanted, weights)
    return total, losses
