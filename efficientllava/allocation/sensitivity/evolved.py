"""The projector moves for the best policies of a choice, as in the paper's search."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from efficientllava.allocation.context import Context
from efficientllava.allocation.search.algorithm import UNDECISIVE
from efficientllava.allocation.search.evolution import stream
from efficientllava.allocation.search.projector import (
    ProjectorEvolution,
    ProjectorStep,
    importance_weights,
    recomputes_blocks,
)
from efficientllava.allocation.search.rounds import PROJECTOR_STREAM
from efficientllava.allocation.sensitivity.plan import Plan
from efficientllava.calibration.proxy_loss import pair_loss_batches, remember_dense
from efficientllava.calibration.working_set import Tokens
from efficientllava.database.offloaded import Offloaded
from efficientllava.files import load_tensors, read_sealed, save_tensors, value_digest, write_sealed
from efficientllava.models.families import Adapter
from efficientllava.parameters import SearchParameters
from efficientllava.progress import Event

Evolve = Callable[[Plan], tuple[dict[str, torch.Tensor], int]]
"""Given a plan with its best policies: the projector's state, and how many rounds were kept."""
SURVIVORS = 4
"""Policies for which the projector moves."""


def evolve_projector(
    context: Context, search: SearchParameters, found: Offloaded, folder: Path
) -> Evolve:
    """Remember what the dense model answers, and return what moves the projector later.

    Equations (5)-(7) with the best policies as candidates: a round minimises their weighted loss by
    AdamW and is kept if held-out pairs gain; the first round that is not kept is the last, and none
    begins that would end after the plan's deadline. Rounds lie in files.
    """
    adapter, pairs = found.adapter, context.proxy.pairs
    rounds, machine = context.parameters.sensitivity.projector_rounds, context.parameters.machine
    moves = search.evolve_projector and adapter.projector is not None and rounds
    if not moves or pairs is None:
        return lambda plan: (_state(adapter), 0)
    dense = remember_dense(adapter, adapter.head, pair_loss_batches(adapter, context.proxy))
    tokens = Tokens.of(context.proxy, search.projector_batch)
    again = recomputes_blocks(adapter, tokens, machine, found.blocks is not None)

    def evolve(plan: Plan) -> tuple[dict[str, torch.Tensor], int]:
        model, levels, longest = plan.choice.models[0], plan.budget.levels, 0.0
        policies = [[levels[i] for i in scored.policy] for scored in plan.survivors(SURVIVORS)]
        evolution = ProjectorEvolution(
            adapter, pairs, lambda index: model.stitch(policies[index]), dense, search, again
        )
        weights = importance_weights(policies, search.neighbours)
        decisive = search.model_dump(mode="json", exclude=UNDECISIVE)
        key = value_digest({"policies": policies, "search": decisive})[:16]
        for number in range(1, rounds + 1):
            began = time.monotonic()
            if plan.is_late(longest):
                return _state(adapter), number - 1
            path = folder / f"projector-{key}-{number:02d}"
            step = _round(evolution, weights, search.seed, number, path)
            longest = max(longest, time.monotonic() - began)
            losses = {"before": step.before, "after": step.after}
            known = {name: loss for name, loss in losses.items() if loss is not None}
            context.progress(Event("projector", number, rounds, known))
            if not step.kept:
                return _state(adapter), number - 1
        return _state(adapter), rounds

    return evolve


def _round(
    evolution: ProjectorEvolution, weights: Sequence[float], seed: int, number: int, path: Path
) -> ProjectorStep:
    """A round, or what its files say of it."""
    record, weight_file = path.with_suffix(".json"), path.with_suffix(".safetensors")
    if record.exists():
        evolution.adapter.load_projector(load_tensors(weight_file))
        return ProjectorStep(**read_sealed(record))
    step = evolution.step(weights, stream(seed, number, PROJECTOR_STREAM))
    save_tensors(weight_file, evolution.adapter.projector_state)
    write_sealed(record, asdict(step))
    return step


def _state(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in adapter.projector_state.items()}
