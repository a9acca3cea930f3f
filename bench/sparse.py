"""Sparse kernels against torch, OpenVINO, ONNX Runtime, DeepSparse and our own dense kernel.

    python -m bench sparse                                       # all parts
    python -m bench sparse --parts matrix --shapes 11008x4096 --sparsities 0.3 0.5 0.7
    python -m bench sparse --parts generate --models 1.1b --packages FOLDER
    python -m bench sparse --device cuda                         # is python -m bench card.sparse
    pip install --target FOLDER openvino                         # a rival for this bench alone

One process runs all contenders in turns, with weights flushed from the caches before each call, and
prints medians and quartiles of processor time, and of wall time. On a busy machine
only ratios of processor time mean something. The bench names rivals that are not installed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import options_of, say_conditions
from efficientllava.export.speed import load_average, ratio_interval
from efficientllava.sparse.cpu.huge_pages import HugePages
from efficientllava.sparse.cpu.processor import chosen_path, force_path
from efficientllava.sparse.format import pack
from efficientllava.sparse.inference import for_inference
from efficientllava.sparse.linear import SparseLinear

Work = Callable[[], Any]
MODELS: dict[str, dict[str, Any]] = {
    "135m": {
        **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        **{"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
        "tie_word_embeddings": True,
    },
    "1.1b": {
        **{"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22},
        **{"num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000},
    },
}
"""Shapes of SmolLM2-135M and TinyLlama-1.1B; the weights are random."""
CACHE = 64 << 20
"""Bytes that are read before each call: more than the caches hold."""


@contextmanager
def on_path(name: str | None) -> Iterator[None]:
    """Let our kernels take a path."""
    force_path(name)
    try:
        yield
    finally:
        force_path(None)


def in_turns(
    contenders: dict[str, Work], repetitions: int, cold: bool = True
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Processor seconds and wall seconds of each run of each contender, alternating."""
    flush = torch.ones(CACHE // 8, dtype=torch.int64)
    used: dict[str, list[float]] = {name: [] for name in contenders}
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    for work in contenders.values():
        work(), work()
    for repetition in range(repetitions):
        names = list(contenders)
        for name in names if repetition % 2 else names[::-1]:
            if cold:
                flush.sum()
            started, before = time.perf_counter(), time.process_time()
            contenders[name]()
            used[name].append(time.process_time() - before)
            wall[name].append(time.perf_counter() - started)
    return used, wall


def table(title: str, seconds: Any, against: dict[str, list[list[str]]]) -> None:
    """Print the medians, and how many times faster a contender is than the best of others.

    Args:
        seconds: of `in_turns`.
        against: per contender groups of those it is compared with, the best of each by median.
    """
    used, wall = seconds
    print(f"\n{title}; load average {load_average()}\n")
    print("| | processor ms | quartiles | wall ms | times faster [99 % interval] than |")
    print("|---|---|---|---|---|")
    for name, times in used.items():
        low, middle, high = statistics.quantiles(times, n=4)
        ratios = []
        for rivals in against.get(name, []):
            best = min(rivals, key=lambda rival: statistics.median(used[rival]))
            ratio = statistics.median(used[best]) / middle
            ends = ratio_interval(used[best], times)
            span = f" [{ends['low']:.2f}, {ends['high']:.2f}]" if ends else ""
            ratios.append(f"{ratio:.2f}{span} {best}")
        milliseconds = " – ".join(f"{1e3 * each:.3f}" for each in (low, high))
        print(
            f"| {name} | {1e3 * middle:.3f} | {milliseconds} "
            f"| {1e3 * statistics.median(wall[name]):.3f} | {'; '.join(ratios)} |",
            flush=True,
        )


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
            weight = dense * (kept >= sparsity)
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
                    slow = partial(_on, path, sparse)
                    contenders[f"{name}, {path}"], against[f"{name}, {path}"] = slow, [["torch"]]
        title = f"{shape}, {str(dtype)[6:]}, {threads} threads, path {chosen_path().name}"
        table(title, in_turns(contenders, wanted.repetitions), against)


def _on(path: str, work: Work) -> None:
    with on_path(path):
        work()


def measure_threads(wanted: argparse.Namespace) -> None:
    """Wall time of one thread over that of two; the machine must be idle to show it."""
    for shape in wanted.shapes:
        rows, columns = map(int, shape.split("x"))
        weight = torch.randn(rows, columns) * (torch.rand(rows, columns) >= 0.5)
        x, layer = torch.randn(1, columns), torch.nn.Linear(columns, rows, bias=False)
        layer.weight.data = weight
        sparse = for_inference(SparseLinear.from_dense(layer.bfloat16()))
        x = x.bfloat16()

        def run(threads: int, x: torch.Tensor = x, sparse: Any = sparse) -> None:
            torch.set_num_threads(threads)
            sparse(x)

        work = {f"{threads} threads": partial(run, threads) for threads in (1, 2)}
        used, wall = in_turns(work, wanted.repetitions)
        ratio = statistics.median(wall["1 threads"]) / statistics.median(wall["2 threads"])
        fastest = min(wall["1 threads"]) / min(wall["2 threads"])
        print(f"\ntwo threads, {shape}: {ratio:.2f} times one by medians, {fastest:.2f} by fastest")
        table(f"{shape}, bfloat16, 50 %", (used, wall), {})
    torch.set_num_threads(wanted.threads)


def random_models(name: str) -> tuple[Any, Any]:
    """A bfloat16 Llama of a shape with half of its weights zero: dense, and packed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(**MODELS[name], max_position_embeddings=2048)
    dense, sparse = (LlamaForCausalLM(config).eval() for _ in range(2))
    torch.set_default_dtype(torch.float32)
    for path, module in dense.named_modules():
        if isinstance(module, torch.nn.Linear) and path != "lm_head":
            module.weight.mul_(torch.rand(module.weight.shape) >= 0.5)
    sparse.load_state_dict(dense.state_dict())
    for path, module in list(sparse.named_modules()):
        if isinstance(module, torch.nn.Linear) and path != "lm_head":
            sparse.set_submodule(path, SparseLinear.from_dense(module))
    return dense, for_inference(sparse)


def measure_generate(wanted: argparse.Namespace, name: str) -> None:
    """transformers' generate, batch 1: time to the first token of 128, and of each after it."""
    dense, sparse = random_models(name)
    ids = torch.randint(0, 1000, (1, 128))
    asked = {"do_sample": False, "pad_token_id": 0}

    def tokens(model: Any, count: int) -> torch.Tensor:
        found: torch.Tensor = model.generate(
            ids, min_new_tokens=count, max_new_tokens=count, **asked
        )
        return found

    same = tokens(dense, wanted.tokens) == tokens(sparse, wanted.tokens)
    logits = [model(ids).logits.float() for model in (dense, sparse)]
    off = float((logits[0] - logits[1]).norm() / logits[0].norm())
    print(f"\n{name}: {float(same.float().mean()):.3f} of the tokens are the same, ", end="")
    print(f"logits differ by {off:.4f} of their norm (sums in another order)")
    work = {"torch": partial(tokens, dense), "sparse": partial(tokens, sparse)}
    work["sparse, avx2"] = lambda count: _on("avx2", partial(tokens, sparse, count))
    against = {each: [["torch"]] for each in work if each != "torch"}
    first = in_turns({each: partial(run, 1) for each, run in work.items()}, wanted.runs, cold=False)
    table(f"{name}, time to the first token, {wanted.threads} threads", first, against)
    whole = in_turns(
        {each: partial(run, wanted.tokens + 1) for each, run in work.items()},
        wanted.runs,
        cold=False,
    )
    each_token = tuple(
        {
            each: [(long - statistics.median(start[each])) / wanted.tokens for long in times]
            for each, times in long.items()
        }
        for start, long in zip(first, whole, strict=True)
    )
    table(f"{name}, a token after it, {wanted.threads} threads", each_token, against)


def main() -> None:
    """Measure and print tables; with --device cuda those of `bench.card.sparse`."""
    if any(option.startswith("--device") for option in sys.argv):
        from bench.card.sparse import main as on_a_card

        on_a_card()
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["matrix", "threads", "generate"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    shapes = ["11008x4096", "4096x11008", "4096x4096"]
    parser.add_argument("--shapes", nargs="+", default=shapes, help="rows x columns")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--tokens", type=int, default=24, help="after the first one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=40, help="of a matrix")
    parser.add_argument("--runs", type=int, default=8, help="of generate")
    parser.add_argument("--packages", type=Path, help="a folder with more packages")
    parser.add_argument("--device", help="cuda: on a card, with the options of card.sparse")
    wanted = options_of(parser)
    if wanted.packages:
        sys.path.append(str(wanted.packages))
    torch.set_grad_enabled(False)
    say_conditions(wanted, path=chosen_path().name)
    if "matrix" in wanted.parts:
        for dtype in wanted.dtypes:
            measure_matrix(wanted, getattr(torch, dtype), wanted.threads)
    if "threads" in wanted.parts:
        measure_threads(wanted)
    if "generate" in wanted.parts:
        for name in wanted.models:
            measure_generate(wanted, name)
