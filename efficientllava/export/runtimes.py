"""ONNX graphs in DeepSparse and ONNX Runtime, one class each. Needs no torch.

A runtime of another package is a subclass of `Runtime` and an entry point in the group
`efficientllava.runtimes` (docs/architecture.md shows one).
"""

from __future__ import annotations

import importlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

from efficientllava.errors import UserError
from efficientllava.registry import RUNTIMES

if TYPE_CHECKING:
    # at run time it is imported when a graph runs, not when a runtime's name is checked
    import numpy as np

# DeepSparse calls home on import unless told not to
os.environ.setdefault("NM_DISABLE_ANALYTICS", "1")

Arrays = dict[str, "np.ndarray"]


class Runtime(ABC):
    """A runtime; an instance is one of its compiled graphs, of fixed shapes.

    The vision, prefill and decode graphs of an export are loaded and run alike.

    Attributes:
        title: what tables call it; two words at most, for headings of narrow columns.
        package: what is imported to use it.
        needs: what it can be used on, for the message where it cannot; empty if that is anything.
        isolated: whether it may end the whole process: then it is measured in one of its own.
        shapes: shape of every input of the graph, by name, in the graph's order.
        compile_seconds: how long it took to read and compile the graph; `open_graph` sets it.
        engine_share: share of the operations that the optimised engine runs; None where the
            runtime does not tell.
    """

    title: ClassVar[str]
    package: ClassVar[str]
    needs: ClassVar[str] = ""
    isolated: ClassVar[bool] = False

    shapes: dict[str, tuple[int, ...]]
    compile_seconds: float = 0.0
    engine_share: float | None = None

    @classmethod
    def imported(cls) -> ModuleType:
        """The runtime's package. Raises whatever the package raises where it cannot be used."""
        return importlib.import_module(cls.package)

    @abstractmethod
    def __init__(self, path: Path, threads: int) -> None:
        """Read and compile a graph; the file is there and the package can be imported."""

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name."""


class DeepSparse(Runtime):
    """A graph compiled by DeepSparse for a number of cores."""

    title = "DeepSparse"
    package = "deepsparse"
    needs = "DeepSparse needs Python 3.11 or older and an x86-64 processor with AVX2"
    isolated = True  # it crashes on some shapes

    def __init__(self, path: Path, threads: int) -> None:
        self._engine = self.imported().Engine(str(path), batch_size=1, num_cores=threads)
        self.engine_share = float(self._engine.fraction_of_supported_ops)
        names = self._engine.input_names
        self.shapes = {
            name: tuple(shape) for name, shape in zip(names, self._engine.input_shapes, strict=True)
        }
        self._outputs: list[str] = self._engine.output_names

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name."""
        import numpy as np

        ordered = [np.ascontiguousarray(inputs[name]) for name in self.shapes]
        return dict(zip(self._outputs, self._engine.run(ordered), strict=True))


class OnnxRuntime(Runtime):
    """A graph in ONNX Runtime on the CPU."""

    title = "ONNX Runtime"
    package = "onnxruntime"

    def __init__(self, path: Path, threads: int) -> None:
        onnxruntime = self.imported()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # idle threads of one session must not spin while another one is timed
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.shapes = {value.name: tuple(value.shape) for value in self._session.get_inputs()}
        self._outputs: list[str] = [value.name for value in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name."""
        chosen = {name: inputs[name] for name in self.shapes}
        return dict(zip(self._outputs, self._session.run(self._outputs, chosen), strict=True))


OURS: dict[str, type[Runtime]] = {"deepsparse": DeepSparse, "onnxruntime": OnnxRuntime}


def unavailable(runtime: str) -> str | None:
    """Why a runtime cannot be used here; None when it can.

    Raises:
        UserError: there is none of this name.
    """
    chosen: type[Runtime] = RUNTIMES[runtime]
    try:
        chosen.imported()
    except Exception as error:  # an engine may refuse the processor with any type of error
        return f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return None


def version(runtime: str) -> str:
    """The installed version of a runtime."""
    return str(RUNTIMES[runtime].imported().__version__)


def open_graph(runtime: str, path: Path, threads: int) -> Runtime:
    """Compile a graph.

    Raises:
        UserError: the runtime is unknown or cannot be used here, or the file is missing.
    """
    if runtime not in RUNTIMES:
        raise UserError(
            f"no runtime of this name (known: {', '.join(RUNTIMES)})", where=f"runtime {runtime}"
        )
    chosen: type[Runtime] = RUNTIMES[runtime]
    if (reason := unavailable(runtime)) is not None:
        remedy = f"choose another of {', '.join(RUNTIMES)}"
        raise UserError(
            f"the runtime cannot be used here ({reason})",
            where=f"runtime {runtime}",
            remedy=f"{remedy}; {chosen.needs}" if chosen.needs else remedy,
        )
    if not path.is_file():
        raise UserError(
            "no such file", where=str(path), remedy="give a folder written by the export stage"
        )
    started = time.perf_counter()
    graph = chosen(path, threads)
    graph.compile_seconds = time.perf_counter() - started
    return graph
