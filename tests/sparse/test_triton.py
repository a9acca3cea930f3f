"""The Triton products with packed matrices, in Triton's interpreter (on a machine with CUDA: as
they are), against `unpack` and a product in float64; and that they compile for three cards."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from efficientllava.errors import UserError
from efficientllava.sparse import operators
from efficientllava.sparse.format import PackedMatrix, pack, quantize, unpack

pytest.importorskip("triton")
from efficientllava.sparse.triton import product

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.int8)


def matrix(
    rows: int, columns: int, dtype: torch.dtype, sparsity: float = 0.5, seed: int = 0
) -> PackedMatrix:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight[torch.rand(rows, columns, generator=generator) < sparsity] = 0
    if dtype == torch.int8:
        codes, scales, _ = quantize(weight)
        return pack(codes, scales)
    return pack(weight.to(dtype))


def multiply(packed: PackedMatrix, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    tensors = (packed.masks, packed.values, packed.offsets, packed.scales)
    masks, values, offsets, scales = (t if t is None else t.to(DEVICE) for t in tensors)
    return product.sparse_linear(
        x.to(DEVICE),
        masks,
        values,
        offsets,
        scales,
        bias if bias is None else bias.to(DEVICE),
        packed.rows,
        packed.columns,
    ).cpu()


def require_right(packed: PackedMatrix, x: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Within the rounding of the output and of a sum in float32."""
    got = multiply(packed, x, bias)
    weight = unpack(packed).double()
    expected = x.double() @ weight.T + (0 if bias is None else bias.double())
    largest = x.double().abs() @ weight.abs().T + 1
    assert got.dtype == x.dtype and got.shape == expected.shape
    allowed = torch.finfo(x.dtype).eps * expected.abs() + 1e-5 * largest
    assert ((got.double() - expected).abs() <= allowed).all()


def inputs(tokens: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    chosen = torch.bfloat16 if dtype == torch.int8 else dtype
    return torch.randn(tokens, columns, generator=generator).to(chosen)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "columns", "tokens"),
    [
        (16, 128, 1),  # one full tile
        (37, 301, 3),  # rows, columns and tokens past the ends; columns split in parts
        (5, 1, 16),  # one column, a group that is not full
        (1, 1030, 2),  # several tiles at the same time, one row
        (40, 70, 17),  # prefill, two groups a program
        (150, 200, 130),  # prefill, four or eight groups a program, one or two blocks of tokens
    ],
)
def test_same_as_the_dense_product(
    dtype: torch.dtype, rows: int, columns: int, tokens: int
) -> None:
    packed, x = matrix(rows, columns, dtype), inputs(tokens, columns, dtype)
    bias = torch.linspace(-1, 1, rows).to(x.dtype) if rows != 40 else None
    require_right(packed, x, bias)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 50),
    columns=st.integers(1, 300),
    tokens=st.integers(1, 20),
    sparsity=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 999),
)
def test_any_shape_and_sparsity(
    rows: int, columns: int, tokens: int, sparsity: float, dtype: torch.dtype, seed: int
) -> None:
    packed = matrix(rows, columns, dtype, sparsity, seed)
    require_right(packed, inputs(tokens, columns, dtype), None)


def test_columns_in_parts_have_the_same_bits_every_time() -> None:
    """2 x 8 tiles at a time, 24 tiles: one part has a turn more than the other."""
    packed, x = matrix(16, 3072, torch.bfloat16), inputs(4, 3072, torch.bfloat16)
    assert product.parts_of(16, 24) == (8, 4)
    require_right(packed, x, torch.ones(16, dtype=torch.bfloat16))
    assert torch.equal(multiply(packed, x, None), multiply(packed, x, None))


def test_tiles_of_prefill() -> None:
    """Those that are compiled below, and no others."""
    tiles = {
        width: {product.prefill_tile(tokens, width) for tokens in (17, 33, 65, 129, 9999)}
        for width in (1, 2, 4)
    }
    assert tiles[2] == {(2, 32, 4), (2, 64, 4), (4, 128, 8), (4, 256, 8)}
    assert tiles[1] == {(2, 32, 4), (2, 64, 4), (8, 128, 8)}
    assert tiles[4] == {(2, 32, 4), (2, 64, 4), (4, 64, 8)}


def test_more_groups_take_fewer_parts() -> None:
    assert product.parts_of(11008, 32) == (8, 1)
    assert product.parts_of(4096, 86) == (8, 1)
    assert product.parts_of(2048, 16) == (8, 2)
    assert product.parts_of(100, 1) == (1, 1)


