"""The Triton kernels, in Triton's interpreter (on a machine with CUDA: as they are), against the
eager path; and that they compile for the cards they are meant for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientllava.errors import UserError
from efficientllava.kernels import hessian, masks, obs
from efficientllava.kernels.plan import Plan
from efficientllava.kernels.precision import full_float32
from efficientllava.parameters import ObsParameters

pytest.importorskip("triton")
from efficientllava.kernels.triton.obs_triton import Blocks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def problem(rows: int, columns: int, dead: int = 0, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mixing = torch.eye(columns) + 0.05 * torch.randn(columns, columns, generator=generator)
    inputs = torch.randn(2 * columns, columns, generator=generator) @ mixing
    inputs[:, columns // 3 : columns // 3 + dead] = 0
    matrix = hessian.empty(columns)
    hessian.accumulate(matrix, 0, inputs)
    return weight.to(DEVICE), matrix.to(DEVICE)


@pytest.mark.parametrize(
    ("rows", "columns", "dead", "block", "group", "levels"),
    [
        (33, 40, 0, 128, None, [0.0, 0.4, 1.0]),  # one block that is not full
        (20, 150, 3, 128, None, [0.5]),  # a ragged last block, a panel of 22 columns
        (131, 33, 2, 20, None, [0.3]),  # rows and columns past the tiles' ends
        (3, 9, 0, 1, None, [0.5]),  # a column at a time
        (5, 70, 0, 70, None, [0.6]),  # a block that is no power of two
        (9, 16, 1, 4, 2, [0.5]),
        (35, 48, 2, 32, 4, [0.25, 0.5]),
        (9, 80, 0, 64, 8, [0.5]),
        (4, 64, 0, 64, 32, [0.25]),
    ],
)
def test_same_as_the_eager_path(
    rows: int, columns: int, dead: int, block: int, group: int | None, levels: list[float]
) -> None:
    """Two matrices, equal scores, dead inputs. Masks are the same; weights up to 1e-5, for BLAS may
    add in another order: inside the first block they are the same bits."""
    weight, matrix = problem(rows, columns, dead)
    weight[:, columns // 2] = 0.0
    weight[1] = 1.0
    factor = hessian.inverse_factor(matrix)
    both = [weight, 2 * weight[: rows // 2]]
    eager = obs.prune_levels(both, factor, levels, block, group, "eager")
    triton = obs.prune_levels(both, factor, levels, block, group, "triton")
    for expected, got in zip(eager, triton, strict=True):
        for one, other in zip(expected, got, strict=True):
            assert torch.equal(one == 0, other == 0)
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
            assert torch.equal(one[:, :block], other[:, :block])


def test_half_precision_weights_keep_their_type() -> None:
    weight, matrix = problem(12, 24)
    factor = hessian.inverse_factor(matrix)
    half = weight.bfloat16()
    eager = obs.prune(half, factor, 0.5, 16, kernel="eager")
    triton = obs.prune(half, factor, 0.5, 16, kernel="triton")
    assert triton.dtype == torch.bfloat16
    assert torch.equal(eager, triton)


@settings(max_examples=12, deadline=None)
@given(
    heights=st.lists(st.integers(1, 140), min_size=1, max_size=3),
    columns=st.integers(1, 20),
    shares=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    values=st.integers(1, 40),
    dead=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_selection_is_that_of_masks_smallest(
    heights: list[int], columns: int, shares: list[float], values: int, dead: int, seed: int
) -> None:
    """Few distinct values, so that most scores are equal; zeros; dead columns; none and all."""
    generator = torch.Generator().manual_seed(seed)
    weights = [
        torch.randint(0, values, (height, columns), generator=generator).float().to(DEVICE)
        for height in heights
    ]
    sizes = [height * columns for height in heights]
    quotas = [round(share * size) for share, size in zip(shares, sizes, strict=False)]
    no_input = torch.zeros(columns, dtype=torch.bool, device=DEVICE)
    no_input[:dead] = True
    upper = torch.eye(columns, device=DEVICE) * 0.7
    rows = [0]
    for height in heights:
        rows.append(rows[-1] + height)
    counts = [0] * len(heights)
    plan = Plan(rows, [0, columns], [[quota] for quota in quotas], counts, None)
    blocks = Blocks(weights, 1, upper, no_input, plan)
    blocks.select(0)
    for index, (weight, quota) in enumerate(zip(weights, quotas, strict=True)):
        score = (weight.masked_fill(no_input, 0.0) / 0.7).square().masked_fill(no_input, -1.0)
        keys = score.view(torch.int32) + 1
        keys[:, :dead] = 0
        limit = blocks.limits[index]
        allowed = blocks.allowed[rows[index] : rows[index + 1]]
        equal = keys == limit
        chosen = (keys < limit) | (equal & (equal.cumsum(1) <= allowed[:, None]))
        assert torch.equal(chosen, masks.smallest(score, quota))
    assert not blocks.histograms.any()  # ready for the next block


def test_equal_scores_across_panels_and_dead_inputs_that_are_not_zero() -> None:
    """All scores but a few are equal: a row is cut in a later panel. A dead input gets an update
    here, which no Hessian's factor does to it, and goes all the same."""
    upper, dead = torch.eye(70, device=DEVICE), torch.zeros(70, dtype=torch.bool, device=DEVICE)
    upper[0, 50], dead[50] = 0.25, True
    factor = hessian.InverseFactor(upper, dead, 0.01)
    weight = torch.ones(3, 70, device=DEVICE)
    levels = [0.0, 0.22, 0.5, 0.9]
    eager = obs.prune_levels([weight], factor, levels, 70, None, "eager")[0]
    triton = obs.prune_levels([weight], factor, levels, 70, None, "triton")[0]
    for one, other in zip(eager, triton, strict=True):
        assert torch.equal(one, other)
        assert not other[:, 50].any()


