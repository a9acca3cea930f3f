"""Exported graphs measured in one runtime: parity, answers and speed. Needs no torch."""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from efficientllava.errors import UserError
from efficientllava.export.decoding import (
    GRAPHS,
    ExportedModel,
    Reference,
    decode_inputs,
    prefill_inputs,
)
from efficientllava.export.parity import Differences, parity, require_parity
from efficientllava.export.runtimes import (
    Arrays,
    Runtime,
    open_graph,
    remedy,
    unavailable,
    version,
)
from efficientllava.export.speed import time_in_turns
from efficientllava.parameters import ExportParameters
from efficientllava.registry import RUNTIMES

DENSE, STEP = "dense", ".step"


def not_available(runtime: str, reason: str) -> dict[str, Any]:
    """The part of export.json of a runtime that nothing was measured in."""
    return {"available": False, "reason": reason, "remedy": remedy(runtime)}


def measure_graphs(
    runtime: str, folder: Path, references: list[Reference], parameters: ExportParameters
) -> dict[str, Any]:
    """Parity, answers and speed in one runtime, in a process of its own where it may crash.

    Args:
        folder: the exported graphs; the dense ones lie in its folder `dense`.

    Returns:
        {"available": False, "reason", "remedy"} where the runtime cannot be used or does not take
        the graphs; else the times, with "parity", "tolerance" and "tokens" (one list of ids per
        reference).

    Raises:
        UserError: results in float32 differ from PyTorch's.
    """
    package = RUNTIMES[runtime].package
    if not RUNTIMES[runtime].isolated:
        return _measure(runtime, folder, references, parameters)
    if importlib.util.find_spec(package) is None:
        return not_available(runtime, f"{runtime} is not installed")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, runtime, folder, references, parameters).result()
        except BrokenProcessPool:
            return not_available(runtime, f"{runtime} crashed during {_step(folder)}")


def _measure(
    runtime: str, folder: Path, references: list[Reference], parameters: ExportParameters
) -> dict[str, Any]:
    if (reason := unavailable(runtime)) is not None:
        return not_available(runtime, reason)
    try:
        return _measured(runtime, folder, references, parameters)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # runtimes refuse graphs by errors of many types
        told = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return not_available(runtime, f"{runtime} failed during {_step(folder)} ({told})")


def _measured(
    runtime: str, folder: Path, references: list[Reference], parameters: ExportParameters
) -> dict[str, Any]:
    def begin(step: str) -> None:
        # the caller reports this if the runtime ends the process
        (folder / STEP).write_text(step, encoding="utf-8")

    begin("the comparison with PyTorch")
    model = ExportedModel(folder, runtime, parameters.threads)
    precision = model.graphs["decode"].precision
    errors = parity(model, references, precision)
    tolerance = Differences(precision).tolerance
    if precision == "float32":
        require_parity(runtime, errors, tolerance)
    measured: dict[str, Any] = {
        "available": True,
        "version": version(runtime),
        "precision": precision,
        "parity": errors,
        "tolerance": tolerance,
        # graphs are float32: 16-bit arithmetic is the runtime's choice, shown and not refused
        "within_tolerance": all(error <= tolerance for error in errors.values()),
        "tokens": [
            model.greedy(reference.inputs, parameters.new_tokens)
            for reference in references
            if reference.inputs is not None
        ],
    }
    for name in GRAPHS:
        begin(f"timing {name}, dense and pruned")
        dense = open_graph(runtime, folder / DENSE / f"{name}.onnx", parameters.threads)
        graphs = {"dense": dense, "pruned": model.graphs[name]}
        time_in_turns(
            name, timed_calls(name, graphs), parameters.repetitions, parameters.threads, measured
        )
        for variant, graph in graphs.items():
            _add_compilation(name, graph, measured[variant])
    return measured


def _add_compilation(name: str, graph: Runtime, row: dict[str, Any]) -> None:
    row[f"{name}_compile_seconds"] = round(graph.compile_seconds, 3)
    if graph.engine_share is not None:
        row[f"{name}_engine_share"] = graph.engine_share
        if name != "vision":
            # of the language model: the smaller of its two graphs
            row["engine_share"] = min(row.get("engine_share", 1.0), graph.engine_share)


def _step(folder: Path) -> str:
    step = folder / STEP
    return step.read_text(encoding="utf-8") if step.is_file() else "its start"


def timed_calls(name: str, graphs: Mapping[str, Runtime]) -> dict[str, Callable[[], Arrays]]:
    """One run of each graph with inputs of its own: a smaller model's cache has other shapes."""
    return {
        variant: partial(graph.run, timing_inputs(name, graph)) for variant, graph in graphs.items()
    }


def timing_inputs(name: str, graph: Runtime) -> Arrays:
    """Full-length inputs of random numbers: a whole prompt, or one token after a full cache."""
    generator = np.random.default_rng(0)

    def normal(shape: tuple[int, ...]) -> np.ndarray:
        return generator.standard_normal(shape, dtype=np.float32)

    if name == "vision":
        return {"pixel_values": normal(graph.shapes["pixel_values"])}
    _, tokens, width = graph.shapes["inputs_embeds"]
    if name == "prefill":
        return prefill_inputs(normal((tokens, width)), tokens)
    context = graph.shapes["attention_mask"][-1]
    cache = {
        name: normal(shape)
        for name, shape in graph.shapes.items()
        if name.startswith("past_key_values.")
    }
    return {**decode_inputs(normal((width,)), context - 1, context), **cache}
