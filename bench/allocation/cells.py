"""One cell of the comparison: allocate, prune sequentially, score on held-out text."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn import functional

from bench.allocation.evopress import TOKENS, EvoPress
from bench.card.conditions import commit
from efficientllava.allocation.context import Context
from efficientllava.allocation.scoring.evaluation import stitched_models
from efficientllava.allocation.sensitivity.knapsack import nearest
from efficientllava.calibration.sample_losses import DenseReference
from efficientllava.data.proxy import ProxyData, save_proxy
from efficientllava.data.text import held_out_segments, read_text, sample_segments
from efficientllava.database.solutions import open_database
from efficientllava.files import folder_digest, value_digest
from efficientllava.models.checkpoint import load_model, load_processor
from efficientllava.models.families import Adapter, adapter_for
from efficientllava.parameters import Parameters
from efficientllava.parsing import parse_parameters
from efficientllava.progress import Event
from efficientllava.pruning.methods import BY_COSTS, MaskingMethod
from efficientllava.pruning.sequential import achieved_sparsity, prune_model
from efficientllava.registry import METHODS

GRID = {"owl": "outlier_spread", "slope": "slope"}
"""The parameter that a number behind a method's name sets."""
PRUNED_AS = {"uniform": "sparsegpt", "evopress": "sparsegpt"}
"""How the rows that are no method of ours are pruned."""


def measure(wanted: argparse.Namespace) -> None:
    """Measure the cells that the results lack: all methods of a ratio and draw, draw after draw."""
    test = held_out(wanted)
    cells = [("dense", 0.0, 0)]
    cells += [(m, r, d) for d in wanted.draws for r in wanted.ratios for m in wanted.methods]
    settings = _settings(wanted)
    for method, ratio, draw in cells:
        cell = {"method": method, "ratio": ratio, "draw": draw, "settings": settings}
        if any(cell.items() <= row.items() for row in rows_of(wanted.results)):
            continue
        row = cell | {"commit": commit()} | _cell(wanted, method, ratio, draw, test)
        _append(wanted.results, row)
        print(f"{method} at {ratio:g}, draw {draw}: nll {row['nll']:.4f}", flush=True)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The finished cells; a line that a kill cut off is none."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _append(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            # a line that a kill cut off ends here
            file.write(b"" if file.read(1) == b"\n" else b"\n")
        file.write(json.dumps(row).encode() + b"\n")


def _settings(wanted: argparse.Namespace) -> dict[str, Any]:
    """What all cells of a run share, the same on every machine: only such cells are compared."""
    return {
        **_digests(wanted.model, wanted.text),
        "set": wanted.set,
        "segments": [wanted.segments, wanted.length, wanted.test_segments],
    }


@cache
def _digests(model: Path, text: str) -> dict[str, str]:
    parts = [read_text(text, "proxy"), read_text(text, "held_out")]
    return {
        "model": folder_digest(model, ("*.safetensors", "tokenizer.json"))[:12],
        "text": value_digest(parts)[:12],
    }


def held_out(wanted: argparse.Namespace) -> torch.Tensor:
    """[test segments, length] of the test part, from its beginning."""
    tokenizer = load_processor(wanted.model).tokenizer
    return held_out_segments(tokenizer, wanted.text, wanted.test_segments, wanted.length)


def _context(wanted: argparse.Namespace, method: str, ratio: float, draw: int) -> Context:
    """The context of a cell; all cells of a draw share the database of all ratios."""
    folder = _proxy_folder(wanted, draw)
    if not (folder / "manifest.json").exists():
        tokenizer = load_processor(wanted.model).tokenizer
        text = read_text(wanted.text)
        drawn = sample_segments(tokenizer, text, wanted.segments, wanted.length, draw)
        save_proxy(folder, ProxyData(drawn, None), {})
    name, _, value = method.partition(" ")
    values: dict[str, dict[str, Any]] = {
        # as narrow as the paper's random policies can hit; they are snapped to equal zeros
        "search": {"evolve_projector": False, "band": [0.0, 0.001], "fitness_data": "text"},
        "obs": {"calibration": "text"},
        "allocation": {GRID[name]: float(value)} if value else {},
        "machine": {"threads": wanted.threads, "workers": 1},
    }
    for given in wanted.set:
        path, _, number = given.partition("=")
        section, _, key = path.partition(".")
        values.setdefault(section, {})[key] = json.loads(number)
    parameters = parse_parameters({**values, "ratios": wanted.ratios}, where="--set")
    return Context(wanted.model, folder, ratio, parameters, wanted.work / "work", _told(method))


def _proxy_folder(wanted: argparse.Namespace, draw: int) -> Path:
    source = value_digest(_digests(wanted.model, wanted.text))[:12]
    return Path(wanted.work) / f"proxy-{source}-{wanted.segments}x{wanted.length}-{draw}"


