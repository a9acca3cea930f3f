"""How well a model predicts text that neither training nor calibration has seen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficientllava.models.families import device_of


@torch.no_grad()
def text_loss(model: nn.Module, segments: Tensor, batch_size: int) -> float:
    """Mean negative log-likelihood of the next token, in nats; segments [n, length]."""
    total = 0.0
    for batch in segments.to(device_of(model)).split(batch_size):
        logits = model(input_ids=batch).logits[:, :-1].float()
        total += F.cross_entropy(
            logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
        ).item()
    return total / segments[:, 1:].numel()
