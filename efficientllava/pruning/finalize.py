"""The final pruned model: sequential or stitched, whichever risks less, and the record of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from efficientllava.calibration.proxy_loss import ProxyLoss
from efficientllava.calibration.structural_risk import COMPLEXITIES, structural_risk
from efficientllava.data.proxy import ProxyData
from efficientllava.database.build import Database
from efficientllava.errors import UserError
from efficientllava.models.families import Adapter, device_of
from efficientllava.offload.blocks_on_disk import BlocksOnDisk
from efficientllava.parameters import PruneParameters, PruningParameters, SearchParameters
from efficientllava.progress import Progress, silent
from efficientllava.pruning.methods import SMALLER
from efficientllava.pruning.sequential import (
    Policy,
    achieved_sparsity,
    prune_model,
    stitch_model,
    verify,
)
from efficientllava.pruning.structured.structured import make_smaller, removed_share, verify_smaller


@torch.no_grad()
def prune_finally(
    adapter: Adapter,
    proxy: ProxyData,
    database: Database | None,
    update: str,
    policy: Policy,
    projector: Mapping[str, torch.Tensor],
    pruning: PruningParameters,
    search: SearchParameters,
    progress: Progress = silent,
    prune: PruneParameters | None = None,
    on_disk: BlocksOnDisk | None = None,
) -> dict[str, Any]:
    """Prune a dense model in place with a policy and an evolved projector, and verify it.

    The model is pruned sequentially, each block calibrated on the pruned blocks before it. With a
    database it is stitched as well, and the one of lower structural risk is kept (method.md
    section 3). Updates that remove parts leave an adapter behind that no longer fits the model.

    Args:
        database: of the dense model at the policy's levels, or None for sequential alone.
        update: what happens to the weights, as `methods.Method.update`.
        policy: ratio of every prunable matrix; where parts are removed, its mean is the ratio.
        projector: state of the evolved projector; empty for the model's own.
        prune: parameters of the final pruning alone; their defaults when not given.
        on_disk: what keeps the model's blocks in files, if anything does.

    Returns:
        The content of pruning.json, without what only the caller knows (method, ratio, digests).

    Raises:
        UserError: see `prune_model`, `verify`, `make_smaller` and `verify_smaller`.
    """
    prune = prune or PruneParameters()
    dense = _weights(adapter, on_disk) if database is not None else []
    data = search.fitness_data
    # remembers the dense model with its own projector, before either changes
    losses = {name: ProxyLoss(adapter, proxy, name, data) for name in ("kl", "nll")}
    if projector:
        adapter.load_projector(projector)
        for loss in losses.values():
            loss.projector_moved()

    def measured(rows: list[dict[str, Any]]) -> dict[str, float]:
        values = {name: loss(adapter.language_model) for name, loss in losses.items()}
        complexity = COMPLEXITIES[search.complexity]([row["norm_ratio"] for row in rows])
        return {
            "proxy_kl": values["kl"],
            "proxy_nll": values["nll"],
            "proxy_loss": values[search.fitness],
            "complexity": complexity,
            "risk": structural_risk(values[search.fitness], complexity, search.eta),
        }

    if update in SMALLER:
        ratio = sum(policy[m.name] * m.size for m in adapter.matrices) / sum(adapter.sizes)
        ratio, loss = round(ratio, 9), losses[search.fitness]
        left, rows, structure = make_smaller(
            adapter, proxy, update, ratio, pruning, prune, loss, progress
        )
        verify_smaller(left, rows, structure)
        return {
            **measured(rows),
            "chosen": "smaller",
            "pattern": pruning.pattern,
            "policy": {row["name"]: row["level"] for row in rows},
            "achieved_sparsity": removed_share(rows, structure),
            "matrices": rows,
            "structure": structure,
        }
    rows = prune_model(adapter, proxy, update, policy, pruning, progress, prune.refine)
    scores, chosen, risks = measured(rows), "sequential", {}
    risks["sequential_risk"] = scores["risk"]
    if database is not None:
        sequential = _weights(adapter, on_disk)
        for matrix, weight in zip(adapter.matrices, dense, strict=True):
            matrix.replace(weight)
        if on_disk is None:
            stitched_rows = stitch_model(adapter, database, policy)
        else:
            stitched_rows = stitch_model(adapter, database, policy, on_disk.let_go)
        stitched = measured(stitched_rows)
        risks["stitched_risk"] = stitched["risk"]
        if stitched["risk"] < scores["risk"]:
            rows, scores, chosen = stitched_rows, stitched, "stitched"
        else:
            for matrix, weight in zip(adapter.matrices, sequential, strict=True):
                matrix.replace(weight)
    if on_disk is None:
        verify(adapter, rows)
    else:
        on_disk.let_go()
        verify(adapter, rows, on_disk.weight)
    return {
        **scores,
        **risks,
        "chosen": chosen,
        "pattern": pruning.pattern,
        "policy": dict(policy),
        "achieved_sparsity": achieved_sparsity(rows),
        "matrices": rows,
    }


def _weights(adapter: Adapter, on_disk: BlocksOnDisk | None) -> list[torch.Tensor]:
    """The prunable weights as they are, to be put back later; nothing is copied."""
    if on_disk is None:
        return [matrix.weight for matrix in adapter.matrices]
    on_disk.let_go()
    return [on_disk.weight(matrix) for matrix in adapter.matrices]


@torch.no_grad()
def require_same_logits(
    model: PreTrainedModel, reloaded: PreTrainedModel, proxy: ProxyData
) -> None:
    """Check that a model which was saved and loaded again gives the same logits, bit for bit.

    Raises:
        UserError: it does not.
    """
    segment = proxy.segments[:1].to(device_of(model))
    if not torch.equal(model(input_ids=segment).logits, reloaded(input_ids=segment).logits):
        raise UserError(
            "the saved checkpoint does not give the logits of the model in memory",
            where="pruned checkpoint",
            remedy="see dtype in its config.json: saving must not lose precision",
        )
