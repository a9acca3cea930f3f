"""Products with packed matrices against dense ones, in CUDA graphs, on one card.

    python -m bench card.sparse                      # 7B's matrices in bfloat16
    python -m bench card.sparse --device cpu --shapes 128x256 --copies 1 --repetitions 3

Each graph holds one product with each of several equal matrices, more than the second-level cache
holds, so that weights come from the card's memory as in a model. Dense is torch's `linear` with the
same weights: cuBLAS. Decode is one to sixteen tokens; prefill is many.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from bench import options_of, say_conditions
from bench.card.conditions import conditions
from bench.card.timing import in_turns, ratio

SHAPES = ("4096x4096", "11008x4096", "4096x11008")
HEADER = (
    "| rows x columns | sparsity | tokens | dense us | sparse us | dense / sparse (quartiles) "
    "| sparse GB/s | bytes / dense |\n|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Measure every shape, sparsity and number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="ROWSxCOLUMNS")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16], help="of decode")
    parser.add_argument("--prefill", type=int, nargs="*", default=[128, 640, 2048])
    parser.add_argument("--copies", type=int, help="matrices of a graph; by the cache if left out")
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--threads", type=int, default=8)
    arguments = options_of(parser)
    say_conditions(arguments, **conditions(arguments.device))
    print(HEADER, flush=True)
    for shape in arguments.shapes:
        rows, columns = map(int, shape.split("x"))
        for sparsity in arguments.sparsities:
            measure(arguments, rows, columns, sparsity)


def measure(arguments: argparse.Namespace, rows: int, columns: int, sparsity: float) -> None:
    """One matrix at one sparsity: a line for each number of tokens."""
    import torch

    from efficientllava.sparse import operators
    from efficientllava.sparse.format import pack

    assert operators is not None  # its import registers the operators
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    weight[torch.rand(rows, columns, generator=generator) < sparsity] = 0
    weight = weight.to(dtype)
    packed = pack(weight)
    copies = arguments.copies or copies_of(packed.nbytes, device)
    dense = [weight.to(device, copy=True) for _ in range(copies)]
    sparse = [
        tuple(t.to(device, copy=True) for t in (packed.masks, packed.values, packed.offsets))
        for _ in range(copies)
    ]
    multiply, linear = torch.ops.efficientllava.sparse_linear, torch.nn.functional.linear
    for tokens in (*arguments.tokens, *arguments.prefill):
        x = torch.randn(tokens, columns, generator=generator).to(device, dtype)
        require_same(
            linear(x, dense[0]), multiply(x, *sparse[0], None, None, rows, columns), tokens
        )

        def by_dense(x: torch.Tensor = x) -> None:
            for each in dense:
                linear(x, each)

        def by_sparse(x: torch.Tensor = x) -> None:
            for each in sparse:
                multiply(x, *each, None, None, rows, columns)

        times = in_turns(
            {"dense": by_dense, "sparse": by_sparse}, arguments.device, arguments.repetitions
        )
        middle, low, high = ratio(times["dense"], times["sparse"])
        one, other = (median(times[name]) / copies for name in ("dense", "sparse"))
        moved = packed.nbytes + (columns + rows) * tokens * dtype.itemsize
        print(
            f"| {rows} x {columns} | {sparsity:g} | {tokens} | {one * 1e6:.1f} | {other * 1e6:.1f} "
            f"| {middle:.2f} ({low:.2f}-{high:.2f}) | {moved / other / 1e9:.0f} "
            f"| {packed.nbytes / weight.nbytes:.3f} |",
            flush=True,
        )


def copies_of(size: int, device: Any) -> int:
    """So many matrices of `size` bytes that four times the second-level cache is read."""
    import torch

    if device.type == "cpu":
        return 1
    return max(2, -(-4 * torch.cuda.get_device_properties(device).L2_cache_size // size))


def require_same(dense: Any, sparse: Any, tokens: int) -> None:
    """Stop where the two products differ by more than rounding."""
    import torch

    torch.testing.assert_close(
        sparse.float(),
        dense.float(),
        rtol=2**-6,
        atol=2**-6 * float(dense.float().abs().max()),
        msg=lambda text: f"{tokens} tokens: {text}",
    )
