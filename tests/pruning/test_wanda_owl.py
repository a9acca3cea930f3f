"""Wanda's masks and OWL's ratios against loops in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientllava.allocation import owl
from efficientllava.calibration.block_walk import block_walk
from efficientllava.data.proxy import ProxyData
from efficientllava.errors import UserError
from efficientllava.kernels import masks
from efficientllava.models.families import Adapter
from efficientllava.parameters import ObsParameters
from efficientllava.parsing import parse_parameters
from efficientllava.pruning.sequential import achieved_sparsity, prune_model, verify


def loop_mask(weight: torch.Tensor, norms: list[float], quotas: list[int]) -> list[list[bool]]:
    """Of every row the `quota` weights of smallest |w| * ||x||, one at a time."""
    mask = []
    for row, quota in enumerate(quotas):
        scores = [abs(float(w)) * n for w, n in zip(weight[row], norms, strict=True)]
        gone = sorted(range(len(scores)), key=lambda place: scores[place])[:quota]
        mask.append([place in gone for place in range(len(scores))])
    return mask


def input_norms(adapter: Adapter, proxy: ProxyData, name: str) -> list[float]:
    """||x_j||_2 over all tokens that are no padding, gathered on the whole model, in float64."""
    assert proxy.pairs is not None
    module = adapter.model.get_submodule(name)
    rows: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _m, args: rows.append(args[0].double()))
    with torch.no_grad():
        adapter.model(input_ids=proxy.segments)
        adapter.model(**proxy.pairs.inputs)
    handle.remove()
    sums = [0.0] * rows[0].shape[-1]
    for batch, mask in ((rows[0], None), (rows[1], proxy.pairs.inputs["attention_mask"].bool())):
        for token in batch.flatten(0, 1) if mask is None else batch[mask]:
            sums = [total + float(x) ** 2 for total, x in zip(sums, token, strict=True)]
    return [total**0.5 for total in sums]


def test_wanda_masks_the_smallest_products_of_each_row(adapter: Adapter, proxy: ProxyData) -> None:
    matrix = adapter.of_block(0)[0][0]
    dense, norms = matrix.weight.clone(), input_norms(adapter, proxy, matrix.name)
    policy = {each.name: 0.5 for each in adapter.matrices}
    rows = prune_model(adapter, proxy, "wanda", policy, ObsParameters())
    verify(adapter, rows)
    assert achieved_sparsity(rows) == 0.5
    expected = torch.tensor(loop_mask(dense, norms, [12] * 24))
    assert torch.equal(matrix.weight == 0, expected)
    assert torch.equal(matrix.weight, dense.masked_fill(expected, 0.0)), "kept weights changed"


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.integers(1, 9), st.integers(1, 13), st.integers(0, 99))
def test_wanda_removes_exact_numbers_spread_over_rows(
    ratio: float, rows: int, columns: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    norms = torch.rand(columns, generator=generator) + 0.1
    gone = masks.wanda(weight, norms, ratio) == 0
    quotas = gone.sum(dim=1).tolist()
    assert sum(quotas) == round(ratio * rows * columns)
    assert max(quotas) - min(quotas) <= 1
    assert gone.tolist() == loop_mask(weight, norms.tolist(), quotas)


def test_wanda_with_two_of_four_zeros(adapter: Adapter, proxy: ProxyData) -> None:
    policy = {each.name: 0.5 for each in adapter.matrices}
    rows = prune_model(adapter, proxy, "wanda", policy, ObsParameters(pattern="2:4"))
    verify(adapter, rows)
    for matrix in adapter.matrices:
        groups = matrix.weight.reshape(matrix.weight.shape[0], -1, 4)
        assert ((groups == 0).sum(dim=2) == 2).all()


def loop_ratios(shares: list[float], ratio: float, spread: float) -> list[float]:
    """As the official code computes them, where blocks are of one size and nothing is clipped."""
    low, high = min(shares), max(shares)
    scaled = [(share - low) * (1 / (high - low) * spread * 2) for share in shares]
    mean = sum(scaled) / len(scaled)
    return [1 - (each - mean + (1 - ratio)) for each in scaled]


def test_outlier_ratios_equal_the_official_formula() -> None:
    shares = [0.02, 0.011, 0.031, 0.004]
    found = owl.ratios_by_outliers(shares, [10, 10, 10, 10], 0.7, 0.08)
    assert found == pytest.approx(loop_ratios(shares, 0.7, 0.08), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 0.2), st.integers(1, 1000)), min_size=1, max_size=8),
    st.floats(0, 1),
    st.floats(0, 0.5),
)
def test_outlier_ratios_have_the_exact_mean(
    blocks: list[tuple[float, int]], ratio: float, spread: float
) -> None:
    shares, sizes = [share for share, _ in blocks], [size for _, size in blocks]
    found = owl.ratios_by_outliers(shares, sizes, ratio, spread)
    mean = sum(r * size for r, size in zip(found, sizes, strict=True)) / sum(sizes)
    assert mean == pytest.approx(ratio, abs=1e-9)
    assert all(0 <= each <= 1 for each in found)
    assert max(found) - min(found) <= 2 * spread + 1e-9
    order = sorted(range(len(shares)), key=lambda block: shares[block])
    assert all(found[a] >= found[b] - 1e-12 for a, b in zip(order, order[1:], strict=False))


def test_outlier_shares_equal_a_loop(adapter: Adapter, proxy: ProxyData) -> None:
    """Every weight of a block against M times the block's mean, one by one."""
    parameters = ObsParameters()
    policy, shares = owl.outlier_policy(adapter, proxy, 0.5, parameters, 2.0, 0.08)
    walk = block_walk(adapter, proxy, parameters)
    for block in range(3):
        scores: list[float] = []
        for group in walk.hessians(block):
            for matrix in group.matrices:
                norms = [float(value) ** 0.5 for value in group.hessian.diagonal().double()]
                for row in matrix.weight.tolist():
                    scores += [abs(w) * n for w, n in zip(row, norms, strict=True)]
        mean = sum(scores) / len(scores)
        assert shares[block] == pytest.approx(sum(s > 2.0 * mean for s in scores) / len(scores))
        walk.advance(block)
    assert len(set(policy.values())) == 3, "blocks got no ratios of their own"
    rows = prune_model(adapter, proxy, "obs", policy, parameters)
    verify(adapter, rows)
    assert achieved_sparsity(rows) == pytest.approx(0.5, abs=21 / 2 / sum(adapter.sizes))


def test_owl_refuses_patterns(adapter: Adapter, proxy: ProxyData) -> None:
    parameters = ObsParameters(pattern="2:4")
    with pytest.raises(UserError, match="gives every block a ratio of its own"):
        owl.outlier_policy(adapter, proxy, 0.5, parameters, 5.0, 0.08)


@pytest.mark.parametrize("method", ["owl", "llm_pruner", "short_lvlm", "shortgpt", "sleb"])
def test_parameters_refuse_patterns_that_a_method_cannot_make(method: str) -> None:
    values: dict[str, Any] = {"methods": [method], "obs": {"pattern": "2:4"}}
    with pytest.raises(UserError, match=f"2:4 cannot be had from {method}"):
        parse_parameters(values)