@pytest.mark.parametrize("kept", [-0.0, float("inf"), float("nan"), 2.0**-126])
def test_values_pass_as_they_are(kept: float) -> None:
    weight = torch.zeros(3, 5, dtype=torch.bfloat16)
    weight[1, 3] = kept
    x = torch.ones(1, 5, dtype=torch.bfloat16)
    got = multiply(pack(weight), x, None)
    torch.testing.assert_close(got, x @ weight.T, equal_nan=True, rtol=0, atol=0)


def test_inputs_of_any_stride_and_shape() -> None:
    packed, x = matrix(20, 33, torch.float16), inputs(6, 66, torch.float16)
    plain = multiply(packed, x[:, :33].contiguous(), None)
    for strided in (x[:, :33], x[:, :33].T.contiguous().T):
        assert not strided.is_contiguous()
        assert torch.equal(multiply(packed, strided, None), plain)
    every_other = x[:, ::2]
    assert torch.equal(multiply(packed, every_other, None), multiply(packed, every_other + 0, None))
    assert torch.equal(multiply(packed, x[:, :33].reshape(2, 3, 33), None).flatten(0, 1), plain)
    assert torch.equal(multiply(packed, x[0, :33], None), plain[0])
    assert multiply(packed, x[:0, :33], None).shape == (0, 20)


def test_first_places_are_found_once_and_anew_for_other_masks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[int] = []
    find = product._find

    def counted(masks: torch.Tensor, width: int) -> torch.Tensor:
        found.append(masks.data_ptr())
        return find(masks, width)

    monkeypatch.setattr(product, "_find", counted)
    sparse, dense = (matrix(16, 300, torch.float16, share) for share in (0.7, 0.1))
    x = inputs(2, 300, torch.float16).to(DEVICE)
    masks, values, offsets = (
        t.to(DEVICE).clone() for t in (sparse.masks, dense.values, dense.offsets)
    )

    def run(masks: torch.Tensor) -> torch.Tensor:
        return product.sparse_linear(x, masks.detach(), values, offsets, None, None, 16, 300)

    run(masks)
    run(masks)
    assert len(found) == 1
    masks.copy_(dense.masks)  # in place, as load_state_dict does
    torch.testing.assert_close(run(masks).cpu(), x.cpu() @ unpack(dense).T, rtol=2e-3, atol=2e-2)
    assert len(found) == 2
    # a matrix that is gone, and others that may lie where it lay
    kept = len(product._FIRSTS._kept)
    del masks
    gc.collect()
    for seed in range(4):
        other = matrix(16, 300, torch.float16, 0.5, seed)
        require_right(other, x.cpu(), None)
    assert len(product._FIRSTS._kept) <= kept + 1


def test_what_it_cannot_do_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, x = matrix(16, 40, torch.bfloat16), inputs(1, 40, torch.float16)
    with pytest.raises(UserError, match="packed as bfloat16 were given inputs of float16"):
        multiply(packed, x, None)
    with pytest.raises(UserError, match="float32.*\n.*bfloat16 or float16"):
        multiply(matrix(16, 40, torch.int8), x.float(), None)
    tensors = (packed.masks, packed.values, packed.offsets, None, None)
    with pytest.raises(UserError, match=r"\[1, 39\], the matrix wants floating numbers"):
        operators._cuda_linear(x.bfloat16()[:, 1:], *tensors, 16, 40)
    with pytest.raises(UserError, match="not those of a packed matrix"):
        operators._cuda_linear(x.bfloat16(), *tensors, 17, 40)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'efficientllava\[gpu\]'"):
        operators._cuda_linear(x.bfloat16(), *tensors, 16, 40)


def test_the_operator_of_a_card() -> None:
    """What a card's dispatch calls, and shapes on a card without one: torch.compile's view."""
    packed, x = matrix(21, 40, torch.bfloat16), inputs(3, 40, torch.bfloat16)
    tensors, bias = (packed.masks, packed.values, packed.offsets), torch.ones(21).bfloat16()
    found = operators._cuda_linear(x, *tensors, None, bias, 21, 40)
    assert torch.equal(found, multiply(packed, x, bias))
    with FakeTensorMode():
        like = (torch.empty(2, 3, 40, dtype=x.dtype), *tensors)
        fake = [torch.empty(t.shape, dtype=t.dtype, device="cuda") for t in like]
        result = torch.ops.efficientllava.sparse_linear(*fake, None, None, 21, 40)
    assert result.device.type == "cuda" and result.shape == (2, 3, 21)
    assert result.dtype == torch.bfloat16


