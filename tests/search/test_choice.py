"""The choice between the sequential and the stitched model: every scored position counts once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllava.calibration.structural_risk import mean_log_norm, structural_risk
from efficientllava.data.proxy import IGNORED, ProxyData
from efficientllava.database.build import build_database, open_database
from efficientllava.models.families import Adapter, adapter_for
from efficientllava.parameters import PruningParameters, SearchParameters
from efficientllava.pruning.finalize import prune_finally
from efficientllava.pruning.sequential import prune_model, stitch_model
from tests.conftest import random_llava, random_proxy

PRUNING = PruningParameters()
ETA = 0.5


@torch.no_grad()
def surprise(adapter: Adapter, proxy: ProxyData) -> tuple[torch.Tensor, torch.Tensor]:
    """-log p of every next token of the text, and of every answer token, by the whole model."""
    text = adapter.model(input_ids=proxy.segments).logits.double().log_softmax(-1)[:, :-1]
    told = -text.gather(2, proxy.segments[:, 1:, None]).flatten()
    assert proxy.pairs is not None
    logits = adapter.model(**proxy.pairs.inputs).logits.double().log_softmax(-1)[:, :-1]
    labels = proxy.pairs.labels[:, 1:]
    at = labels != IGNORED
    return told, -logits[at].gather(1, labels[at][:, None]).flatten()


@pytest.mark.parametrize(
    ("seed", "better"), [(4, "stitched"), (7, "stitched"), (33, "sequential"), (36, "sequential")]
)
def test_few_answers_do_not_outvote_the_text(seed: int, better: str, tmp_path: Path) -> None:
    """6 answer tokens beside 360 of text: counted half each they would choose the other model."""
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
    by_position, halves = {}, {}
    for name, adapter in models.items():
        text, answers = surprise(adapter, proxy)
        assert (len(text), len(answers)) == (360, 6)
        by_position[name] = structural_risk(
            float(torch.cat([text, answers]).mean()),
            mean_log_norm([row["norm_ratio"] for row in rows[name]]),
            ETA,
        )
        halves[name] = float((text.mean() + answers.mean()) / 2)
    search = SearchParameters(fitness="nll", fitness_data="text_and_pairs", eta=ETA)
    record: dict[str, Any] = prune_finally(
        dense, proxy, database, "obs", policy, {}, PRUNING, search
    )
    assert min(by_position, key=by_position.__getitem__) == better
    assert record["chosen"] == better
    for name, risk in by_position.items():
        assert record[f"{name}_risk"] == pytest.approx(risk, abs=1e-4)
    # the loss that is recorded is the search's still
    assert record["proxy_loss"] == record["proxy_nll"] == pytest.approx(halves[better], abs=1e-4)
    for matrix, other in zip(dense.matrices, models[better].matrices, strict=True):
        assert torch.equal(matrix.weight, other.weight)
