"""The weighted loss and its gradients are those of torch's cross entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from efficientllava.demo.head_loss import ROWS, weighted_loss


def test_loss_and_gradients_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    count, width, vocabulary = 2 * ROWS + 5, 6, 11
    states, head = (
        torch.randn(rows, width, generator=generator, dtype=torch.float64, requires_grad=True)
        for rows in (count, vocabulary)
    )
    wanted = torch.randint(vocabulary, (count,), generator=generator)
    weights = torch.rand(count, generator=generator, dtype=torch.float64)
    expected = F.cross_entropy(states @ head.T, wanted, reduction="none")
    gradients = torch.autograd.grad(3 * (expected * weights).sum(), (states, head))
    total, losses = weighted_loss(states, head, wanted, weights)
    assert torch.allclose(losses, expected) and not losses.requires_grad
    assert torch.allclose(total, (expected * weights).sum())
    ours = torch.autograd.grad(3 * total, (states, head))
    assert all(torch.allclose(*pair) for pair in zip(ours, gradients, strict=True))


def test_large_logits_do_not_overflow() -> None:
    states, head = torch.tensor([[1e4]]), torch.tensor([[1.0], [0.0]])
    total, losses = weighted_loss(states, head, torch.tensor([1]), torch.tensor([1.0]))
    assert losses.tolist() == [1e4] and total.item() == 1e4