def test_larger_than_a_tile_many_blocks() -> None:
    """Errors go through several products; the masks stay the same at this size."""
    weight, matrix = problem(140, 96, seed=3)
    factor = hessian.inverse_factor(matrix)
    eager = obs.prune(weight, factor, 0.5, 32, kernel="eager")
    triton = obs.prune(weight, factor, 0.5, 32, kernel="triton")
    assert torch.equal(eager == 0, triton == 0)
    torch.testing.assert_close(triton, eager, rtol=1e-5, atol=1e-5)


def test_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, matrix = problem(4, 24)
    factor = hessian.inverse_factor(matrix, dtype=torch.float64)
    with pytest.raises(UserError, match=r"CUDA in float32, not on \w+ in float64"):
        obs.prune(weight, factor, 0.5, kernel="triton")
    factor = hessian.inverse_factor(matrix)
    with pytest.raises(UserError, match="no groups of 3 columns"):
        obs.prune(weight, factor, 1 / 3, 24, 3, kernel="triton")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install efficientllava\[gpu\]"):
        obs.prune(weight, factor, 0.5, kernel="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    cpu = hessian.inverse_factor(matrix.cpu())
    with pytest.raises(UserError, match="CUDA in float32, not on cpu in float32") as error:
        obs.prune(weight.cpu(), cpu, 0.5, kernel="triton")
    assert "obs.kernel: auto" in str(error.value)
    with pytest.raises(ValueError, match="kernel triton works in float32 only"):
        ObsParameters(kernel="triton", precision="float64")


def test_matrix_products_are_full_float32_inside_only() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        with full_float32():
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
        with pytest.raises(ZeroDivisionError), full_float32():
            raise ZeroDivisionError
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


def test_library_needs_no_triton() -> None:
    """Importing the engine and pruning on a CPU loads no triton."""
    program = (
        "import sys, torch\n"
        "from efficientllava.kernels import hessian, obs\n"
        "obs.prune(torch.ones(2, 4), hessian.inverse_factor(torch.eye(4)), 0.5)\n"
        "assert 'triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from efficientllava.kernels.triton import triton_kernels as kernels

TILE = {"ROWS": 32, "WIDTH": 128}
integers = {"columns", "width", "stride"}
for name, constants, warps in (
    ("prune_tile", {"GROUP": 0, "ROWS": 32}, 1),
    ("prune_tile", {"GROUP": 4, "ROWS": 32}, 1),
    ("count_digits", {"FIRST": True, "SHIFT": 24, "BINS": 256, **TILE}, 4),
    ("count_digits", {"FIRST": False, "SHIFT": 8, "BINS": 256, **TILE}, 4),
    ("narrow", {"FIRST": False, "BINS": 256}, 4),
    ("count_equal", TILE, 4),
    ("share_out", {"STEP": 1024}, 4),
):
    kernel = getattr(kernels, name)
    floats = {"stack", "errors", "upper"}
    types = {
        argument: "constexpr" if argument in constants
        else "i32" if argument in integers
        else "*fp32" if argument in floats
        else "*u8" if argument == "dead" else "*i32"
        for argument in kernel.arg_names
    }
    places = kernel.arg_names.index
    source = ASTSource(
        kernel, types, {(places(key),): value for key, value in constants.items()},
        {(places(key),): [["tt.divisibility", 16]] for key in types if key not in constants},
    )
    options = {"num_warps": warps, "enable_fp_fusion": False}
    built = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    assert len(built.asm["cubin"]) > 1000, name
"""


@pytest.mark.parametrize(
    "card", [90, pytest.param(80, marks=pytest.mark.slow), pytest.param(89, marks=pytest.mark.slow)]
)
def test_compiles_without_a_card(card: int, tmp_path: Path) -> None:
    """Down to machine code, by the ptxas that comes with Triton: H100, A100, RTX 4090."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    path = tmp_path / "compile_all.py"
    path.write_text(COMPILE, encoding="utf-8")
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(path), str(card)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
