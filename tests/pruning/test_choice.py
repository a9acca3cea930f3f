"""The choice between the sequential and the stitched model: every scored position counts once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from efficientllava.allocation.context import Allocation, Risk
from efficientllava.calibration.opened import OpenModel
from efficientllava.calibration.structural_risk import mean_log_norm, structural_risk
from efficientllava.data.proxy import IGNORED, ProxyData
from efficientllava.database.build import build_database
from efficientllava.database.solutions import open_database
from efficientllava.models.families import Adapter, adapter_for
from efficientllava.parameters import ObsParameters, Parameters, SearchParameters
from efficientllava.pruning.masked import prune_masked
from efficientllava.pruning.sequential import prune_model, stitch_model
from tests.conftest import random_llava, random_proxy

PRUNING = ObsParameters()
ETA = 0.5
CASES = [(4, "stitched"), (7, "stitched"), (33, "sequential"), (36, "sequential")]


@torch.no_grad()
def surprise(adapter: Adapter, proxy: ProxyData) -> list[list[float]]:
    """-log p of every next token of each segment, and of every answer token of each pair."""
    text = adapter.model(input_ids=proxy.segments).logits.double().log_softmax(-1)[:, :-1]
    told = (-text.gather(2, proxy.segments[:, 1:, None])[..., 0]).tolist()
    assert proxy.pairs is not None
    logits = adapter.model(**proxy.pairs.inputs).logits.double().log_softmax(-1)[:, :-1]
    labels = proxy.pairs.labels[:, 1:]
    for row, answer in zip(logits, labels, strict=True):
        at = answer != IGNORED
        told.append((-row[at].gather(1, answer[at][:, None])[:, 0]).tolist())
    return told


def paired(first: list[list[float]], second: list[list[float]]) -> tuple[float, float]:
    """Mean difference over all positions, and its error by leaving out one sample at a time."""
    sums = [sum(a) - sum(b) for a, b in zip(first, second, strict=True)]
    counts = [len(a) for a in first]
    mean = sum(sums) / sum(counts)
    left = [(sum(sums) - d) / (sum(counts) - n) - mean for d, n in zip(sums, counts, strict=True)]
    return mean, (sum(x * x for x in left) * (len(sums) - 1) / len(sums)) ** 0.5


@pytest.mark.parametrize(("seed", "better"), CASES)
def test_stitched_is_kept_beyond_its_error_and_answers_do_not_outvote_text(
    seed: int, better: str, tmp_path: Path
) -> None:
    """6 answer tokens stand beside 360 of text."""
    proxy, target = random_proxy(4, 24, seed), tmp_path / "database"
    dense = adapter_for(random_llava(seed))
    build_database(dense, proxy, [0.5], PRUNING, target, tmp_path / "w", {})
    policy = {matrix.name: 0.5 for matrix in dense.matrices}
    database = open_database(target, [0.5])
    models = {name: adapter_for(random_llava(seed)) for name in ("sequential", "stitched")}
    rows = {
        "sequential": prune_model(models["sequential"], proxy, "obs", policy, PRUNING),
        "stitched": stitch_model(models["stitched"], database, policy),
    }
    told = {name: surprise(adapter, proxy) for name, adapter in models.items()}
    assert sum(map(len, told["stitched"][:24])) == 360 and sum(map(len, told["stitched"])) == 366
    risks = {
        name: structural_risk(
            sum(map(sum, told[name])) / 366,
            mean_log_norm([row["norm_ratio"] for row in rows[name]]),
            ETA,
        )
        for name in models
    }
    _, error = paired(told["stitched"], told["sequential"])
    apart = risks["stitched"] - risks["sequential"]
    assert ("stitched" if apart < -error else "sequential") == better
    search = SearchParameters(fitness="nll", fitness_data="text_and_pairs", eta=ETA)
    record = prune_masked(
        OpenModel(dense),
        proxy,
        "obs",
        Allocation(policy, "search", risk=Risk("mean_log_norm", ETA)),
        Parameters(obs=PRUNING, search=search),
        database,
    )
    assert record["chosen"] == better
    assert record["choice_difference"] == pytest.approx(apart, abs=1e-4)
    assert record["choice_error"] == pytest.approx(error, rel=0.1)
    for name, risk in risks.items():
        assert record[f"{name}_risk"] == pytest.approx(risk, abs=1e-4)
    assert record["risk"] == record[f"{better}_risk"]
    for matrix, other in zip(dense.matrices, models[better].matrices, strict=True):
        assert torch.equal(matrix.weight, other.weight)


def test_few_positions_are_warned_of(
    adapter: Adapter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = random_proxy(0, 4)
    build_database(adapter, proxy, [0.5], PRUNING, tmp_path / "d", tmp_path / "w", {})
    policy = {matrix.name: 0.5 for matrix in adapter.matrices}
    allocation = Allocation(policy, "search", risk=Risk("mean_log_norm", ETA))
    database = open_database(tmp_path / "d", [0.5])
    prune_masked(OpenModel(adapter), proxy, "obs", allocation, Parameters(), database)
    assert "rests on 60 scored positions" in caplog.text
