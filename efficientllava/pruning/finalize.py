"""The final pruned model: sequential or stitched, whichever risks less, and the record of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from efficientllava.calibration.proxy_loss import ProxyLoss, running_sums
from efficientllava.calibration.structural_risk import COMPLEXITIES, structural_risk
from efficientllava.data.proxy import ProxyData
from efficientllava.database.build import Database
from efficientllava.errors import UserError
from efficientllava.models.families import Adapter, adapter_for, device_of
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

MASKING = ("magnitude", "wanda", "none")
"""Updates that set weights to zero and leave all others as they are."""


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
    database it is stitched as well, and the one of lower structural risk is kept, every scored
    position counting once (method.md section 3). Updates that remove parts leave an adapter behind
    that no longer fits the model.

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
        adapter.projector.load_state_dict(dict(projector))
        for loss in losses.values():
            loss.projector_moved()

    def measured(rows: list[dict[str, Any]]) -> tuple[dict[str, float], float]:
        """What is recorded of the model as it is now, and the risk that it is chosen by."""
        values = {name: _losses(loss, adapter.language_model) for name, loss in losses.items()}
        complexity = COMPLEXITIES[search.complexity]([row["norm_ratio"] for row in rows])
        loss, by_position = values[search.fitness]
        record = {
            "proxy_kl": values["kl"][0],
            "proxy_nll": values["nll"][0],
            "proxy_loss": loss,
            "complexity": complexity,
            "risk": structural_risk(loss, complexity, search.eta),
        }
        return record, structural_risk(by_position, complexity, search.eta)

    if update in SMALLER:
        ratio = sum(policy[m.name] * m.size for m in adapter.matrices) / sum(adapter.sizes)
        ratio, loss = round(ratio, 9), losses[search.fitness]
        left, rows, structure = make_smaller(
            adapter, proxy, update, ratio, pruning, prune, loss, progress
        )
        verify_smaller(left, rows, structure)
        return {
            **measured(rows)[0],
            "chosen": "smaller",
            "pattern": pruning.pattern,
            "policy": {row["name"]: row["level"] for row in rows},
            "achieved_sparsity": removed_share(rows, structure),
            "matrices": rows,
            "structure": structure,
        }
    rows = prune_model(adapter, proxy, update, policy, pruning, progress, prune.refine)
    scores, risk = measured(rows)
    chosen, risks = "sequential", {"sequential_risk": risk}
    if database is not None:
        sequential = _weights(adapter, on_disk)
        for matrix, weight in zip(adapter.matrices, dense, strict=True):
            matrix.replace(weight)
        if on_disk is None:
            stitched_rows = stitch_model(adapter, database, policy)
        else:
            stitched_rows = stitch_model(adapter, database, policy, on_disk.let_go)
        stitched, risks["stitched_risk"] = measured(stitched_rows)
        if risks["stitched_risk"] < risk:
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


def _losses(loss: ProxyLoss, language_model: nn.Module) -> tuple[float, float]:
    """The proxy loss as the search takes it, and the mean loss of all scored positions.

    The search counts text and answers half each. A choice between two models by that measure would
    follow the answers' few positions, whose mean varies more than the text's of thousands.
    """
    sums = [
        list(running_sums(language_model, loss.head, batches, loss.fitness))[-1]
        for batches in (loss.text, loss.pairs)
        if batches
    ]
    means = [total / max(count, 1) for total, count in sums]
    positions = sum(count for _, count in sums)
    return sum(means) / len(means), sum(total for total, _ in sums) / max(positions, 1)


def _weights(adapter: Adapter, on_disk: BlocksOnDisk | None) -> list[torch.Tensor]:
    """The prunable weights as they are, to be put back later; nothing is copied."""
    if on_disk is None:
        return [matrix.weight for matrix in adapter.matrices]
    on_disk.let_go()
    return [on_disk.weight(matrix) for matrix in adapter.matrices]


@torch.no_grad()
def require_kept_weights(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    update: str,
    projector: Mapping[str, torch.Tensor],
) -> None:
    """Check that a pruned checkpoint holds the dense one's weights wherever nothing changed them.

    Both are what transformers reads from their folders. Prunable matrices may hold zeros instead
    where the update only sets weights to zero, and anything with other updates; updates that remove
    parts may change all of the decoder blocks.

    Args:
        update: as in `prune_finally`.
        projector: as in `prune_finally`; the projector must be this one.

    Raises:
        UserError: a weight (named) differs.
    """
    before, after = adapter_for(dense), adapter_for(pruned)
    expected = dense.state_dict()
    if projector:
        prefix = next(name for name, module in dense.named_modules() if module is before.projector)
        expected |= {
            f"{prefix}.{name}": value.to(expected[f"{prefix}.{name}"].dtype)
            for name, value in projector.items()
        }
    matrices = {f"{matrix.name}.weight" for matrix in before.matrices}
    blocks = _names_in_blocks(before) | _names_in_blocks(after)
    for name, value in pruned.state_dict().items():
        if update in SMALLER and name in blocks:
            continue
        kept = expected.get(name)
        same = kept is not None and kept.dtype == value.dtype and kept.shape == value.shape
        if same and name in matrices:
            same = update not in MASKING or bool(((value == 0) | (value == kept)).all())
        elif same:
            same = torch.equal(value, kept)
        if not same:
            raise UserError(
                f"weight {name} is not the one that transformers reads from the dense model",
                where="pruned checkpoint",
                remedy="the dense model's files may have changed meanwhile: start again",
            )
    removed = blocks if update in SMALLER else set()
    if missing := expected.keys() - pruned.state_dict().keys() - removed:
        raise UserError(f"has no weight {min(missing)}", where="pruned checkpoint")


def _names_in_blocks(adapter: Adapter) -> set[str]:
    own = {id(value) for block in adapter.blocks for value in block.parameters()}
    own |= {id(value) for block in adapter.blocks for value in block.buffers()}
    state = adapter.model.state_dict(keep_vars=True)
    return {name for name, value in state.items() if id(value) in own}


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
