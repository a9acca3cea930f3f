"""One matrix and one token: sparse kernels against other runtimes; one thread against two."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.sparse.turns import Work, in_turns, on, table
from efficientllava.sparse.cpu.huge_pages import HugePages
from efficientllava.sparse.cpu.processor import chosen_path
from efficientllava.sparse.format import pack
from efficientllava.sparse.inference import for_inference
from efficientllava.sparse.linear import SparseLinear


def openvino_linear(weight: torch.Tensor, x: torch.Tensor, threads: int) -> Work:
    """A product compiled by OpenVINO, in the weight's precision."""
    import openvino
    from openvino import opset13 as operations

    entry = operations.parameter(list(x.shape), openvino.Type.f32)
    product = operations.matmul(entry, operations.constant(weight.float().numpy()), False, True)
    short = weight.dtype == torch.bfloat16
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": openvino.Type.bf16 if short else openvino.Type.f32,
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.Model([product], [entry])
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x.float().numpy()))
    return lambda: request.infer()


def onnx_linear(name: str, weight: torch.Tensor, x: torch.Tensor, threads: int) -> Work:
    """A product in ONNX Runtime or DeepSparse, which have no bfloat16 on a CPU: in float32."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    from efficientllava.export.runtimes import open_graph

    turned = numpy_helper.from_array(np.ascontiguousarray(weight.float().numpy().T), "w")
    tensors = [
        helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, shape)
        for tensor, shape in (("x", list(x.shape)), ("y", [len(x), len(weight)]))
    ]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", tensors[:1], tensors[1:], [turned])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "product.onnx")
        opened = open_graph(name, Path(folder) / "product.onnx", threads)
    inputs = {"x": x.float().numpy()}
    return lambda: opened.run(inputs)


def rivals_of(weight: torch.Tensor, x: torch.Tensor, threads: int) -> dict[str, Work]:
    """Dense products of other runtimes that are installed; the missing ones are printed."""
    found: dict[str, Work] = {"torch": partial(torch.nn.functional.linear, x, weight)}
    float32 = "" if weight.dtype == torch.float32 else " (float32)"
    makers: dict[str, Callable[..., Work]] = {
        "OpenVINO": openvino_linear,
        f"ONNX Runtime{float32}": partial(onnx_linear, "onnxruntime"),
    }
    if weight.dtype == torch.float32:
        makers["DeepSparse"] = partial(onnx_linear, "deepsparse")
    for name, make in makers.items():
        try:
            found[name] = make(weight, x, threads)
        except Exception as error:  # a rival may refuse a machine with any type of error
            print(f"missing: {name}: {type(error).__name__}: {str(error).splitlines()[0]}")
    return found


def measure_matrix(wanted: argparse.Namespace, dtype: torch.dtype, threads: int) -> None:
    """One matrix and one token: sparse at every sparsity against all that is dense."""
    for shape in wanted.shapes:
        rows, columns = map(int, shape.split("x"))
        generator, memory = torch.Generator().manual_seed(0), HugePages()
        dense = torch.randn(rows, columns, generator=generator).to(dtype)
        dense = memory.place(dense)  # both sides alike
        kept = torch.rand(rows, columns, generator=generator)
        x = torch.randn(1, columns, generator=generator).to(dtype)
        contenders = rivals_of(dense, x, threads)
        rivals = list(contenders)
        product = torch.ops.efficientllava
        contenders["own dense"] = partial(product.dense_linear, x, dense, None)
        against = {"own dense": [rivals]}
        for sparsity in wanted.sparsities:
            # a product would give -0.0, which packing keeps
            weight = dense.masked_fill(kept < sparsity, 0.0)
            packed = pack(weight)
            tensors = map(memory.place, (packed.masks, packed.values, packed.offsets))
            sparse = partial(product.sparse_linear, x, *tensors, None, None, rows, columns)
            name = f"sparse {sparsity:g}"
            contenders[name], against[name] = sparse, [rivals, ["own dense"]]
            if sparsity == 0.5:
                if dtype == torch.float32 and "DeepSparse" in rivals:
                    pruned = onnx_linear("deepsparse", weight, x, threads)
                    contenders["DeepSparse 0.5"] = pruned
                for path in ("avx2", "portable"):
                    slow = partial(on, path, sparse)
                    contenders[f"{name}, {path}"], against[f"{name}, {path}"] = slow, [["torch"]]
        title = f"{shape}, {str(dtype)[6:]}, {threads} threads, path {chosen_path().name}"
        table(title, in_turns(contenders, wanted.repetitions), against)


def measure_threads(wanted: argparse.Namespace) -> None:
    """Wall time of one thread over that of two; the machine must be idle to show it.

    From memory, and from the caches that all cores share where the matrix fits: there two threads
    are not bound by what memory gives both of them together.
    """
    for shape, cold in ((shape, cold) for shape in wanted.shapes for cold in (True, False)):
        rows, columns = map(int, shape.split("x"))
        x, layer = torch.randn(1, columns), torch.nn.Linear(columns, rows, bias=False)
        layer.weight.data.masked_fill_(torch.rand(rows, columns) < 0.5, 0.0)
        sparse = for_inference(SparseLinear.from_dense(layer.bfloat16()))
        x = x.bfloat16()

        def run(threads: int, x: torch.Tensor = x, sparse: Any = sparse) -> None:
            torch.set_num_threads(threads)
            sparse(x)

        work = {f"{threads} threads": partial(run, threads) for threads in (1, 2)}
        used, wall = in_turns(work, wanted.repetitions, cold)
        ratio = statistics.median(wall["1 threads"]) / statistics.median(wall["2 threads"])
        fastest = min(wall["1 threads"]) / min(wall["2 threads"])
        where = f"{shape}, bfloat16, 50 %, {'from memory' if cold else 'warm'}"
        print(f"\ntwo threads, {where}: {ratio:.2f} times one by medians, {fastest:.2f} by fastest")
        table(where, (used, wall), {})
    torch.set_num_threads(wanted.threads)
