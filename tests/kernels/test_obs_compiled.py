"""The compiled column loop against the eager one and against SparseGPT as published."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.obs_accuracy import fasterprune
from efficientllava.allocation.search.algorithm import (
    Search,
    SearchGoal,
    SearchInputs,
    SearchResult,
)
from efficientllava.data.proxy import ProxyData
from efficientllava.database.build import build_database
from efficientllava.database.solutions import open_database
from efficientllava.errors import UserError
from efficientllava.files import file_digest
from efficientllava.kernels import hessian, masks, obs
from efficientllava.kernels.cpu import obs_compiled
from efficientllava.kernels.cpu.arguments import Scored, TileRows
from efficientllava.kernels.cpu.radix_select import ALL_BITS, FIRST, first_digits
from efficientllava.kernels.cpu.sections import bundles_of
from efficientllava.kernels.cpu.vector_kernel import PANEL
from efficientllava.models.families import Adapter, adapter_for
from efficientllava.parameters import MachineParameters, ObsParameters, SearchParameters
from tests.conftest import random_llava, random_proxy


def problem(rows: int, columns: int, dead: int = 0, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mixing = torch.eye(columns) + 0.05 * torch.randn(columns, columns, generator=generator)
    inputs = torch.randn(2 * columns, columns, generator=generator) @ mixing
    inputs[:, :dead] = 0
    matrix = hessian.empty(columns)
    hessian.accumulate(matrix, 0, inputs)
    return weight, matrix


@pytest.mark.parametrize(
    ("rows", "columns", "dead", "block", "group", "levels"),
    [
        (300, 300, 0, 128, None, [0.0, 0.3, 0.5, 1.0]),
        (700, 192, 3, 128, None, [0.4, 0.5]),
        (37, 64, 2, 20, None, [0.25, 0.5]),
        (37, 64, 2, 16, 4, [0.25, 0.5]),
        (520, 320, 0, 64, 8, [0.25, 0.5]),
        (260, 384, 5, 96, None, [0.6]),
        (300, 1340, 3, 100, None, [0.4, 0.6]),  # past 512 columns, twice
        (4500, 132, 0, 64, None, [0.4, 0.6]),  # two batches of sections
        (300, 320, 2, 128, None, [0.6, 0.4, 0.5, 0.45, 0.55]),  # bundles, not in order
        (200, 640, 3, 128, 4, [0.5, 0.25, 0.75]),
    ],
)
def test_same_bits_as_the_eager_path(
    rows: int, columns: int, dead: int, block: int, group: int | None, levels: list[float]
) -> None:
    """Tiles of 256 rows, strips of 32 and panels of 64 columns are cut at odd places; equal
    scores, too."""
    weight, matrix = problem(rows, columns, dead)
    weight[:, columns // 2] = 0.0
    weight[3] = 1.0
    factor = hessian.inverse_factor(matrix)
    both = [weight, 2 * weight[: rows // 2]]
    eager = obs.prune_levels(both, factor, levels, block, group, "eager")
    compiled = obs.prune_levels(both, factor, levels, block, group, "compiled")
    for expected, got in zip(eager, compiled, strict=True):
        for one, other in zip(expected, got, strict=True):
            assert torch.equal(one.view(torch.int32), other.view(torch.int32))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    block=st.integers(1, 140),
    group=st.sampled_from([None, 2, 4, 5, 16]),
    parts=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    dead=st.integers(0, 3),
)
def test_any_shape_agrees(
    rows: int, columns: int, block: int, group: int | None, parts: list[float], dead: int
) -> None:
    """With few rows or columns, or odd blocks, BLAS adds in another order: then up to rounding."""
    if group is not None:
        columns, block = -(-columns // group) * group, -(-block // group) * group
        parts = [round(part * group) / group for part in parts]
    weight, matrix = problem(rows, columns, min(dead, columns), seed=rows + columns)
    factor = hessian.inverse_factor(matrix)
    eager = obs.prune_levels([weight], factor, parts, block, group, "eager")[0]
    compiled = obs.prune_levels([weight], factor, parts, block, group, "compiled")[0]
    for expected, got in zip(eager, compiled, strict=True):
        assert int((expected == 0).sum()) == int((got == 0).sum())
        different = (expected == 0) != (got == 0)
        assert int(different.sum()) <= 2
        if not different.any():
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_threads_change_nothing() -> None:
    weight, matrix = problem(900, 256)
    factor = hessian.inverse_factor(matrix)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(obs.prune_levels([weight], factor, [0.4, 0.6], kernel="compiled")[0])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("most", [1, 2, 3])
def test_bundles_change_nothing(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Levels that share a list of columns; processors with few registers take one at a time."""
    weight, matrix = problem(150, 700, dead=2)
    factor = hessian.inverse_factor(matrix)
    levels = [0.5, 0.3, 0.35, 0.4]
    expected = obs.prune_levels([weight], factor, levels, kernel="eager")[0]
    cut = partial(bundles_of, most=most)
    monkeypatch.setattr(obs_compiled, "bundles_of", cut)
    got = obs.prune_levels([weight], factor, levels, kernel="compiled")[0]
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_masks_of_sparsegpt_as_published() -> None:
    """It prunes one weight more in every block; nothing else differs but at the thresholds."""
    weight, matrix = problem(384, 512)
    theirs = fasterprune(weight, matrix, 0.5)
    ours = obs.prune(weight, hessian.inverse_factor(matrix), 0.5)
    blocks = 512 // 128
    assert int((theirs == 0).sum()) - int((ours == 0).sum()) == blocks
    assert int(((theirs == 0) != (ours == 0)).sum()) <= 4 * blocks
    ratio = hessian.relative_error(ours, weight, matrix) / hessian.relative_error(
        theirs, weight, matrix
    )
    assert ratio == pytest.approx(1.0, abs=1e-3)  # 4 zeros of 98304