def _told(label: str) -> Any:
    def show(event: Event) -> None:
        told = {k: round(v, 4) if isinstance(v, float) else v for k, v in event.values.items()}
        print(f"  {label}: {event.name} {event.done}/{event.total} {told or ''}", flush=True)

    return show


def _cell(
    wanted: argparse.Namespace, method: str, ratio: float, draw: int, test: torch.Tensor
) -> dict[str, Any]:
    context = _context(wanted, method, ratio, draw)
    name, row = method.partition(" ")[0], {}
    adapter = adapter_for(load_model(context.model))
    if method != "dense":
        chosen: MaskingMethod = METHODS[PRUNED_AS.get(name, name)]
        if name == "evopress" or chosen.allocation in BY_COSTS:
            levels = _all_levels(context.parameters)
            # one database serves all ratios of a draw: no cost of one method
            context.database_folders(levels, levels, chosen.by_importance)
        # a method pays for all of its steps, though another or a killed run has done some
        for steps in ("rows", "sensitivity", "search"):
            shutil.rmtree(context.work / steps, ignore_errors=True)
        with counted() as passed:
            began = time.process_time()
            importance = context.row_importance() if chosen.by_importance else None
            if name == "evopress":
                policy = _evopress(context, adapter)
            else:
                policy = _policy(chosen, context, adapter, row)
            row["seconds_allocation"] = time.process_time() - began
        head = cast("Any", adapter.model).get_output_embeddings().weight.numel()
        row["tokens_allocation"] = passed["products"] // (sum(adapter.sizes) + head)
        began = time.process_time()
        adapter = adapter_for(load_model(context.model))
        done = prune_model(
            adapter,
            context.proxy,
            chosen.criterion,
            policy,
            context.parameters.obs,
            context.progress,
            importance=importance,
        )
        row["seconds_pruning"] = time.process_time() - began
        row["sparsity"] = achieved_sparsity(done)
    reference = DenseReference(adapter, ProxyData(test, None), "text").dense
    return row | {
        "nll": reference.mean("nll"),
        "segments": (reference.nll / reference.positions).round(6).tolist(),
    }


def _all_levels(parameters: Parameters) -> list[float]:
    return sorted({level for ratio in parameters.ratios for level in parameters.wide_levels(ratio)})


def _policy(
    method: MaskingMethod, context: Context, adapter: Adapter, row: dict[str, Any]
) -> dict[str, float]:
    allocation = method.allocate(context)
    if allocation.gain is not None:
        row["gain"] = dict(allocation.gain)
        row["origins"] = {r["origin"]: r["loss"] for r in allocation.history}
    policy = dict(allocation.policy)
    if method.allocation == "search":  # to exactly the zeros of the others
        levels, ratio = context.parameters.levels(context.ratio), context.ratio
        snapped = nearest(list(policy.values()), levels, adapter.sizes, ratio, ratio)
        policy = {key: levels[index] for key, index in zip(policy, snapped, strict=True)}
    return policy


def _evopress(context: Context, adapter: Adapter) -> dict[str, float]:
    levels = context.parameters.wide_levels(context.ratio)
    database = open_database(context.database_folders(levels), levels)
    segments = context.proxy.segments
    references = [
        DenseReference(
            adapter, replace(context.proxy, segments=segments[index : index + 1]), "text"
        )
        for index in range(len(segments))
    ]
    (model,) = stitched_models(adapter, database, 1)

    def score(policy: tuple[int, ...], chosen: list[int]) -> float:
        model.stitch([levels[index] for index in policy])
        return sum(references[index](model.language_model).mean("kl") for index in chosen)

    groups: dict[int, list[int]] = {}
    for index, size in enumerate(adapter.sizes):
        groups.setdefault(size, []).append(index)
    search = EvoPress(score, list(groups.values()), len(levels), *segments.shape)
    ratio, sizes = context.ratio, adapter.sizes
    start = tuple(nearest([ratio] * len(sizes), levels, sizes, ratio, ratio))
    best = search.run(start, TOKENS, seed=0)
    names = [matrix.name for matrix in adapter.matrices]
    return {name: levels[index] for name, index in zip(names, best, strict=True)}


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Multiplications and additions of all linear layers and products with changes of weights.

    The gradient of an input takes as many again. Of OBS itself nothing is counted.
    """
    done, linear, lock = {"products": 0}, functional.linear, threading.Lock()

    def counting(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        products = weight.numel() * (x.numel() // max(x.shape[-1], 1))

        def add(gradient: torch.Tensor | None = None) -> None:
            with lock:
                done["products"] += products

        add()
        output = linear(x, weight, bias)
        if x.requires_grad and output.requires_grad:
            # a block that is computed again for its gradients has one backward pass all the same
            output.register_hook(add)
        return output

    functional.linear = counting
    try:
        yield done
    finally:
        functional.linear = linear
