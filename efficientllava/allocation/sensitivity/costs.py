"""The cost of every matrix at every level, batch by batch: at the dense model, and at a pruned one.

A batch's sums are written before the next batch begins. What draws a batch's labels depends on the
seed and the batch alone, so that a run that is killed and resumed ends with the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from efficientllava.allocation.gradients.backward import gathered, label_draws
from efficientllava.allocation.gradients.observers import Sums
from efficientllava.calibration.block_walk import FEW_TOKENS
from efficientllava.calibration.sample_losses import DenseReference, warn_of_few
from efficientllava.database.solutions import Database, level_key
from efficientllava.files import read_sealed, write_sealed
from efficientllava.models.families import Adapter, Matrix
from efficientllava.progress import Event, Progress

logger = logging.getLogger(__name__)

MEASURED = 5
"""Levels at which the Fisher cost is measured; between them its logarithm is interpolated."""
TINY = 1e-30


@dataclass(frozen=True)
class Gradients:
    """The model and the samples whose gradients give the costs.

    Attributes:
        adapter: of the model, dense or stitched.
        reference: its batches, with the dense model's hidden states.
        streamed: whether its blocks are streamed.
        seed: of the labels.
    """

    adapter: Adapter
    reference: DenseReference
    database: Database
    streamed: bool
    seed: int
    progress: Progress


def _summed(
    gradients: Gradients,
    folder: Path,
    name: str,
    changes: Callable[[Matrix], Iterator[torch.Tensor]],
    kl: bool = False,
) -> Sums:
    """The sums over all batches, weighted; those found in the folder are not computed again."""
    parts, reference = [], gradients.reference
    for index, batch in enumerate(reference.batches):
        path = folder / f"{name}-{index:03d}.json"
        if not path.exists():
            sums = gathered(
                gradients.adapter,
                batch,
                changes,
                None if kl else label_draws(batch, f"{gradients.seed}/{name}/{index}"),
                reference.hidden[index] if kl else None,
                gradients.streamed,
            )
            write_sealed(path, asdict(sums))
            of = "the KL divergence" if kl else "drawn labels"
            done, total = index + 1, len(reference.batches)
            gradients.progress(Event("gradients", done, total, {"of": of}))
        parts.append(Sums(**read_sealed(path)))
    return Sums.joined(parts, reference.weights)


def sensitivities(
    gradients: Gradients, form: str, levels: Sequence[float], folder: Path
) -> np.ndarray:
    """[K, L] costs at the dense model, which the adapter must hold, by `sensitivity.form`."""
    positions = int(gradients.reference.dense.positions.sum())
    warn_of_few(positions, "the sensitivity of the matrices rests")
    measure = scalar_costs if form == "scalar" else fisher_costs
    costs, tokens = measure(gradients, levels, folder)
    records, matrices = gradients.database.manifest["matrices"], gradients.adapter.matrices
    routed = np.array([records[matrix.name]["tokens"] for matrix in matrices])
    unseen = _unseen(matrices, tokens)
    if unseen:
        logger.warning(
            "%d of %d matrices belong to experts that fewer than %d gradient tokens reach (%s): "
            "their costs are those of the other experts of their block; raise sensitivity.tokens",
            len(unseen),
            len(matrices),
            FEW_TOKENS,
            matrices[unseen[0]].name,
        )
    return costs_of_unseen(costs, unseen, routed, [matrix.parameter for matrix in matrices])


def _unseen(matrices: Sequence[Matrix], tokens: Sequence[float]) -> list[int]:
    """Indices of the experts' matrices that too few tokens reach for a cost of their own."""
    return [
        index
        for index, matrix in enumerate(matrices)
        if matrix.expert is not None and tokens[index] < FEW_TOKENS
    ]


def costs_of_unseen(
    costs: np.ndarray, unseen: Sequence[int], routed: np.ndarray, parameters: Sequence[str]
) -> np.ndarray:
    """[K, L] costs in which an expert that gradients hardly saw is not free.

    It has what a calibration token costs on average over the experts of its block, for as many
    tokens as calibration routed to it, and at least `FEW_TOKENS`.

    Args:
        unseen: indices of the matrices.
        routed: [K] calibration tokens of every matrix.
        parameters: [K] names; the experts of a block share one.
    """
    experts: dict[str, list[int]] = {parameters[index]: [] for index in unseen}
    for index, name in enumerate(parameters):
        if name in experts:
            experts[name].append(index)
    per_token = {
        name: costs[own].sum(axis=0) / max(routed[own].sum(), 1) for name, own in experts.items()
    }
    shared = costs.copy()
    for index in unseen:
        shared[index] = per_token[parameters[index]] * max(routed[index], FEW_TOKENS)
    return shared


