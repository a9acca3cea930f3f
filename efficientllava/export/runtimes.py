"""The runtimes that pruned models are measured in, one class each. Needs no torch.

A runtime of graphs of another package is a subclass of `Runtime` and an entry point in the group
`efficientllava.runtimes` (docs/architecture.md shows one).
"""

from __future__ import annotations

import importlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

from efficientllava.errors import UserError, library_reads
from efficientllava.reading import require_regular
from efficientllava.registry import RUNTIMES

if TYPE_CHECKING:
    # at run time it is imported when a graph runs, not when a runtime's name is checked
    import numpy as np

# DeepSparse calls home on import unless told not to
os.environ.setdefault("NM_DISABLE_ANALYTICS", "1")

Arrays = dict[str, "np.ndarray"]


class Backend(ABC):
    """What a pruned model is run by and measured in: a name of `export.runtimes`.

    Attributes:
        title: what tables call it; two words at most, for headings of narrow columns.
        package: what is imported to use it.
        extra: the extra of this package that installs it; empty where there is none.
        needs: what it can be used on, for the message where it cannot; empty if that is anything.
        isolated: whether it may end the whole process: then it is measured in one of its own.
    """

    title: ClassVar[str]
    package: ClassVar[str]
    extra: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    isolated: ClassVar[bool] = False

    @classmethod
    def imported(cls) -> ModuleType:
        """The runtime's package. Raises whatever the package raises where it cannot be used."""
        return importlib.import_module(cls.package)


class Runtime(Backend):
    """A runtime of ONNX graphs; an instance is one of its compiled graphs, of fixed shapes.

    The vision, prefill and decode graphs of an export are loaded and run alike.

    Attributes:
        shapes: shape of every input of the graph, by name, in the graph's order.
        precision: in which numbers the graph is computed.
        compile_seconds: how long it took to read and compile the graph; `open_graph` sets it.
        engine_share: share of the operations that the optimised engine runs; None where the
            runtime does not tell.
    """

    shapes: dict[str, tuple[int, ...]]
    precision: str = "float32"
    compile_seconds: float = 0.0
    engine_share: float | None = None

    @abstractmethod
    def __init__(self, path: Path, threads: int) -> None:
        """Read and compile a graph; the file is there and the package can be imported."""

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name."""


class Sparse(Backend):
    """Packed checkpoints in transformers, by this package's own kernels (docs/sparse_format.md).

    It takes models of all families, also where there are no graphs (`export/packed.py`).
    """

    title = "Sparse"
    package = "efficientllava"


class DeepSparse(Runtime):
    """A graph compiled by DeepSparse for a number of cores."""

    title = "DeepSparse"
    package = extra = "deepsparse"
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
    extra = "export"

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


class OpenVino(Runtime):
    """A graph in OpenVINO on the CPU, in bfloat16 where the processor multiplies it."""

    title = "OpenVINO"
    package = extra = "openvino"

    def __init__(self, path: Path, threads: int) -> None:
        settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": threads}
        core = self.imported().Core()
        self._model = core.compile_model(str(path), "CPU", {**settings, "NUM_STREAMS": 1})
        # OpenVINO computes in float32 where bfloat16 would be slower
        kind = self._model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.precision = {"bf16": "bfloat16", "f16": "float16"}.get(kind, "float32")
        self._request = self._model.create_infer_request()
        self.shapes = {_graph_name(each.names): tuple(each.shape) for each in self._model.inputs}
        self._outputs = [_graph_name(each.names) for each in self._model.outputs]

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name."""
        results = self._request.infer({name: inputs[name] for name in self.shapes})
        return dict(zip(self._outputs, results.to_tuple(), strict=True))


def _graph_name(names: Iterable[str]) -> str:
    """Of a tensor's names that of an input or output; those of nodes begin with a slash.

    OpenVINO joins the names of tensors that are the same after it has left out nodes.
    """
    return min(names, key=lambda name: (name.startswith("/"), name))


OURS: dict[str, type[Backend]] = {
    "sparse": Sparse,
    "deepsparse": DeepSparse,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}


def takes_graphs(runtime: str) -> bool:
    """Whether a runtime runs ONNX graphs; otherwise it runs packed checkpoints.

    Raises:
        UserError: there is none of this name.
    """
    return issubclass(RUNTIMES[runtime], Runtime)


def unavailable(runtime: str) -> str | None:
    """Why a runtime cannot be used here; None when it can.

    Raises:
        UserError: there is none of this name.
    """
    chosen: type[Backend] = RUNTIMES[runtime]
    try:
        chosen.imported()
    except ModuleNotFoundError as error:
        if error.name == chosen.package:
            return f"{runtime} is not installed"
        return f"ModuleNotFoundError: {error}"
    except Exception as error:  # an engine may refuse the processor with any type of error
        return f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return None


def remedy(runtime: str) -> str:
    """How to make a runtime usable that is not."""
    chosen: type[Backend] = RUNTIMES[runtime]
    told = f"take {runtime} out of export.runtimes"
    if chosen.extra:
        told = f"pip install 'efficientllava[{chosen.extra}]', or {told}"
    return f"{told}; {chosen.needs}" if chosen.needs else told


def version(runtime: str) -> str:
    """The installed version of a runtime."""
    return str(RUNTIMES[runtime].imported().__version__)


def open_graph(runtime: str, path: Path, threads: int) -> Runtime:
    """Compile a graph.

    Raises:
        UserError: the runtime is unknown, runs no graphs or cannot be used here, or the file is
            missing or no graph.
    """
    graphs = [name for name in RUNTIMES if takes_graphs(name)]
    if runtime not in graphs:
        raise UserError(
            f"no runtime of ONNX graphs has this name (known: {', '.join(graphs)})",
            where=f"runtime {runtime}",
        )
    chosen: type[Runtime] = RUNTIMES[runtime]
    if (reason := unavailable(runtime)) is not None:
        raise UserError(
            f"the runtime cannot be used here ({reason})",
            where=f"runtime {runtime}",
            remedy=remedy(runtime),
        )
    if not path.exists():
        raise UserError(
            "no such file", where=str(path), remedy="give a folder written by the export stage"
        )
    require_regular(path)
    started = time.perf_counter()
    with library_reads(f"{runtime} cannot read the graph", str(path), "run the export stage again"):
        graph = chosen(path, threads)
    graph.compile_seconds = time.perf_counter() - started
    return graph
