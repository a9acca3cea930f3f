"""The default method through the front door, on families whose decoders differ from Llama's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from efficientllava import load, prune
from efficientllava.allocation.context import Context
from efficientllava.calibration.opened import block_by_block
from efficientllava.data.proxy import ProxyData, build_pairs, save_proxy
from efficientllava.models.checkpoint import load_model, load_processor, save_checkpoint
from efficientllava.models.families import FAMILIES, adapter_for
from efficientllava.parameters import Parameters
from tests.models.families import PICTURED, TINY
from tests.models.test_families import picture_questions

NAMES = ["qwen3_moe", "qwen3_vl_moe", "qwen3_vl", "gemma4", "lfm2"]
SETTINGS = {
    "search": {"projector_steps": 2, "projector_batch": 2, "projector_learning_rate": 1e-3},
    "sensitivity": {
        "tokens": 48, "choice_tokens": 48, "pairs": 2, "choice_pairs": 2, "generations": 1,
        "corrections": 1,
    },
}  # fmt: skip


def test_an_open_model_keeps_its_blocks_while_a_database_is_built(tmp_path: Path) -> None:
    """As when `apply` finds that the database of `allocate` is gone."""
    model, processor = TINY["mixtral"].build()
    save_checkpoint(model, processor, tmp_path / "model")
    segments = torch.randint(30, 50, (2, 16), generator=torch.Generator().manual_seed(0))
    save_proxy(tmp_path / "proxy", ProxyData(segments, None), {})
    context = Context(tmp_path / "model", tmp_path / "proxy", 0.5, Parameters(), tmp_path / "work")
    machine = context.parameters.machine
    with block_by_block(context.model, context.work, context.proxy, machine) as opened:
        # experts have another layout in the checkpoint: they lie in files of this run
        files = list((context.work / "blocks").iterdir())
        before = opened.adapter.model(segments).logits
        context.database_folders([0.5], (), by_importance=True)
        assert files and all(file.exists() for file in files)
        assert torch.equal(opened.adapter.model(segments).logits, before)
    assert not list(context.work.rglob("blocks"))


@pytest.mark.parametrize("name", NAMES)
def test_zeros_are_exact_at_the_budget(name: str, tmp_path: Path) -> None:
    model, processor = TINY[name].build()
    save_checkpoint(model, processor, tmp_path / "model")
    generator = torch.Generator().manual_seed(0)
    segments = torch.randint(30, 50, (8, 16), generator=generator)
    pairs = None
    if name in PICTURED:
        image_token = FAMILIES[model.config.model_type].image_token
        read = load_processor(tmp_path / "model")
        pairs = build_pairs(picture_questions(tmp_path), read, 6, 0, image_token)
    data = ProxyData(segments, pairs, digest="0" * 64)
    result = prune(
        load(tmp_path / "model"), data, sparsity=0.5, work=tmp_path / "work", parameters=SETTINGS
    )
    assert result.record["method"] == "efficientllava_plus"
    pruned = adapter_for(load_model(result.folder))
    zeros = {m.name: int((m.weight == 0).sum()) for m in pruned.matrices}
    assert zeros == {m.name: round(result.policy[m.name] * m.size) for m in pruned.matrices}
    # each matrix rounds its zeros to a whole number
    assert abs(sum(zeros.values()) - sum(pruned.sizes) / 2) <= len(zeros) / 2
    if "moe" in name:
        assert any(m.expert is not None for m in pruned.matrices)
        before = model.state_dict()
        for key, value in pruned.model.state_dict().items():
            if key.endswith("mlp.gate.weight"):
                assert torch.equal(value, before[key])
