"""Methods that remove parts of a model: heads and channels, or whole decoder blocks.

The result is an ordinary, smaller transformers checkpoint; the record lists the removed parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from efficientllava.data.proxy import ProxyData
from efficientllava.errors import UserError
from efficientllava.models.families import Adapter, Matrix, adapter_for
from efficientllava.parameters import FinalizeParameters, ObsParameters, Parameters
from efficientllava.progress import Progress, silent
from efficientllava.pruning.measures import ProxyMeasures
from efficientllava.pruning.sequential import matrix_row, verify
from efficientllava.pruning.structured.block_removal import (
    BlockList,
    image_text_inputs,
    mean_cosines,
    order_by_cosine,
    order_by_loss,
    removable_blocks,
    removed_count,
    runs_of,
)
from efficientllava.pruning.structured.compensation import compensate
from efficientllava.pruning.structured.head_configs import Shape, configured, shape_for
from efficientllava.pruning.structured.heads_channels import (
    Coupled,
    blank_out,
    coupled,
    cut_out,
    group_importance,
    most_important,
    taylor_salience,
)

Structure = dict[str, Any]
"""The structure of the pruned model, for pruning.json: see `remove_parts`."""


@torch.no_grad()
def prune_structure(
    adapter: Adapter,
    proxy: ProxyData,
    removal: str,
    ratio: float,
    parameters: Parameters,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Remove parts of a dense model in place until `ratio` of it is gone, and verify the result.

    The adapter no longer fits the model afterwards.

    Args:
        removal: see `remove_parts`.

    Returns:
        The record: losses, `chosen`, `policy`, `matrices`, `structure`, `achieved_sparsity`.

    Raises:
        UserError: see `remove_parts` and `verify_structure`.
    """
    measures = ProxyMeasures(adapter, proxy, parameters.search, progress)
    left, rows, structure = remove_parts(
        adapter, proxy, removal, ratio, parameters, measures.loss, progress
    )
    verify_structure(left, rows, structure)
    return {
        **measures(left.language_model)[0],
        "chosen": "structured",
        "pattern": parameters.obs.pattern,
        "policy": {row["name"]: row["level"] for row in rows},
        "achieved_sparsity": removed_share(rows, structure),
        "matrices": rows,
        "structure": structure,
    }


@torch.no_grad()
def remove_parts(
    adapter: Adapter,
    proxy: ProxyData,
    removal: str,
    ratio: float,
    parameters: Parameters,
    loss: Callable[[nn.Module], float],
    progress: Progress = silent,
) -> tuple[Adapter, list[dict[str, Any]], Structure]:
    """Remove parts of a dense model in place.

    Args:
        removal: see `methods.StructuredMethod`.
        ratio: the share of the language model's prunable weights (of its blocks, where whole
            blocks go) that is to be removed.
        loss: of a language model, on the proxy data; decides for "blocks_by_loss".

    Returns:
        the adapter of the smaller model; one row per remaining matrix (as `prune_model`); and the
        structure: dense_weights (prunable weights of the dense model), removed (by matrix name
        in the dense model, the share of its weights that is gone), calibration_digest, and
        kept_blocks, removed_blocks, runs, order, compensation or heads and channels per block.

    Raises:
        UserError: an n:m pattern is asked for, or the ratio would leave nothing.
    """
    obs, finalize = parameters.obs, parameters.finalize
    if obs.group_size is not None:
        raise UserError(
            f"{obs.named} says which weights of a matrix become zero, but this "
            "method removes heads, channels or blocks as a whole",
            where="params.yaml, obs.pattern",
            remedy="use `unstructured`, or leave such methods out",
        )
    sizes = {matrix.name: matrix.size for matrix in adapter.matrices}
    norms = {matrix.module: float(matrix.weight.double().norm()) for matrix in adapter.matrices}
    names = {matrix.module: matrix.name for matrix in adapter.matrices}
    zeroed: dict[str, int] = {}
    if removal == "heads_and_channels":
        structure, zeroed = _remove_heads_and_channels(adapter, proxy, ratio, obs, finalize)
    else:
        structure = _remove_blocks(adapter, proxy, removal, ratio, obs, finalize, loss, progress)
    left = adapter_for(adapter.model)
    rows = [
        _row(matrix, zeroed.get(names[matrix.module], 0), norms[matrix.module])
        for matrix in left.matrices
    ]
    still = {names[m.module]: m.size - zeroed.get(names[m.module], 0) for m in left.matrices}
    structure |= {
        "dense_weights": sum(sizes.values()),
        "removed": {name: 1.0 - still.get(name, 0) / size for name, size in sizes.items()},
        "stored_weights": sum(left.sizes),
        "calibration_digest": proxy.digest,
    }
    return left, rows, structure