def test_selection_takes_the_first_of_equals() -> None:
    score = torch.tensor([[2.0, 1.0, 1.0], [1.0, 0.5, 3.0]])
    expected = torch.tensor([[False, True, True], [False, True, False]])
    assert torch.equal(masks.smallest(score, 3), expected)
    assert not masks.smallest(score, 0).any()
    assert masks.smallest(score, 6).all()
    left = masks.smallest_in_groups(torch.ones(2, 8), 2, 4)
    assert left.tolist() == [[True, True, False, False] * 2] * 2


def test_not_even_nan_is_counted_out_of_bounds() -> None:
    """A processor's NaN has a sign; its digit must not be that of the next section's memory."""
    stack = np.full((1, 4, PANEL), -np.float32(np.nan), dtype=np.float32)
    stack[0, :, 1], stack[0, :, 2] = np.inf, 1.0
    memory = np.zeros((2, 1 << (31 - FIRST)), dtype=np.int64)
    ones, live = np.ones(4, dtype=np.float32), np.full(4, ALL_BITS)
    keys, one = np.empty((4, 4), dtype=np.uint32), np.array([1])
    tiles = TileRows(np.array([[0, 4]]), 0 * one, one, one)
    first_digits(stack, Scored(0, ones, live), keys, tiles, 0, 1, memory)
    assert memory.sum(axis=1).tolist() == [16, 0]
    assert keys[0, 2] == np.float32(1.0).view(np.uint32) + 1


def test_compiled_in_float64_is_refused() -> None:
    weight, matrix = problem(4, 8)
    factor = hessian.inverse_factor(matrix, dtype=torch.float64)
    with pytest.raises(UserError, match="float32, not on cpu in float64"):
        obs.prune(weight, factor, 0.5, kernel="compiled")
    assert obs.prune(weight, factor, 0.5).dtype == weight.dtype


def test_factor_equals_that_of_the_inverse() -> None:
    _, matrix = problem(4, PANEL)
    damped = matrix.double() + 0.01 * matrix.diagonal().double().mean() * torch.eye(PANEL)
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    upper = hessian.inverse_factor(matrix.double(), dtype=torch.float64).upper
    torch.testing.assert_close(upper, expected, rtol=1e-6, atol=1e-9)
    single = hessian.inverse_factor(matrix).upper
    torch.testing.assert_close(single.double(), expected, rtol=1e-3, atol=1e-5)


def searched(
    adapter: Adapter, proxy: ProxyData, folder: Path, kernel: str
) -> tuple[list[str], SearchResult]:
    """Digests of the database's files, and what the search found in it."""
    levels = [0.4, 0.5, 0.6]
    parameters = ObsParameters(kernel=kernel, block_size=8)
    build_database(adapter, proxy, levels, parameters, folder / "d", folder / "w", {})
    digests = [file_digest(path) for path in sorted((folder / "d").glob("*.safetensors"))]
    settings = SearchParameters(candidates=4, rounds=2, survivors=2, projector_steps=2)
    database = open_database(folder / "d")
    inputs, goal = SearchInputs(adapter, proxy, database), SearchGoal(levels, 0.5, settings)
    found = Search(inputs, goal, MachineParameters(workers=1), folder / "s", {}).run()
    return digests, found


def test_the_whole_search_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    results = [
        searched(adapter_for(random_llava()), random_proxy(), tmp_path / kernel, kernel)
        for kernel in ("eager", "compiled")
    ]
    (eager, plain), (compiled, fast) = results
    assert eager == compiled
    assert plain.policy == fast.policy
    assert plain.history == fast.history
    assert all(torch.equal(plain.projector[name], fast.projector[name]) for name in fast.projector)


def test_small_matrices_are_not_worth_compiling_for() -> None:
    upper = torch.eye(8)
    assert obs._kernel_for("auto", upper, None, obs.EAGER_UP_TO) == "eager"
    assert obs._kernel_for("auto", upper, None, obs.EAGER_UP_TO + 1) == "compiled"
    assert obs._kernel_for("compiled", upper, None, 1) == "compiled"
