"""An estimate of pruning a model: memory and disk by formula, time from a short trial."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from efficientllava.allocation.context import Context
from efficientllava.allocation.gradients.samples import split
from efficientllava.calibration.block_walk import block_walk
from efficientllava.calibration.opened import OpenModel, block_by_block, whole
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
from efficientllava.registry import METHODS
from efficientllava.terminal import duration

MEASURED = 8
"""Passes over the proxy data that every method takes: losses of the dense and the pruned model."""


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds; the seconds are a guess from one decoder block and one batch.

    Attributes:
        steps: what would be done, in order.
        matrices, weights: that can be pruned.
        memory: at the same time, beside the interpreter and its libraries (about 0.5 GiB) and
            what the operating system caches of the checkpoint's files.
        disk: that the work folder grows by, the pruned checkpoint included.
    """

    steps: tuple[str, ...]
    matrices: int
    weights: int
    blocks: int
    memory: int
    disk: int
    seconds: float

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for a table."""
        return [
            *((f"step {number}", step) for number, step in enumerate(self.steps, 1)),
            (
                "prunable",
                f"{self.weights:,} weights, {self.matrices} matrices, {self.blocks} decoder blocks",
            ),
            ("memory, by formula", size(self.memory)),
            ("disk in the work folder, by formula", size(self.disk)),
            ("time, from a short trial", f"about {duration(self.seconds)}"),
        ]


def size(number: float) -> str:
    """Bytes in the unit that a person would use."""
    for limit, unit, name in (
        (2**20, 2**10, "KiB"),
        (GIB, 2**20, "MiB"),
        (float("inf"), GIB, "GiB"),
    ):
        if number < limit:
            return f"{number / unit:.3g} {name}"
    raise AssertionError


def estimate(method: str, context: Context, work: Path | None = None) -> Estimate:
    """The memory, disk and time of a call of `prune`.

    Args:
        context: `context.work` takes temporary files.
        work: the work folder of the call, whose databases would be used again; only read.

    Raises:
        UserError: the model does not fit on the device.
    """
    parameters, chosen = context.parameters, METHODS[method]
    searches = "database" in chosen.needs
    there: Mapping[float, Path] = {}
    if searches and work is not None:
        there = replace(context, work=work).built_levels("importance" in chosen.needs)
    levels = chosen.levels(parameters, context.ratio) if searches else []
    missing = [level for level in levels if level not in there]
    times = 3 if "gradients" in chosen.needs else 1
    with _opened(context, times if chosen.structured else None, len(missing) or 1) as opened:
        adapter = opened.adapter
        shape, needs = shape_of(adapter), needs_of(adapter, 0)
        candidates = _candidates(chosen, context)
        blocks = times * needs.blocks if chosen.structured else needs.largest_block
        disk = needs.fixed + needs.blocks
        compact = parameters.obs.stores_compact(len(missing))
        disk += database_bytes(sum(adapter.sizes), missing, shape.item, compact)
        solve, walk, run = _trial(opened, context, len(missing) or 1)
        runs = MEASURED + candidates / parameters.machine.workers
        seconds = run * (runs + _passes(chosen, len(adapter.blocks), context.ratio))
        if "calibration" in chosen.needs and not chosen.structured:
            seconds += (walk + solve) * len(adapter.blocks) * (2 if missing else 1)
        return Estimate(
            steps=_steps(chosen, context, missing),
            matrices=len(adapter.matrices),
            weights=sum(adapter.sizes),
            blocks=len(adapter.blocks),
            memory=needs.fixed + blocks + _working(opened, context, len(missing) or 1),
            disk=disk,
            seconds=seconds,
        )


def _candidates(method: Any, context: Context) -> float:
    """What the choice of ratios takes, in passes over the proxy data that a policy is scored with.

    By gradients: six policies and two for each correction on the tokens of the choice; one backward
    pass at the dense model and two for each correction, which with the products of five changes
    take as long as nine forward passes; the importance of rows takes three.
    """
    parameters = context.parameters
    (tokens, others), drawn = _text_tokens(context), max(Tokens.of(context.proxy).text, 1)
    rows = 3 * tokens / drawn if "importance" in method.needs else 0.0
    if "database" not in method.needs:
        return rows
    if "gradients" not in method.needs:
        return parameters.search.candidates * parameters.search.rounds
    corrections = parameters.sensitivity.corrections
    scored = (6 + 2 * corrections) * others + 9 * (1 + 2 * corrections) * tokens
    return rows + scored / drawn


def _text_tokens(context: Context) -> tuple[int, int]:
    """Of the text: how many tokens give gradients, and how many compare policies."""
    parameters = context.parameters
    samples = split(context.proxy, parameters.sensitivity, parameters.search.fitness_data)
    return samples.gradients.segments.numel(), samples.choice.segments.numel()


def _opened(context: Context, times: int | None, levels: int) -> AbstractContextManager[OpenModel]:
    machine = context.parameters.machine
    if times is not None:
        return nullcontext(whole(context.model, machine, times))
    block_size = context.parameters.obs.block_size
    return block_by_block(
        context.model, context.work, context.proxy, machine, levels=levels, block_size=block_size
    )


def _steps(method: Any, context: Context, missing: Sequence[float]) -> tuple[str, ...]:
    search, steps = context.parameters.search, []
    if "importance" in method.needs:
        steps.append(f"importance of rows: gradients of {_text_tokens(context)[0]} tokens")
    if "database" in method.needs:
        levels = method.levels(context.parameters, context.ratio)
        there = len(levels) - len(missing)
        reused = f" ({there} more are in the work folder)" if there else ""
        if missing:
            steps.append(f"database: every matrix at {len(missing)} levels{reused}")
        else:
            steps.append(f"database: all {there} levels are in the work folder")
        limit = "" if search.max_seconds is None else f", at most about {search.max_seconds:g} s"
        if "gradients" in method.needs:
            tokens, others = _text_tokens(context)
            steps.append(
                f"sensitivity: gradients of {tokens} tokens, policies compared on {others} "
                f"others{limit}"
            )
        else:
            steps.append(f"search: {search.rounds} rounds of {search.candidates} candidates{limit}")
    what = "heads, channels or blocks are removed" if method.structured else "block by block"
    return (*steps, f"final pruning: {what}; saved, loaded again and compared")


def _working(opened: OpenModel, context: Context, levels: int) -> int:
    """Bytes beside the weights: of the database, or of the final pruning, whichever takes more.

    The final pruning is calibrated at one level and holds two proxy losses at the same time.
    """
    shape, tokens = shape_of(opened.adapter), Tokens.of(context.proxy)
    block_size, device = context.parameters.obs.block_size, opened.adapter.device.type
    database = calibration_bytes(shape, tokens, levels, block_size)
    final = calibration_bytes(shape, tokens, 1, block_size)
    return max(database, final + 2 * search_bytes(shape, tokens, device=device))


def _passes(method: Any, blocks: int, ratio: float) -> int:
    """Passes over the proxy data that the choice of what goes takes."""
    if getattr(method, "removal", "") == "blocks_by_loss":
        return round(blocks * blocks * ratio)  # every block is left out once for each that goes
    return 3 if method.structured else 0


@torch.no_grad()
def _trial(opened: OpenModel, context: Context, levels: int) -> tuple[float, float, float]:
    """Seconds of solving one decoder block, of walking it, and of a run over all proxy data."""
    adapter, proxy, obs = opened.adapter, context.proxy, context.parameters.obs
    first = ProxyData(proxy.segments[:1], None)
    batch = text_loss_batches(adapter, first.segments)[0]
    hidden_states(adapter.language_model, batch.inputs)  # files are read, kernels compiled
    started = time.perf_counter()
    hidden_states(adapter.language_model, batch.inputs)
    tokens = Tokens.of(proxy)
    share = first.segments.numel() / (tokens.text + tokens.pairs)
    passed = (time.perf_counter() - started) / share
    walk, dtype = block_walk(adapter, first, obs), getattr(torch, obs.precision)
    walk.hessians(0, dtype)  # what is imported or read at the first call is no part of the walk
    started = time.perf_counter()
    groups = walk.hessians(0, dtype)
    walked = (time.perf_counter() - started) / share
    ratios = [context.ratio] * levels
    solve_group(groups[0], ratios, obs)
    started = time.perf_counter()
    for group in groups:
        solve_group(group, ratios, obs)
    return time.perf_counter() - started, walked, passed