def _row(matrix: Matrix, zeroed: int, norm: float) -> dict[str, Any]:
    """The record of a matrix that is left.

    Args:
        zeroed: weights of removed parts that are stored as zeros.
        norm: of the matrix in the dense model.
    """
    weight = matrix.weight
    already = int((weight == 0).sum()) - zeroed
    level = zeroed / matrix.size
    row = matrix_row(matrix.name, matrix.block, level, weight, weight, None, already)
    row["norm_ratio"] = float(weight.double().norm()) / norm if norm > 0 else 1.0
    return row


def _remove_blocks(
    adapter: Adapter,
    proxy: ProxyData,
    removal: str,
    ratio: float,
    obs: ObsParameters,
    finalize: FinalizeParameters,
    loss: Callable[[nn.Module], float],
    progress: Progress,
) -> Structure:
    total = len(adapter.blocks)
    count = removed_count(ratio, total, finalize.keep_last_block)
    removable = removable_blocks(total, finalize.keep_last_block)
    blocks = BlockList(adapter)
    record: Structure = {"kind": "blocks"}
    if removal == "blocks_by_loss":
        order, losses = order_by_loss(blocks, removable, count, loss, progress)
        record["losses"] = losses
    else:
        important = finalize.important_tokens if removal == "blocks_by_important_tokens" else None
        cosines = mean_cosines(adapter, proxy, obs.calibration, important, progress)
        order = order_by_cosine(cosines, removable)
        record["cosines"] = cosines
    removed = sorted(order[:count])
    runs = runs_of(removed)
    kept = [block for block in range(total) if block not in removed]
    compensation: list[dict[str, Any]] = []
    if removal == "blocks_by_important_tokens":
        batches = image_text_inputs(adapter, proxy, obs.calibration)
        compensation = compensate(
            adapter, batches, runs, finalize.compensation, finalize.components
        )
    blocks.keep(kept)
    return record | {
        "order": order[:count],
        "kept_blocks": kept,
        "removed_blocks": removed,
        "runs": [list(run) for run in runs],
        "compensation": compensation,
    }


def _remove_heads_and_channels(
    adapter: Adapter,
    proxy: ProxyData,
    ratio: float,
    obs: ObsParameters,
    finalize: FinalizeParameters,
) -> tuple[Structure, dict[str, int]]:
    total = len(adapter.blocks)
    parts = [coupled(adapter, block) for block in range(total)]
    first = parts[0]
    counts = {(part.units, part.unit_size, part.channels) for part in parts}
    if len(counts) > 1:
        raise UserError("its blocks differ in their counts of heads or channels", "llm_pruner")
    whole = finalize.protect_first + finalize.protect_last
    if whole >= total:
        raise UserError(
            f"all {total} decoder blocks are protected",
            where="params.yaml, finalize.protect_first and finalize.protect_last",
            remedy="protect fewer blocks",
        )
    pruned = range(finalize.protect_first, total - finalize.protect_last)
    block_size = first.units * first.unit_size + first.channels * first.channel_size
    target = ratio * block_size * total / len(pruned)
    before = {
        "heads_are": "groups of query heads" if first.unit_rows[1] else "query heads",
        "heads_before": first.units,
        "channels_before": first.channels,
    }
    configs = {} if whole else _configurations(adapter, first)
    usable = list(range(1, first.units + 1)) if whole else list(configs)
    shape = shape_for(
        target, first.units, first.unit_size, first.channels, first.channel_size, usable
    )
    salience = taylor_salience(adapter, proxy, obs.calibration)
    by_name = {m.name: values for m, values in zip(adapter.matrices, salience, strict=True)}
    kept: list[dict[str, Any]] = []
    zeroed: dict[str, int] = {}
    for block, part in enumerate(parts):
        units, channels = torch.arange(part.units), torch.arange(part.channels)
        if block in pruned:
            by_unit, by_channel = group_importance(part, by_name)
            units = most_important(by_unit, shape.units)
            channels = most_important(by_channel, shape.channels)
            if whole:
                zeroed |= blank_out(part, units, channels)
            else:
                cut_out(part, units, channels)
        kept.append({"heads": units.tolist(), "channels": channels.tolist()})
    if not whole:
        _configure(adapter, coupled(adapter, 0), configs[shape.units], shape)
    return {
        "kind": "heads_and_channels",
        **before,
        "stored": "zeros" if whole else "smaller",
        "protected": [block for block in range(total) if block not in pruned],
        "kept": kept,
    }, zeroed


