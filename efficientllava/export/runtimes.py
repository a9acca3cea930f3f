"""ONNX graphs in DeepSparse and ONNX Runtime behind one small interface. Needs no torch."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from efficientllava.errors import UserError

# DeepSparse calls home on import unless told not to
os.environ.setdefault("NM_DISABLE_ANALYTICS", "1")

Arrays = dict[str, np.ndarray]


class Graph(Protocol):
    """One compiled graph of fixed shapes.

    Attributes:
        shapes: shape of every input, by name, in the graph's order.
        compile_seconds: how long it took to read and compile it.
        engine_share: share of the operations that the optimised engine runs; None where the
            runtime does not tell.
    """

    shapes: dict[str, tuple[int, ...]]
    compile_seconds: float
    engine_share: float | None

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name."""
        ...


class DeepSparseGraph:
    """A graph compiled by DeepSparse for a number of cores."""

    def __init__(self, path: Path, threads: int) -> None:
        deepsparse = _import("deepsparse")
        started = time.perf_counter()
        self._engine = deepsparse.Engine(str(path), batch_size=1, num_cores=threads)
        self.compile_seconds = time.perf_counter() - started
        self.engine_share: float | None = float(self._engine.fraction_of_supported_ops)
        names = self._engine.input_names
        self.shapes = {
            name: tuple(shape) for name, shape in zip(names, self._engine.input_shapes, strict=True)
        }
        self._outputs: list[str] = self._engine.output_names

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name."""
        ordered = [np.ascontiguousarray(inputs[name]) for name in self.shapes]
        return dict(zip(self._outputs, self._engine.run(ordered), strict=True))


class OnnxRuntimeGraph:
    """A graph in ONNX Runtime on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        onnxruntime = _import("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # idle threads of one session must not spin while another one is timed
        options.add_session_config_entry("session.force_spinning_stop", "1")
        started = time.perf_counter()
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.compile_seconds = time.perf_counter() - started
        self.engine_share: float | None = None
        self.shapes = {value.name: tuple(value.shape) for value in self._session.get_inputs()}
        self._outputs: list[str] = [value.name for value in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name."""
        chosen = {name: inputs[name] for name in self.shapes}
        return dict(zip(self._outputs, self._session.run(self._outputs, chosen), strict=True))


RUNTIMES: dict[str, type[DeepSparseGraph] | type[OnnxRuntimeGraph]] = {
    "deepsparse": DeepSparseGraph,
    "onnxruntime": OnnxRuntimeGraph,
}


def unavailable(runtime: str) -> str | None:
    """Why a runtime cannot be used here; None when it can."""
    try:
        _import(runtime)
    except Exception as error:  # an engine may refuse the processor with any type of error
        return f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return None


def version(runtime: str) -> str:
    """The installed version of a runtime."""
    return str(_import(runtime).__version__)


def open_graph(runtime: str, path: Path, threads: int) -> Graph:
    """Compile a graph.

    Raises:
        UserError: the runtime is unknown or cannot be used here, or the file is missing.
    """
    if runtime not in RUNTIMES:
        raise UserError(
            f"no runtime of this name (known: {', '.join(RUNTIMES)})", where=f"runtime {runtime}"
        )
    if (reason := unavailable(runtime)) is not None:
        raise UserError(
            f"the runtime cannot be used here ({reason})",
            where=f"runtime {runtime}",
            remedy=f"choose another of {', '.join(RUNTIMES)}; DeepSparse needs Python 3.11 or "
            "older and an x86-64 processor with AVX2",
        )
    if not path.is_file():
        raise UserError(
            "no such file", where=str(path), remedy="give a folder written by the export stage"
        )
    graph: Graph = RUNTIMES[runtime](path, threads)
    return graph


def _import(name: str) -> ModuleType:
    return importlib.import_module(name)
