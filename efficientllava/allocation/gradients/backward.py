"""Gradients that pass through the model once, and what they say of every matrix.

For matrix i with input x_t and output gradient g_t at token t, a change dW moves the loss by
g_t . dW x_t to first order. Its square, summed over tokens, is dW's cost in the Fisher metric where
the loss is that of labels drawn from the model itself (Martens 2020; the data's labels would give
the empirical Fisher, which is another matrix).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import nn

from efficientllava.allocation.gradient_checkpointing import checkpointed
from efficientllava.allocation.gradients.observers import (
    Changes,
    Observer,
    Prices,
    RowSquares,
    Sums,
)
from efficientllava.calibration.proxy_loss import LossBatch, chunks, hidden_states
from efficientllava.models.families import Adapter


def gathered(
    adapter: Adapter,
    batch: LossBatch,
    changes: Changes,
    uniforms: torch.Tensor | None = None,
    dense: torch.Tensor | None = None,
    streamed: bool = False,
) -> Sums:
    """What changes of every matrix cost, from one forward and one backward pass of a batch.

    Args:
        changes: asked once for every matrix, when its block is on the device.
        uniforms, dense, streamed: see `_pass_back`.

    Raises:
        UserError: a gradient is NaN or inf, naming the matrix.
    """
    prices = Prices(adapter, changes)
    _pass_back(adapter, batch, prices, uniforms, dense, streamed)
    return prices.sums(int(batch.inputs.tokens.sum()), int(batch.positions.sum()))


def row_squares(
    adapter: Adapter, batch: LossBatch, uniforms: torch.Tensor, streamed: bool = False
) -> dict[str, torch.Tensor]:
    """Sums over a batch's tokens of g_r^2 for every row r of every matrix, by its name.

    Args:
        uniforms, streamed: see `_pass_back`.

    Returns:
        [out] float64 each, on the CPU; zeros for an expert that no token reaches.

    Raises:
        UserError: a gradient is NaN or inf, naming the matrix.
    """
    rows = RowSquares(adapter)
    _pass_back(adapter, batch, rows, uniforms, streamed=streamed)
    return {matrix.name: rows.squares[matrix.name].cpu() for matrix in adapter.matrices}


def label_draws(batch: LossBatch, key: str) -> torch.Tensor:
    """Numbers in [0, 1) [n] that draw the labels of a batch's scored positions.

    Args:
        key: seeds them; what was drawn before does not matter, so that a killed run resumes.
    """
    draw = random.Random(key)
    return torch.tensor([draw.random() for _ in range(int(batch.positions.sum()))])


def _pass_back(
    adapter: Adapter,
    batch: LossBatch,
    observer: Observer,
    uniforms: torch.Tensor | None = None,
    dense: torch.Tensor | None = None,
    streamed: bool = False,
) -> None:
    """One forward and one backward pass of a batch, seen by an observer.

    Of the forward pass only the inputs of the blocks are kept; a block is computed again when its
    gradient is, and the inputs of its matrices live only until then. Products and sums are float32
    and float64 in models of 16 bits, too.

    Args:
        uniforms: numbers in [0, 1) [n], one for each scored position: the loss is -log p of labels
            that they draw from the model.
        dense: the dense model's hidden states [n, width] at the scored positions: the loss is
            KL(dense || model). One of both is given.
        streamed: the blocks are streamed, and so computed again in any case.
    """
    inputs = dict(batch.inputs.arguments)
    embeddings = inputs["inputs_embeds"].detach().clone().requires_grad_(True)
    inputs["inputs_embeds"] = embeddings
    with ExitStack() as stack:
        stack.enter_context(_frozen(adapter.model))
        if not streamed:
            stack.enter_context(checkpointed(adapter.blocks))
        stack.enter_context(observer.watching())
        stack.enter_context(torch.enable_grad())
        hidden = hidden_states(
            adapter.language_model,
            replace(batch.inputs, arguments=inputs),
        )
        upstream = torch.zeros_like(hidden)
        upstream[batch.positions] = _at_hidden(
            adapter, hidden.detach()[batch.positions], uniforms, dense
        ).to(hidden.dtype)
        observer.backward = True
        (hidden * upstream).sum().backward()


def _at_hidden(
    adapter: Adapter,
    hidden: torch.Tensor,
    uniforms: torch.Tensor | None,
    dense: torch.Tensor | None,
) -> torch.Tensor:
    """Gradient of each position's loss at its hidden state [n, width]; the vocabulary in chunks.

    p - 1(y) for a label y drawn from p by the inverse of its distribution function, and
    p - p_dense for the KL divergence.
    """
    gradient = torch.zeros_like(hidden)
    # the gradient of a product's sum is the other factor: the sum itself is of no interest
    for rows in chunks(adapter.head, hidden):
        part = hidden[rows].clone().requires_grad_(True)
        logits = adapter.head(part).float()
        with torch.no_grad():
            probabilities = logits.softmax(dim=-1)
            if dense is not None:
                change = probabilities - adapter.head(dense[rows]).float().softmax(dim=-1)
            else:
                assert uniforms is not None, "labels are drawn with these numbers"
                change = _without_label(probabilities, uniforms[rows].to(hidden.device))
        (logits * change).sum().backward()
        assert part.grad is not None
        gradient[rows] = part.grad
    return gradient


def _without_label(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """p - 1(y) [n, vocabulary], y the first token at which the distribution function exceeds u."""
    reached = probabilities.cumsum(dim=-1)
    drawn = torch.searchsorted(
        reached, (uniforms[:, None] * reached[:, -1:]).contiguous(), right=True
    )
    drawn = drawn.clamp(max=probabilities.shape[-1] - 1)
    return probabilities.scatter_add(1, drawn, torch.full_like(drawn, -1.0, dtype=torch.float32))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """While this lasts no parameter asks for a gradient."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        yield
    finally:
        for parameter, was in required:
            parameter.requires_grad_(was)