def _configurations(adapter: Adapter, parts: Coupled) -> dict[int, Any]:
    """By number of kept units, the text configuration that holds it; only what can be built."""
    config: Any = adapter.model.config.get_text_config()  # type: ignore[operator,union-attr]
    result = {}
    for units in range(1, parts.units + 1):
        queries = parts.query_heads // parts.units * units
        keys = units if parts.key_heads == parts.units else parts.key_heads
        made = configured(parts.attention, config, queries, keys, parts.head_width)
        if made is not None:
            result[units] = made
    return result


def _configure(adapter: Adapter, parts: Coupled, config: Any, shape: Shape) -> None:
    """Give the model the configuration of its new shape; modules keep objects of their own."""
    config.intermediate_size = shape.channels
    model: Any = adapter.model
    language_model: Any = adapter.language_model
    for live in (language_model.config, model.config.get_text_config()):
        live.num_attention_heads, live.num_key_value_heads = parts.query_heads, parts.key_heads
        live.head_dim, live.intermediate_size = parts.head_width, shape.channels
    if config.model_type != model.config.get_text_config().model_type:
        config._attn_implementation = language_model.config._attn_implementation
        if adapter.projector is None:
            model.config = config
        else:
            model.config.text_config = config


def removed_share(rows: Sequence[Mapping[str, Any]], structure: Mapping[str, Any]) -> float:
    """The share of the dense model's prunable weights that is gone: removed, or removed to zero."""
    left = sum(row["size"] - round(row["level"] * row["size"]) for row in rows)
    return 1.0 - left / float(structure["dense_weights"])


def verify_structure(
    adapter: Adapter, rows: Sequence[Mapping[str, Any]], structure: Mapping[str, Any]
) -> None:
    """Check a smaller model against its record: sizes, zeros, numbers of blocks, cache slots.

    Raises:
        UserError: with the difference.
    """
    verify(adapter, rows)
    sizes = {row["name"]: row["size"] for row in rows}
    for matrix in adapter.matrices:
        if matrix.size != sizes[matrix.name]:
            raise UserError(
                f"has {matrix.size} weights; its record says {sizes[matrix.name]}",
                where=matrix.name,
            )
    if len(sizes) != len(adapter.matrices):
        raise UserError(
            f"holds {len(adapter.matrices)} prunable matrices; its record says {len(sizes)}",
            where="pruned model",
        )
    config: Any = adapter.model.config.get_text_config()  # type: ignore[operator,union-attr]
    blocks = len(adapter.blocks)
    if config.num_hidden_layers != blocks:
        raise UserError(
            f"has {blocks} decoder blocks; its configuration says {config.num_hidden_layers}",
            where="pruned model",
        )
    if blocks != len(structure.get("kept_blocks", range(blocks))):
        raise UserError(
            f"has {blocks} decoder blocks; its record keeps {len(structure['kept_blocks'])}",
            where="pruned model",
        )
    for index, block in enumerate(adapter.blocks):
        slots = {module.layer_idx for module in block.modules() if hasattr(module, "layer_idx")}
        if slots - {index}:
            raise UserError(f"block {index} writes to cache slot {slots}", where="pruned model")