def fisher_costs(
    gradients: Gradients, levels: Sequence[float], folder: Path
) -> tuple[np.ndarray, list[float]]:
    """[K, L] nats for each scored position: 1/2 sum_t (g_t . (W_l - W) x_t)^2 / positions.

    The factor 1/2 makes it the KL divergence to second order, cross terms between tokens left out.
    It is measured at five of the levels. Then [K], how many tokens reached each matrix.
    """
    measured = _measured(levels)

    def changes(matrix: Matrix) -> Iterator[torch.Tensor]:
        dense = matrix.weight.float()
        for level in measured:
            yield _solution(gradients.database, matrix, level) - dense

    sums = _summed(gradients, folder, "fisher", changes)
    costs = 0.5 * np.array(sums.squares) / max(sums.positions, 1)
    return interpolated(costs, measured, levels), sums.tokens


def scalar_costs(
    gradients: Gradients, levels: Sequence[float], folder: Path
) -> tuple[np.ndarray, list[float]]:
    """[K, L] nats for each scored position, from one number of gradients for each matrix.

    1/2 x sum_t |g_t|^2 x mean_t |dW x_t|^2 / out / positions: what the Fisher cost is where
    gradients and output errors are independent and point anywhere. |dW x|^2 is the database's
    relative output error times |W x|^2. Then [K], how many tokens reached each matrix.
    """

    def no_changes(matrix: Matrix) -> Iterator[torch.Tensor]:
        return iter(())

    sums = _summed(gradients, folder, "scalar", no_changes)
    rows = [matrix.weight.shape[0] for matrix in gradients.adapter.matrices]
    energy = np.array(sums.output) / np.maximum(sums.tokens, 1)
    scale = 0.5 * np.array(sums.gradient) * energy / np.array(rows) / max(sums.positions, 1)
    errors = output_errors(gradients.database, gradients.adapter, levels)
    return scale[:, None] * errors, sums.tokens


def output_errors(database: Database, adapter: Adapter, levels: Sequence[float]) -> np.ndarray:
    """[K, L] relative output errors tr(dW H dW^T) / tr(W H W^T) of the database."""
    records = database.manifest["matrices"]
    return np.array(
        [
            [records[matrix.name]["levels"][level_key(level)]["relative_error"] for level in levels]
            for matrix in adapter.matrices
        ]
    )


def corrected_costs(
    gradients: Gradients,
    policy: Sequence[int],
    levels: Sequence[float],
    trust: float,
    weight: float,
    folder: Path,
) -> np.ndarray:
    """[K, L] cost of moving each matrix from its level in a stitched policy; inf beyond `trust`.

    mean of g_KL . (W_l - W_now) x + weight x mean of (g_drawn . (W_l - W_now) x)^2, both gradients
    at the stitched policy, which the adapter's model must hold. The model of the drop is too
    optimistic far away: a small `trust` keeps moves short. An expert that fewer than `FEW_TOKENS`
    reach does not move.

    Args:
        policy: index of the level of every matrix.
        trust: the largest move, as a difference of ratios.
    """
    near = [_near(levels, now, trust) for now in policy]
    index_of = {matrix.name: index for index, matrix in enumerate(gradients.adapter.matrices)}

    def changes(matrix: Matrix) -> Iterator[torch.Tensor]:
        index = index_of[matrix.name]
        now = _solution(gradients.database, matrix, levels[policy[index]])
        for other in near[index]:
            yield _solution(gradients.database, matrix, levels[other]) - now

    first = _summed(gradients, folder, "kl", changes, kl=True)
    second = _summed(gradients, folder, "drawn", changes)
    costs = np.full((len(policy), len(levels)), np.inf)
    unseen = set(_unseen(gradients.adapter.matrices, first.tokens))
    for index, now in enumerate(policy):
        costs[index, now] = 0.0
        if index in unseen:
            continue
        slope = np.array(first.linear[index]) / max(first.positions, 1)
        bend = np.array(second.squares[index]) / max(second.positions, 1)
        costs[index, near[index]] = slope + weight * bend
    return costs


def _solution(database: Database, matrix: Matrix, level: float) -> torch.Tensor:
    """A matrix's OBS solution at a level, in float32 where its weight is."""
    solution = database.solution(matrix.name, level)
    return solution.to(matrix.weight.device).float()


def _near(levels: Sequence[float], now: int, trust: float) -> list[int]:
    return [
        index
        for index, level in enumerate(levels)
        if index != now and abs(level - levels[now]) <= trust + 1e-9
    ]


def _measured(levels: Sequence[float]) -> list[float]:
    """Five levels spread evenly over those above 0, both ends among them."""
    above = [level for level in levels if level > 0.0]
    chosen = np.linspace(0, len(above) - 1, min(MEASURED, len(above))).round().astype(int)
    return [above[index] for index in sorted(set(chosen.tolist()))]


def interpolated(
    costs: np.ndarray, measured: Sequence[float], levels: Sequence[float]
) -> np.ndarray:
    """[K, L] from [K, M] costs at measured levels, linear in the logarithm; 0 at level 0."""
    logarithms = np.log(np.maximum(costs, TINY))
    rows = [np.exp(np.interp(levels, measured, row)) for row in logarithms]
    full = np.array(rows)
    full[:, [index for index, level in enumerate(levels) if level == 0.0]] = 0.0
    return full