COMPILE = """
import sys
import triton.language as tl
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from efficientllava.sparse.triton import product_kernels as kernels

DOTS = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}
WIDTHS = {"bf16": 2, "fp16": 2, "fp32": 1, "i8": 4}
card, shared = int(sys.argv[1]), {80: 163, 89: 99, 90: 227}[int(sys.argv[1])] * 1024
parts = {"TILES": 8, "TOKENS": 16, "PARTS": 2}
one = {"TILES": 8, "TOKENS": 1, "PARTS": 1}
cases = [
    ("decode", "bf16", "bf16", one, 8), ("decode", "fp16", "fp16", parts, 8),
    ("prefill", "bf16", "bf16", {"GROUPS": 4, "TOKENS": 256}, 8),
    ("find_tiles", "bf16", "bf16", {}, 1),
    ("add_parts", "bf16", "bf16", {"PARTS": 4, "STEP": 1024}, 4),
]
if sys.argv[2] == "all":
    cases += [
        ("decode", "fp32", "fp32", one, 8), ("decode", "i8", "bf16", one, 8),
        ("decode", "i8", "fp16", parts, 8), ("decode", "fp32", "fp32", parts, 8),
        ("prefill", "bf16", "bf16", {"GROUPS": 2, "TOKENS": 32}, 4),
        ("prefill", "fp16", "fp16", {"GROUPS": 2, "TOKENS": 64}, 4),
        ("prefill", "fp16", "fp16", {"GROUPS": 4, "TOKENS": 128}, 8),
        ("prefill", "fp32", "fp32", {"GROUPS": 2, "TOKENS": 64}, 4),
        ("prefill", "fp32", "fp32", {"GROUPS": 8, "TOKENS": 128}, 8),
        ("prefill", "i8", "bf16", {"GROUPS": 4, "TOKENS": 64}, 8),
        ("prefill", "i8", "bf16", {"GROUPS": 2, "TOKENS": 64}, 4),
        ("find_tiles", "i8", "bf16", {}, 1), ("find_tiles", "fp32", "fp32", {}, 1),
    ]
for name, values, inputs, given, warps in cases:
    for aligned in (True, False):
        kernel = getattr(kernels, name)
        width = WIDTHS[values]
        constants = {
            **given, "WIDTH": width, "DOT": DOTS[inputs], "SCALED": values == "i8", "BIAS": True,
        }
        constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
        types = {
            "x": inputs, "bias": inputs, "values": values, "scales": "fp32", "parts": "fp32",
            "masks": {1: "i16", 2: "i32", 4: "i64"}[width], "offsets": "i64", "firsts": "i32",
            "out": "fp32" if given is parts else inputs,
        }
        signature = {
            key: "constexpr" if key in constants else "*" + types[key] if key in types else "i32"
            for key in kernel.arg_names
        }
        place = kernel.arg_names.index
        divisible = [["tt.divisibility", 16]]
        source = ASTSource(
            kernel, signature, {(place(key),): value for key, value in constants.items()},
            {(place(key),): divisible for key in signature
             if key not in constants and key != "tokens" and (aligned or key in types)},
        )
        options = {"num_warps": warps, "num_stages": 1}
        built = compile(source, target=GPUTarget("cuda", card, 32), options=options)
        assert len(built.asm["cubin"]) > 1000, name
        assert built.metadata.shared <= shared, (name, built.metadata.shared)
        if name != "add_parts":  # LLVM has found the instruction that counts bits
            assert "popc." in built.asm["ptx"], name
        if sys.argv[2] != "all" or name in ("find_tiles", "add_parts"):
            break
"""


@pytest.mark.parametrize(
    ("card", "which"),
    [
        (90, "some"),
        *(pytest.param(card, "all", marks=pytest.mark.slow) for card in (80, 89, 90)),
    ],
)
def test_compiles_without_a_card(card: int, which: str, tmp_path: Path) -> None:
    """Down to machine code, by the ptxas that comes with Triton: H100, A100, RTX 4090."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    path = tmp_path / "compile_all.py"
    path.write_text(COMPILE, encoding="utf-8")
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(path), str(card), which],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
