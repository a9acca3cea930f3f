"""Search-space evolution: the vision projector moves for the candidates, equations (5)-(7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp, isfinite
from random import Random

import torch
from torch import nn

from efficientllava.allocation.gradient_checkpointing import checkpointed
from efficientllava.calibration.proxy_loss import (
    Distribution,
    kl_divergence,
    negative_log_likelihood,
    next_tokens,
)
from efficientllava.calibration.working_set import Tokens
from efficientllava.data.proxy import IGNORED, Pairs
from efficientllava.models.families import Adapter
from efficientllava.offload.placement import shape_of
from efficientllava.parameters import MachineParameters, SearchParameters

LITTLE_MEMORY = 2**28
"""Bytes of activations for which no decoder block is computed twice."""
HELD_OUT = 0.25
"""The share of pairs, the last ones, that only judge whether a moved projector is kept."""


def importance_weights(policies: Sequence[Sequence[float]], neighbours: int = 5) -> list[float]:
    """c_m of equation (7): softmax of minus the squared distances to the nearest candidates.

    Args:
        policies: alpha of every candidate, [M][K] ratios.
        neighbours: how many nearest other candidates are summed over (paper: 5).

    Returns:
        [M], positive, adding up to 1: the largest where candidates lie densest.
    """
    exponents = []
    for index, policy in enumerate(policies):
        distances = sorted(
            sum((a - b) ** 2 for a, b in zip(policy, other, strict=True))
            for position, other in enumerate(policies)
            if position != index
        )
        exponents.append(-sum(distances[:neighbours]))
    highest = max(exponents)
    weights = [exp(exponent - highest) for exponent in exponents]
    total = sum(weights)
    return [weight / total for weight in weights]


@dataclass(frozen=True)
class ProjectorStep:
    """What one round did to the projector.

    Attributes:
        before, after: weighted loss on held-out pairs under the old and the moved projector; None
            after steps that diverged.
        kept: whether the moved projector stays.
    """

    before: float
    after: float | None
    kept: bool


def recomputes_blocks(
    adapter: Adapter, tokens: Tokens, machine: MachineParameters, streamed: bool
) -> bool:
    """Whether a step of the projector saves memory by gradient checkpointing."""
    # streamed blocks are computed again in any case: never both
    if not machine.gradient_checkpointing or streamed:
        return False
    shape = shape_of(adapter)
    return tokens.step * shape.blocks * shape.activations > LITTLE_MEMORY


class ProjectorEvolution:
    """Minimises sum_m c_m L_m(W_p) over the projector's weights only, equation (6).

    One candidate is drawn per step with probability c_m: unbiased, and as many times cheaper as
    there are candidates.

    Args:
        adapter: of a model whose language model gets stitched by `stitch`.
        pairs: image-text pairs; the last quarter is held out for the guard.
        stitch: puts a candidate's weights into the adapter's language model.
        dense: the answers of the dense model with its original projector: its distributions at all
            pairs' answer positions, in order.
        parameters: those named `projector_*` count; `projector_loss` is "kl" to the dense model, or
            "nll" of the answers.
        gradient_checkpointing: keep only the decoder blocks' inputs for the backward pass and
            compute a block again when its turn comes: one more forward pass a step, the same bits.

    Memory that a step takes beside the weights, for P tokens (pairs x padded length) and numbers
    of b bytes: P x blocks x A without gradient checkpointing, P x (blocks x width x b + A) with. A
    is what autograd keeps of one block for a token: A = (6 width + 3 MLP width) x b for a Llama
    block whose weights are frozen (inputs of two norms; queries, keys, values, attention's output;
    gate, its SiLU, up), keys and values less where heads share them. `bench/projector.py`
    measures it.
    """

    def __init__(
        self,
        adapter: Adapter,
        pairs: Pairs,
        stitch: Callable[[int], None],
        dense: Distribution,
        parameters: SearchParameters,
        gradient_checkpointing: bool = False,
    ) -> None:
        assert adapter.projector is not None, "there is nothing to move"
        self.adapter, self.projector = adapter, adapter.projector
        self.pairs, self.stitch, self.parameters = pairs, stitch, parameters
        counts = pairs.answer_positions().sum(dim=1)
        # which rows of `dense` belong to which pair
        self.dense, self.rows = dense, torch.arange(int(counts.sum())).split(counts.tolist())
        self.gradient_checkpointing = gradient_checkpointing
        held_out = max(1, int(HELD_OUT * len(pairs)))
        self.training = list(range(len(pairs) - held_out)) or list(range(len(pairs)))
        self.held_out = list(range(len(pairs) - held_out, len(pairs)))

    def step(self, weights: Sequence[float], random: Random) -> ProjectorStep:
        """Move the projector for candidates 0..M-1 with weights c_m; keep it if that helps.

        The projector's weights are changed in place only if the weighted loss on held-out pairs
        falls.
        """
        projector = self.projector
        original = {name: value.clone() for name, value in projector.state_dict().items()}
        before = self._weighted_loss(weights)
        blocks = self.adapter.blocks if self.gradient_checkpointing else []
        with _only(projector, self.adapter.model), checkpointed(blocks):
            self._train(weights, random)
        after = self._weighted_loss(weights)
        kept = after < before
        if not kept:
            projector.load_state_dict(original)
        return ProjectorStep(before, after if isfinite(after) else None, kept)

    def _train(self, weights: Sequence[float], random: Random) -> None:
        projector, parameters = self.projector, self.parameters
        trained = list(projector.parameters())
        # steps are smaller than what half precision resolves: float32 weights gather them
        masters = [p if p.dtype == torch.float32 else p.detach().float() for p in trained]
        optimiser = torch.optim.AdamW(
            masters, lr=parameters.projector_learning_rate, weight_decay=0.0
        )
        for _ in range(parameters.projector_steps):
            self.stitch(random.choices(range(len(weights)), weights)[0])
            count = min(parameters.projector_batch, len(self.training))
            chosen = random.sample(self.training, count)
            projector.zero_grad(set_to_none=True)
            total, scored = self._loss(sorted(chosen))
            (total / max(scored, 1)).backward()
            _step(optimiser, masters, trained)

    @torch.no_grad()
    def _weighted_loss(self, weights: Sequence[float]) -> float:
        total = 0.0
        for candidate, weight in enumerate(weights):
            self.stitch(candidate)
            loss, count = self._loss(self.held_out)
            total += weight * float(loss) / max(count, 1)
        return total / sum(weights)

    def _loss(self, chosen: list[int]) -> tuple[torch.Tensor, int]:
        """Summed loss and number of scored positions of some pairs, through the projector."""
        pairs = self.pairs[torch.tensor(chosen)].to(self.adapter.device)
        output = self.adapter.model.model(**pairs.inputs, use_cache=False)  # type: ignore[operator,union-attr]
        positions = pairs.answer_positions()
        hidden = output.last_hidden_state[positions]
        logits = self.adapter.head(hidden).float()
        if self.parameters.projector_loss == "kl":
            rows = torch.cat([self.rows[index] for index in chosen]).to(logits.device)
            return kl_divergence(self.dense[rows], logits).sum(), logits.shape[0]
        targets = next_tokens(pairs.labels, positions)
        scored = torch.log_softmax(logits, dim=-1)
        return negative_log_likelihood(scored, targets).sum(), int((targets != IGNORED).sum())


@contextmanager
def _only(trained: nn.Module, model: nn.Module) -> Iterator[None]:
    """While this lasts, nothing of a model but one of its modules wants a gradient.

    What lies before that module (the vision tower) so makes no graph, and of the frozen matrices
    behind it no inputs are kept.
    """
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        trained.requires_grad_(True)
        yield
    finally:
        trained.zero_grad(set_to_none=True)
        for parameter, was in required:
            parameter.requires_grad_(was)


@torch.no_grad()
def _step(
    optimiser: torch.optim.Optimizer,
    masters: Sequence[torch.Tensor],
    trained: Sequence[torch.Tensor],
) -> None:
    """Step the float32 weights with the gradients of those that are trained, and round them."""
    for master, parameter in zip(masters, trained, strict=True):
        if master is not parameter and parameter.grad is not None:
            master.grad = parameter.grad.float()
    optimiser.step()
    for master, parameter in zip(masters, trained, strict=True):
        if master is not parameter:
            parameter.copy_(master)
