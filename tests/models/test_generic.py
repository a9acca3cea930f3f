"""A family found by structure: types that transformers knows and the table does not."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GraniteForCausalLM,
    PreTrainedModel,
)

from efficientllava import calibration_data, load, prune
from efficientllava.calibration.block_walk import BlockWalk, language_inputs
from efficientllava.errors import UserError
from efficientllava.models.checkpoint import load_model
from efficientllava.models.families import FAMILIES, FOUND, adapter_for
from efficientllava.models.generic import find_family, with_found_family
from tests.models.families import TINY
from tests.models.families.base import TEXT, tokenizer

TEXT_LINES = [" ".join(f"w{(7 * i + j) % 50}" for j in range(40)) for i in range(20)]


def granite(folder: Path) -> Path:
    sizes = TEXT | {"vocab_size": 64, "logits_scaling": 4.0, "residual_multiplier": 0.5}
    config = AutoConfig.for_model("granite", **sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer({}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", [name for name in TINY if name not in ("paligemma2", "gemma4")])
def test_structure_gives_what_the_table_says(name: str) -> None:
    """The same decoder, matrices, groups and projector for every family that is in the table."""
    model, processor = TINY[name].build()
    family = FAMILIES[model.config.model_type]
    image_token = str(getattr(processor, "image_token", "")) if family.takes_images else ""
    found = find_family(model, image_token)
    assert (found.language_model, found.blocks) == (family.language_model, family.blocks)
    expected = adapter_for(model)
    setattr(model.config, FOUND, found.__dict__)
    adapter = adapter_for(model)
    missing = {m.name for m in expected.matrices} - {m.name for m in adapter.matrices}
    assert not missing
    own = {id(value) for value in adapter.projector.parameters()} if adapter.projector else set()
    if expected.projector is not None:
        assert {id(value) for value in expected.projector.parameters()} <= own


def test_an_unknown_type_is_pruned_and_says_what_was_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = granite(tmp_path / "granite")
    with pytest.raises(UserError, match="try family generic"):
        load(folder)
    with caplog.at_level(logging.WARNING):
        vlm = load(folder, family="generic")
    assert "please check: blocks model.layers" in caplog.text and "q_proj" in caplog.text
    data = calibration_data(vlm, text=TEXT_LINES)
    result = prune(
        vlm,
        data,
        method="sparsegpt",
        sparsity=0.5,
        work=tmp_path / "work",
    )
    result.save(tmp_path / "pruned")
    again = load_model(tmp_path / "pruned")
    zeros = [int((m.weight == 0).sum()) / m.size for m in adapter_for(again).matrices]
    assert len(zeros) == 14 and all(abs(share - 0.5) < 0.01 for share in zeros)
    plain: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert plain.config.model_type == "granite"
    assert not hasattr(AutoConfig.from_pretrained(folder), FOUND)  # the user's folder is untouched


def test_a_model_that_does_more_between_its_blocks_is_refused(tmp_path: Path) -> None:
    """The walk over blocks is compared with the model; here the model scales between them."""
    folder = with_found_family(granite(tmp_path / "granite"), tmp_path / "found")
    model = load_model(folder)
    adapter = adapter_for(model)
    inputs = [language_inputs(adapter, {"input_ids": torch.arange(8)[None]})]
    BlockWalk(adapter, inputs)
    original = adapter.language_model.forward

    def forward(**arguments: object) -> object:
        handle = adapter.blocks[1].register_forward_pre_hook(
            lambda module, args, kwargs: ((2 * args[0], *args[1:]), kwargs), with_kwargs=True
        )
        try:
            return original(**arguments)
        finally:
            handle.remove()

    adapter.language_model.forward = forward  # type: ignore[method-assign]
    with pytest.raises(UserError, match="run one by one"):
        BlockWalk(adapter, inputs)


def test_an_entry_that_is_no_family_is_refused(tmp_path: Path) -> None:
    folder = with_found_family(granite(tmp_path / "granite"), tmp_path / "found")
    content = json.loads((folder / "config.json").read_text())
    assert content[FOUND]["language_model"] == "model"
    content[FOUND]["input_groups"] = 3
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{FOUND} is no family: input_groups"):
        load(folder)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="found no list of decoder blocks"):
        find_family(torch.nn.Sequential(torch.nn.Linear(2, 2)), "")


def test_a_head_that_we_do_not_know_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_found_family(granite(tmp_path / "granite"), tmp_path / "found")
    plain = GraniteForCausalLM.forward

    def forward(self: GraniteForCausalLM, *args: object, **kwargs: object) -> object:
        output = plain(self, *args, **kwargs)  # type: ignore[arg-type]
        output.logits = output.logits.tanh()
        return output

    monkeypatch.setattr(GraniteForCausalLM, "forward", forward)
    with pytest.raises(UserError, match="does not give the model's logits"):
        load_model(folder)
