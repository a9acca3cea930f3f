"""Weights set to zero in place: sequentially, or stitched from the database if that is better."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import torch

from efficientllava.allocation.context import Allocation
from efficientllava.calibration.block_walk import FEW_TOKENS
from efficientllava.calibration.opened import OpenModel
from efficientllava.calibration.sample_losses import (
    Difference,
    SampleLosses,
    difference,
    warn_of_few,
)
from efficientllava.calibration.structural_risk import COMPLEXITIES, structural_risk
from efficientllava.data.proxy import ProxyData
from efficientllava.database.solutions import Database
from efficientllava.models.families import Adapter, replace_weights
from efficientllava.parameters import ObsParameters, Parameters
from efficientllava.progress import Progress, silent
from efficientllava.pruning.measures import ProxyMeasures
from efficientllava.pruning.sequential import (
    achieved_sparsity,
    prune_model,
    stitch_model,
    verify,
)

logger = logging.getLogger(__name__)


@torch.no_grad()
def prune_masked(
    opened: OpenModel,
    proxy: ProxyData,
    criterion: str,
    allocation: Allocation,
    parameters: Parameters,
    database: Database | None = None,
    progress: Progress = silent,
    importance: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Prune a dense model in place with its ratios and its evolved projector, and verify it.

    The model is pruned sequentially, each block calibrated on the pruned blocks before it. With a
    database it is stitched as well; the stitched model is kept where its risk (or loss) is lower by
    more than the paired error, every scored position counting once (method.md section 3).

    Args:
        criterion: "magnitude", "wanda" or "obs".
        allocation: with a database also its `risk`, which decides.
        database: of the dense model at the policy's levels, or None for sequential alone.
        importance: see `prune_model`.

    Returns:
        The record: losses, `chosen`, `pattern` (of a set: a list, and each matrix has its own),
        `policy`, `matrices`, `achieved_sparsity`.

    Raises:
        UserError: see `prune_model` and `verify`.
    """
    adapter, policy = opened.adapter, allocation.policy
    dense = _weights(opened) if database is not None else []
    measures = ProxyMeasures(adapter, proxy, parameters.search, progress)
    measures.move_projector(adapter, allocation.projector)
    finished = () if opened.blocks is None else (opened.blocks.release,)
    settings, refine = parameters.obs, parameters.finalize.refine
    rows = prune_model(
        adapter, proxy, criterion, policy, settings, progress, refine, importance, *finished
    )
    scores, losses = measures(adapter.language_model)
    record = {**scores, **_risks(rows, scores, allocation, "sequential"), "chosen": "sequential"}
    if database is not None:
        sequential = _weights(opened)
        _replace(adapter, dense)
        stitched_rows = stitch_model(adapter, database, policy, *finished)
        record = _chosen(measures, adapter, allocation, stitched_rows, record, losses)
        if record["chosen"] == "stitched":
            rows = stitched_rows
        else:
            _replace(adapter, sequential)
    _verify(opened, rows)
    _warn_of_few_tokens(rows)
    return {
        **record,
        **({} if allocation.gain is None else {"gain": dict(allocation.gain)}),
        "pattern": _patterns(rows, parameters.obs),
        "policy": dict(policy),
        "achieved_sparsity": achieved_sparsity(rows),
        "matrices": rows,
    }


def _warn_of_few_tokens(rows: Sequence[dict[str, Any]]) -> None:
    few = [row["name"] for row in rows if "few_tokens" in row]
    if few:
        logger.warning(
            "%d of %d matrices belong to experts that fewer than %d calibration tokens reach (%s); "
            "they are pruned by magnitude: more calibration data reaches more experts",
            len(few),
            len(rows),
            FEW_TOKENS,
            few[0],
        )


def _chosen(
    measures: ProxyMeasures,
    adapter: Adapter,
    allocation: Allocation,
    rows: Sequence[dict[str, Any]],
    sequential: dict[str, Any],
    losses: SampleLosses,
) -> dict[str, Any]:
    """The record of the better model: the stitched one, which is open, beyond its error only.

    Args:
        rows: of the stitched model.
        sequential, losses: record and losses of the sequential one.
    """
    what = "the choice between the sequential and the stitched model rests"
    warn_of_few(measures.positions, what)
    scores, stitched_losses = measures(adapter.language_model)
    stitched = {**scores, **_risks(rows, scores, allocation, "stitched"), "chosen": "stitched"}
    apart = difference(stitched_losses, losses, measures.fitness)
    apart = Difference(_decisive(apart, sequential, stitched, allocation), apart.error)
    better, other = (stitched, sequential) if apart.better else (sequential, stitched)
    error = {"choice_error": apart.error} if isfinite(apart.error) else {}
    return {**other, **better, "choice_difference": apart.mean, **error}


def _patterns(rows: Sequence[dict[str, Any]], parameters: ObsParameters) -> str | list[str]:
    """The pattern of all matrices, or the set of patterns; then every row names its own."""
    if parameters.patterns is None:
        return parameters.pattern
    names = {zeros / group: f"{zeros}:{group}" for zeros, group in parameters.groups}
    for row in rows:
        row["pattern"] = names[min(names, key=lambda share: abs(share - row["level"]))]
    return list(names.values())


def _risks(
    rows: Sequence[dict[str, Any]],
    scores: dict[str, float],
    allocation: Allocation,
    how: str,
) -> dict[str, Any]:
    """Complexity and structural risk of a model that was searched; nothing for others."""
    if allocation.risk is None:
        return {}
    complexity = COMPLEXITIES[allocation.risk.complexity]([row["norm_ratio"] for row in rows])
    risk = structural_risk(scores["proxy_loss"], complexity, allocation.risk.eta)
    return {"complexity": complexity, "risk": risk, f"{how}_risk": risk}


def _decisive(
    apart: Difference,
    sequential: Mapping[str, Any],
    stitched: Mapping[str, Any],
    allocation: Allocation,
) -> float:
    """The difference that decides: of structural risks where these count, else of losses."""
    if allocation.risk is None or not allocation.risk.decides:
        return apart.mean
    return float(stitched["stitched_risk"] - sequential["sequential_risk"])


def _weights(opened: OpenModel) -> list[torch.Tensor]:
    """The prunable weights as they are, to be put back later; nothing is copied."""
    if opened.blocks is None:
        return [matrix.weight for matrix in opened.adapter.matrices]
    opened.blocks.release()
    return [opened.blocks.weight(matrix) for matrix in opened.adapter.matrices]


def _replace(adapter: Adapter, weights: Sequence[torch.Tensor]) -> None:
    replace_weights(list(zip(adapter.matrices, weights, strict=True)))


def _verify(opened: OpenModel, rows: Sequence[dict[str, Any]]) -> None:
    if opened.blocks is None:
        verify(opened.adapter, rows)
    else:
        opened.blocks.release()
        verify(opened.adapter, rows, opened.blocks.weight)
