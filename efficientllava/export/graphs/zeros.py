"""The zeros of a checkpoint in its graphs, counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from transformers import PreTrainedModel

from efficientllava.errors import UserError
from efficientllava.export.graphs.heads import with_padded_heads
from efficientllava.export.graphs.matrices import stored_matrix
from efficientllava.models.families import adapter_for


def graph_zeros(path: Path) -> dict[str, int]:
    """Zeros in the constant weight of each linear layer of a graph, by the module's name."""
    graph = onnx.load_model(str(path), load_external_data=False).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    zeros = {}
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants:
            module = node.name.strip("/").rsplit("/", 1)[0].replace("/", ".")
            weight = stored_matrix(constants[node.input[1]], path.parent)
            zeros[module] = int(weight.size - np.count_nonzero(weight))
    return zeros


def sparsity(model: PreTrainedModel, path: Path) -> float:
    """The share of zeros among the prunable weights as the graph holds them, padding apart.

    Raises:
        UserError: a matrix is no constant of the graph, or has other zeros than the checkpoint.
    """
    zeros, adapter = graph_zeros(path), adapter_for(model)
    padded = adapter_for(with_padded_heads(model))
    total = 0
    for matrix, wider in zip(adapter.matrices, padded.matrices, strict=True):
        found = zeros.get(matrix.name.removeprefix("model."))
        padding = wider.size - matrix.size
        expected = wider.size - int(torch.count_nonzero(matrix.weight))
        if found != expected:
            raise UserError(
                f"{matrix.name} has {expected - padding} zeros in the checkpoint"
                f"{f' and {padding} of padding' if padding else ''}, and "
                f"{'no constant weight' if found is None else found} in the graph",
                where=f"export, {path.name}",
                remedy="report the model: its graph would not run sparse",
            )
        total += found - padding
    return total / sum(adapter.sizes)
