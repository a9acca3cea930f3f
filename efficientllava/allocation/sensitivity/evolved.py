"""The projector moves for the best policies of a choice, as in the paper's search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from efficientllava.allocation.context import Context
from efficientllava.allocation.scoring.evaluation import StitchedModel
from efficientllava.allocation.search.evolution import stream
from efficientllava.allocation.search.projector import (
    ProjectorEvolution,
    ProjectorStep,
    importance_weights,
)
from efficientllava.allocation.sensitivity.choice import Scored
from efficientllava.calibration.proxy_loss import pair_loss_batches, remember_dense
from efficientllava.database.offloaded import Offloaded
from efficientllava.files import load_tensors, read_json, save_tensors, value_digest, write_json
from efficientllava.parameters import SearchParameters
from efficientllava.progress import Event

Evolve = Callable[
    [StitchedModel, Sequence[float], Sequence[Scored]], tuple[dict[str, torch.Tensor], int]
]
"""Given a stitched model, the levels and the best policies: the projector's state, rounds kept."""


def evolve_projector(
    context: Context, search: SearchParameters, found: Offloaded, folder: Path
) -> Evolve:
    """Remember what the dense model answers, and return what moves the projector later.

    Equations (5)-(7) with the best policies as candidates: a round minimises their weighted loss by
    AdamW and is kept if held-out pairs gain; the first round that is not kept is the last. Rounds
    lie in files.
    """
    adapter, proxy, rounds = found.adapter, context.proxy, context.parameters.sensitivity
    state = {name: value.clone() for name, value in adapter.projector_state.items()}
    moves = search.evolve_projector and adapter.projector is not None and rounds.projector_rounds
    if not moves or proxy.pairs is None:
        return lambda model, levels, best: (state, 0)
    dense = remember_dense(adapter, adapter.head, pair_loss_batches(adapter, proxy))

    def evolve(
        model: StitchedModel, levels: Sequence[float], best: Sequence[Scored]
    ) -> tuple[dict[str, torch.Tensor], int]:
        policies = [[levels[index] for index in scored.policy] for scored in best]
        evolution = ProjectorEvolution(
            adapter,
            proxy.pairs,  # type: ignore[arg-type]
            lambda index: model.stitch(policies[index]),
            dense,
            search,
            found.blocks is None,
        )
        weights = importance_weights(policies, search.neighbours) if len(policies) > 1 else [1.0]
        key = value_digest({"policies": policies, "search": search.model_dump(mode="json")})[:16]
        for number in range(1, rounds.projector_rounds + 1):
            path = folder / f"projector-{key}-{number:02d}"
            step = _round(evolution, weights, search.seed, number, path)
            values: dict[str, float | int | str] = {"before": step.before, "after": step.after}
            context.progress(Event("projector", number, rounds.projector_rounds, values))
            if not step.kept:
                return _state(found), number - 1
        return _state(found), rounds.projector_rounds

    return evolve


def _round(
    evolution: ProjectorEvolution, weights: Sequence[float], seed: int, number: int, path: Path
) -> ProjectorStep:
    """A round, or what its files say of it."""
    record, weight_file = path.with_suffix(".json"), path.with_suffix(".safetensors")
    if record.exists():
        evolution.adapter.load_projector(load_tensors(weight_file))
        return ProjectorStep(**read_json(record))
    step = evolution.step(weights, stream(seed, number, -1))
    save_tensors(weight_file, evolution.adapter.projector_state)
    write_json(record, asdict(step))
    return step


def _state(found: Offloaded) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in found.adapter.projector_state.items()}
