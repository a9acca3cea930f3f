"""What pruning a model would take: memory and disk by formula, time from a short trial."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from efficientllava.allocation.context import Context
from efficientllava.calibration.block_walk import block_walk
from efficientllava.calibration.opened import OpenModel, block_by_block
from efficientllava.calibration.proxy_loss import hidden_states, text_loss_batches
from efficientllava.calibration.working_set import (
    Tokens,
    calibration_bytes,
    database_bytes,
    search_bytes,
)
from efficientllava.data.proxy import ProxyData
from efficientllava.database.build import solve_group
from efficientllava.offload.placement import GIB, needs_of, shape_of
from efficientllava.parameters import Parameters
from efficientllava.registry import METHODS


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds; the seconds are a guess from one decoder block and one batch.

    Attributes:
        matrices, weights: that would be pruned.
        memory: beside what the operating system caches of the checkpoint's files.
        disk: in the work folder, with the pruned checkpoint.
        candidates: that would be scored; 0 for methods that do not search.
    """

    matrices: int
    weights: int
    blocks: int
    memory: int
    disk: int
    candidates: int
    seconds: float

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for a table."""
        return [
            ("prunable matrices", f"{self.matrices} in {self.blocks} decoder blocks"),
            ("prunable weights", f"{self.weights:,}"),
            ("candidates to score", f"{self.candidates:,}" if self.candidates else "none"),
            ("memory, by formula", f"{self.memory / GIB:.2f} GiB"),
            ("disk in the work folder, by formula", f"{self.disk / GIB:.2f} GiB"),
            ("time, from a short trial", duration(self.seconds)),
        ]


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (float("inf"), 3600, "h")):
        if seconds < limit:
            return f"about {seconds / size:.3g} {unit}"
    raise AssertionError


def estimate(method: str, context: Context) -> Estimate:
    """What a call of `prune` would take; nothing is changed or kept.

    Raises:
        UserError: the model does not fit on the device.
    """
    parameters, proxy = context.parameters, context.proxy
    searches = "database" in METHODS[method].needs
    levels = context.levels if searches else [context.ratio]
    with block_by_block(
        context.model,
        context.work / "open",
        proxy,
        parameters.machine,
        levels=len(levels),
        block_size=parameters.pruning.block_size,
    ) as opened:
        adapter = opened.adapter
        shape, tokens = shape_of(adapter), Tokens.of(proxy)
        needs = needs_of(adapter, 0)
        working = max(
            calibration_bytes(shape, tokens, len(levels), parameters.pruning.block_size),
            search_bytes(shape, tokens, parameters.search.kl_tokens, device=adapter.device.type),
        )
        checkpoint = needs.fixed + needs.blocks
        disk = checkpoint
        if searches:
            compact = parameters.pruning.storage == "compact"
            disk += database_bytes(sum(adapter.sizes), levels, shape.item, compact)
        candidates = parameters.search.candidates * parameters.search.rounds if searches else 0
        per_block, per_pass = _trial(opened, proxy, parameters, levels)
        passes = 6 + candidates / parameters.machine.workers
        solved = per_block * len(adapter.blocks) * (2 if searches else 1)
        return Estimate(
            matrices=len(adapter.matrices),
            weights=sum(adapter.sizes),
            blocks=len(adapter.blocks),
            memory=needs.fixed + needs.largest_block + working,
            disk=disk,
            candidates=candidates,
            seconds=solved + per_pass * passes,
        )


@torch.no_grad()
def _trial(
    opened: OpenModel, proxy: ProxyData, parameters: Parameters, levels: list[float]
) -> tuple[float, float]:
    """Seconds of solving the first decoder block, and of one pass over the proxy data."""
    adapter = opened.adapter
    first = ProxyData(proxy.segments[:1], None)
    batch = text_loss_batches(adapter, first.segments)[0]
    hidden_states(adapter.language_model, batch.inputs)  # files are read, kernels compiled
    started = time.perf_counter()
    hidden_states(adapter.language_model, batch.inputs)
    tokens = Tokens.of(proxy)
    share = first.segments.numel() / (tokens.text + tokens.pairs)
    per_pass = (time.perf_counter() - started) / share
    walk = block_walk(adapter, first, parameters.pruning)
    groups = walk.hessians(0, getattr(torch, parameters.pruning.precision))
    solve_group(groups[0], levels, parameters.pruning)
    started = time.perf_counter()
    for group in groups:
        solve_group(group, levels, parameters.pruning)
    return time.perf_counter() - started + per_pass / len(adapter.blocks), per_pass
