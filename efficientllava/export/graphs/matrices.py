"""Weights of linear layers in ONNX graphs, written matrix by matrix.

While a model is traced, each linear layer stands as a MatMul with a placeholder, so that the
exporter never sees a weight. Afterwards each placeholder becomes one constant [in, out], zeros
included, which is what runtimes for sparse weights look for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

ALIGNMENT = 4096
"""Bytes: runtimes map the data file, and maps begin at pages."""
PLACEHOLDER = "RandomNormal"
ROWS_AT_ONCE = 1024
"""Rows that are transposed at a time: the only copy of weights that is made."""


class _Product(torch.autograd.Function):
    """x @ W.T in the graph, zeros when it is run: a trace asks for shapes alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: int, columns: int, rows: int) -> Tensor:
        """Zeros [..., rows]."""
        return x.new_zeros(*x.shape[:-1], rows)

    @staticmethod
    def symbolic(graph: Any, x: Any, index: int, columns: int, rows: int) -> Any:
        """MatMul with a node of the matrix's shape, which holds its index."""
        # the exporter keeps no value of a random matrix; a constant one it would compute
        matrix = graph.op(PLACEHOLDER, shape_i=[columns, rows], seed_f=float(index), dtype_i=1)
        return graph.op("MatMul", x, matrix)


@contextmanager
def placeholders(module: nn.Module) -> Iterator[list[nn.Linear]]:
    """Trace the linear layers of a module without their weights.

    Yields:
        The layers; a placeholder holds the place of its layer in this list.
    """
    layers = [part for part in module.modules() if isinstance(part, nn.Linear)]

    def forward_of(index: int, layer: nn.Linear) -> Any:
        def forward(x: Tensor) -> Tensor:
            product: Tensor = _Product.apply(x, index, layer.in_features, layer.out_features)
            return product if layer.bias is None else product + layer.bias

        return forward

    for index, layer in enumerate(layers):
        layer.forward = forward_of(index, layer)  # type: ignore[method-assign]
    try:
        yield layers
    finally:
        for layer in layers:
            del layer.forward


def used_layers(model: onnx.ModelProto, layers: Sequence[nn.Linear]) -> dict[str, nn.Linear]:
    """The layers by the names of their placeholders, whose nodes are taken out of the graph."""
    nodes = {node.output[0]: node for node in model.graph.node if node.op_type == PLACEHOLDER}
    found: dict[str, int] = {}
    for node in model.graph.node:
        name = node.input[1] if node.op_type == "MatMul" else ""
        if name in nodes:
            [seed] = [each.f for each in nodes[name].attribute if each.name == "seed"]
            found[name] = int(seed)
    kept = [node for node in model.graph.node if node.output[0] not in found]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    # by their place in the model: prefill and decode find them at the same offsets
    return {name: layers[found[name]] for name in sorted(found, key=lambda name: found[name])}


def matrix_bytes(layers: dict[str, nn.Linear]) -> int:
    """Bytes of the weights in float32."""
    return sum(4 * layer.weight.numel() for layer in layers.values())


def put_inside(model: onnx.ModelProto, layers: dict[str, nn.Linear]) -> None:
    """Add the weights to the graph itself."""
    for name, layer in layers.items():
        weight = layer.weight.detach().T.contiguous().float().numpy()
        model.graph.initializer.append(numpy_helper.from_array(weight, name))


def put_outside(model: onnx.ModelProto, layers: dict[str, nn.Linear], data: Path) -> None:
    """Add references to a data file beside the graph that `write_data` writes."""
    for (name, layer), offset in zip(layers.items(), _offsets(layers), strict=True):
        tensor = onnx.TensorProto(
            name=name,
            data_type=onnx.TensorProto.FLOAT,
            dims=[layer.in_features, layer.out_features],
            data_location=onnx.TensorProto.EXTERNAL,
        )
        length = 4 * layer.weight.numel()
        for key, value in (("location", data.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        model.graph.initializer.append(tensor)


def write_data(layers: dict[str, nn.Linear], data: Path) -> None:
    """Write the weights, transposed, in float32; a few rows are in memory at a time."""
    with open(data, "wb") as file:
        for layer, offset in zip(layers.values(), _offsets(layers), strict=True):
            file.seek(offset)
            for columns in layer.weight.detach().split(ROWS_AT_ONCE, dim=1):
                file.write(columns.T.contiguous().float().numpy().data)


def _offsets(layers: dict[str, nn.Linear]) -> list[int]:
    offsets, end = [], 0
    for layer in layers.values():
        offsets.append(end)
        end += -(-4 * layer.weight.numel() // ALIGNMENT) * ALIGNMENT
    return offsets


def stored_matrix(tensor: onnx.TensorProto, folder: Path) -> np.ndarray:
    """A constant of a graph; one in a data file is mapped, not read."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    place = {entry.key: entry.value for entry in tensor.external_data}
    return np.memmap(
        folder / place["location"],
        dtype=np.float32,
        mode="r",
        offset=int(place["offset"]),
        shape=tuple(tensor.dims),
    )
