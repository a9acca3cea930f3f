"""How well a model predicts text that neither training nor calibration has seen."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficientllava.models.families import device_of, text_inputs


@torch.no_grad()
def segment_losses(model: nn.Module, segments: Tensor, batch_size: int) -> Tensor:
    """Mean negative log-likelihood of the next token of every segment, in nats.

    Args:
        segments: [n, length] token ids.

    Returns:
        [n] float64, on the CPU.
    """
    losses = []
    for batch in segments.to(device_of(model)).split(batch_size):
        logits = model(**text_inputs(model, batch)).logits[:, :-1].float()
        tokens = F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
        losses.append(tokens.double().mean(dim=1).cpu())
    return torch.cat(losses)


def text_loss(model: nn.Module, segments: Tensor, batch_size: int) -> float:
    """Mean negative log-likelihood of the next token, in nats; segments [n, length]."""
    return segment_losses(model, segments, batch_size).mean().item()


def perplexity(losses: Tensor) -> dict[str, float | int | None]:
    """The perplexity per token, exp(mean loss), with its standard error over segments.

    The error is that of the mean loss times the perplexity (first order); segments are taken as
    independent. None for a single segment.

    Args:
        losses: [n] of segments of one length, in nats.
    """
    value, count = math.exp(losses.mean().item()), len(losses)
    error = None if count < 2 else value * losses.std().item() / count**0.5
    return {"perplexity": value, "perplexity_error": error, "text_segments": count}
