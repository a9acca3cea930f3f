"""The experts of a mixture: one decoder layer, one token."""

from __future__ import annotations

import argparse
import itertools
from functools import partial
from typing import Any

import torch

from bench.sparse.turns import Work, in_turns, on, table
from efficientllava.sparse.cpu.huge_pages import HugePages
from efficientllava.sparse.experts.layer import SparseExperts, dense_experts
from efficientllava.sparse.format import pack
from efficientllava.sparse.inference import for_inference
from efficientllava.sparse.linear import SparseLinear

EXPERTS = {
    **{"hidden_size": 2048, "moe_intermediate_size": 768},
    **{"num_experts": 128, "num_experts_per_tok": 8},
}
"""Shape of a decoder layer of Qwen3-30B-A3B."""


def random_experts(shape: dict[str, int]) -> tuple[Any, Any, Any]:
    """The experts of a decoder layer in bfloat16, half of their weights zero.

    Returns:
        transformers' module, the same weights in our dense kernel, and packed.
    """
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    memory, generator = HugePages(), torch.Generator().manual_seed(0)
    with torch.device("meta"):
        dense: Any = Qwen3MoeExperts(Qwen3MoeConfig(**shape)).requires_grad_(False)
    layers: list[dict[str, torch.nn.Module]] = [{} for _ in range(shape["num_experts"])]
    for name in ("gate_up_proj", "down_proj"):
        weight = memory.place(torch.empty(dense.get_parameter(name).shape, dtype=torch.bfloat16))
        setattr(dense, name, torch.nn.Parameter(weight, requires_grad=False))
        for expert, matrix in enumerate(weight):
            rows, columns = matrix.shape
            matrix.copy_(torch.randn(rows, columns, generator=generator) * columns**-0.5)
            matrix[torch.rand(rows, columns, generator=generator) < 0.5] = 0
            layers[expert][name] = SparseLinear(pack(matrix))
    own = for_inference(dense_experts(dense), huge_pages=False)  # they lie in some
    return dense, own, for_inference(SparseExperts(dense, layers, {}))


def measure_experts(wanted: argparse.Namespace) -> None:
    """The experts of one layer and one token, whose experts are others in every call."""
    shape = EXPERTS
    dense, own, sparse = random_experts(shape)
    held = [
        sum(each.nbytes for each in (*module.parameters(), *module.buffers()))
        for module in (dense, sparse)
    ]
    print(f"\nbytes: {held[0]:,} dense, {held[1]:,} packed ({held[1] / held[0]:.4f})")
    count, top = shape["num_experts"], shape["num_experts_per_tok"]
    x = torch.randn(1, shape["hidden_size"]).bfloat16()
    weights = torch.full((1, top), 1 / top).bfloat16()
    choices = [torch.randperm(count)[None, :top] for _ in range(wanted.repetitions + 2)]

    def run(module: Any, implementation: str | None = None) -> Work:
        turns = itertools.cycle(choices)

        def call() -> torch.Tensor:
            dense.config._experts_implementation = implementation
            output: torch.Tensor = module(x, next(turns), weights)
            return output

        return call

    work = {f"torch, {each}": run(dense, each) for each in ("eager", "grouped_mm", "batched_mm")}
    rivals = list(work)
    work |= {"own dense": run(own), "sparse": run(sparse)}
    work["sparse, avx2"] = partial(on, "avx2", work["sparse"])
    expected, output = (each().float() for each in (run(dense, "grouped_mm"), run(sparse)))
    off = float((expected - output).norm() / expected.norm())
    print(f"outputs differ by {off:.4f} of their norm (sums in another order)")
    title = f"{count} experts, {top} of a token, {wanted.threads} threads"
    against = {each: [rivals] for each in work if each not in rivals}
    against["sparse"] = [rivals, ["own dense"]]
    table(title, in_turns(work, wanted.repetitions), against)
