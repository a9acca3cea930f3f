"""Both losses of every sample in one pass, and the error of a paired difference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from efficientllava.calibration.proxy_loss import ProxyLoss
from efficientllava.calibration.sample_losses import (
    DenseReference,
    SampleLosses,
    answer_weight,
    difference,
)
from efficientllava.data.proxy import IGNORED, ProxyData
from efficientllava.models.families import Adapter, adapter_for
from tests.conftest import random_llava


def noisy(adapter: Adapter) -> None:
    torch.manual_seed(5)
    for matrix in adapter.matrices:
        matrix.replace(matrix.weight + 0.05 * torch.randn_like(matrix.weight))


def test_they_are_torchs_by_sample(adapter: Adapter, proxy: ProxyData) -> None:
    reference = DenseReference(adapter, proxy, "text_and_pairs")
    noisy(adapter)
    losses = reference(adapter.language_model)
    dense, pruned, pairs = random_llava().double(), adapter.model.double(), proxy.pairs
    assert pairs is not None
    expected: list[tuple[float, float, int]] = []
    for inputs, labels, at in (
        ({"input_ids": proxy.segments}, proxy.segments, None),
        (pairs.inputs, pairs.labels, pairs.answer_positions()),
    ):
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        with torch.no_grad():
            said = pruned(**inputs).logits.log_softmax(-1)
            target = dense(**inputs).logits.log_softmax(-1)
        for row in range(len(labels)):
            chosen = slice(0, -1) if at is None else at[row].nonzero()[:, 0]
            after = labels[row][1:] if at is None else labels[row][chosen + 1]
            kl = functional.kl_div(
                said[row][chosen], target[row][chosen], reduction="sum", log_target=True
            )
            nll = functional.nll_loss(
                said[row][chosen], after, reduction="sum", ignore_index=IGNORED
            )
            expected.append((float(kl), float(nll), len(after)))
    kl, nll, positions = map(np.array, zip(*expected, strict=True))
    np.testing.assert_allclose(losses.kl, kl, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(losses.nll, nll, rtol=1e-4)
    np.testing.assert_array_equal(losses.positions, positions)
    assert losses.mean("kl") == pytest.approx(kl.sum() / positions.sum(), rel=1e-4)
    assert SampleLosses.from_row(losses.as_row()).kl.tolist() == losses.kl.tolist()


def test_every_position_counts_once_in_the_search_s_loss_too(
    adapter: Adapter, proxy: ProxyData
) -> None:
    reference = DenseReference(adapter, proxy, "text_and_pairs")
    search = {name: ProxyLoss(adapter, proxy, name, "text_and_pairs") for name in ("kl", "nll")}
    noisy(adapter)
    losses = reference(adapter.language_model)
    for name, loss in search.items():
        assert loss(adapter.language_model) == pytest.approx(losses.mean(name), rel=1e-4)  # type: ignore[arg-type]


@given(text=st.integers(1, 100_000), answers=st.integers(1, 100_000))
def test_the_mean_of_a_kind_counts_the_more_positions_it_has(text: int, answers: int) -> None:
    shares = 1 / (1 + 16 / text), 1 / (1 + 16 / answers)
    counted = answer_weight(text, answers) * answers
    assert counted / (counted + text) == pytest.approx(shares[1] / sum(shares))


def test_a_few_answers_neither_drown_nor_outvote_text() -> None:
    def share(answers: int) -> float:
        counted = answer_weight(2032, answers) * answers
        return counted / (2032 + counted)

    assert share(1) < 0.06 and 0.3 < share(16) < 0.4 and 0.45 < share(256) < 0.5


def test_answers_are_weighted_and_text_is_not(adapter: Adapter, proxy: ProxyData) -> None:
    text, answers = DenseReference(adapter, proxy, "text_and_pairs").weights
    assert proxy.pairs is not None
    scored = proxy.segments[:, 1:].numel(), int(proxy.pairs.answer_positions().sum())
    assert (text, answers) == (1.0, answer_weight(*scored)) and answers > 1
    assert DenseReference(adapter, proxy, "text").weights == [1.0]


def test_the_error_of_a_difference_is_that_of_resampling() -> None:
    random = np.random.default_rng(0)
    count = random.integers(5, 40, 60).astype(float)
    common = random.normal(2, 1, 60)
    one, other = ((common + random.normal(0, 0.1, 60)) * count for _ in range(2))
    losses = [SampleLosses(values, values, count, count) for values in (one, other)]
    apart = difference(*losses)
    assert apart.mean == pytest.approx((one - other).sum() / count.sum())
    draws = random.integers(0, 60, (4000, 60))
    means = (one - other)[draws].sum(1) / count[draws].sum(1)
    assert apart.error == pytest.approx(means.std(), rel=0.1)
    unpaired = [each[index : index + 1] for index, each in enumerate(losses)]
    assert difference(*unpaired).error == float("inf") and not difference(*unpaired).better


def test_an_unpruned_model_costs_nothing(proxy: ProxyData) -> None:
    adapter = adapter_for(random_llava())
    reference = DenseReference(adapter, proxy, "text_and_pairs")
    losses = reference(adapter.language_model)
    np.testing.assert_allclose(losses.kl, 0.0, atol=1e-4)
    assert losses.nll.tolist() == reference.dense.nll.tolist()
