"""Heads and channels: Taylor importance by finite differences, and smaller models that reload."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from efficientllava.data.proxy import ProxyData
from efficientllava.errors import UserError
from efficientllava.models.families import Adapter, adapter_for
from efficientllava.parameters import FinalizeParameters, Parameters
from efficientllava.pruning.structured.head_configs import shape_for
from efficientllava.pruning.structured.heads_channels import (
    coupled,
    group_importance,
    most_important,
    taylor_salience,
)
from efficientllava.pruning.structured.structured import (
    remove_parts,
    removed_share,
    verify_structure,
)
from tests.conftest import random_llava, random_proxy


def smaller(
    model: Any, ratio: float, proxy: ProxyData | None = None, **changes: Any
) -> tuple[Adapter, list[dict[str, Any]], dict[str, Any]]:
    left, rows, structure = remove_parts(
        adapter_for(model),
        proxy or random_proxy(),
        "heads_and_channels",
        ratio,
        Parameters(finalize=FinalizeParameters(**changes)),
        lambda _model: 0.0,
    )
    verify_structure(left, rows, structure)
    return left, rows, structure


def text_loss(model: Any, segments: torch.Tensor) -> float:
    """Mean negative log-likelihood of every next token, in the model's own precision."""
    with torch.no_grad():
        logs = model(input_ids=segments, use_cache=False).logits[:, :-1].log_softmax(-1)
    return -float(logs.gather(2, segments[:, 1:, None]).mean())


def test_salience_equals_finite_differences() -> None:
    """|w * dL/dw| in float64, weight by weight, of every kind of matrix."""
    proxy = random_proxy(pairs=0, segments=2)
    model = random_llava().double()
    adapter = adapter_for(model)
    before = [parameter.requires_grad for parameter in model.parameters()]
    found = taylor_salience(adapter, proxy, "text")
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(parameter.grad is None for parameter in model.parameters())
    # norms and rotations are float32 inside: a wider step, and weights whose change is seen
    step = 1e-3
    for matrix, salience in list(zip(adapter.matrices, found, strict=True))[7:14]:
        for index in salience.flatten().topk(3).indices.tolist():
            place = divmod(index, salience.shape[1])
            value = float(matrix.weight[place])
            losses = []
            for sign in (1, -1):
                matrix.weight[place] = value + sign * step
                losses.append(text_loss(model, proxy.segments))
            matrix.weight[place] = value
            expected = abs(value * (losses[0] - losses[1]) / (2 * step))
            assert float(salience[place]) == pytest.approx(expected, rel=5e-3)


def test_every_position_of_text_and_answers_counts_once(adapter: Adapter, proxy: ProxyData) -> None:
    """The gradient by autograd on whole-model losses, as the proxy loss defines them."""
    model: Any = adapter.model
    assert proxy.pairs is not None
    found = taylor_salience(adapter, proxy, "text_and_pairs")
    logs = model(input_ids=proxy.segments).logits[:, :-1].log_softmax(-1)
    text = -logs.gather(2, proxy.segments[:, 1:, None]).flatten()
    logs = model(**proxy.pairs.inputs).logits[:, :-1].log_softmax(-1)
    wanted = proxy.pairs.labels[:, 1:]
    answers = -logs.gather(2, wanted.clamp(min=0)[:, :, None])[:, :, 0][wanted >= 0]
    torch.cat([text, answers]).mean().backward()
    for matrix, salience in zip(adapter.matrices, found, strict=True):
        gradient = matrix.module.weight.grad
        assert gradient is not None
        expected = (gradient * matrix.weight).abs()
        torch.testing.assert_close(salience, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("keys", "unit_heads"), [(4, 1), (2, 2), (1, 1)])
def test_groups_sum_what_is_coupled(keys: int, unit_heads: int) -> None:
    """One head after the other, weight by weight; with grouped queries a group goes as a whole."""
    adapter = adapter_for(random_llava(num_key_value_heads=keys))
    parts = coupled(adapter, 1)
    assert (parts.query_heads, parts.key_heads, parts.units) == (4, keys, 4 // unit_heads)
    generator = torch.Generator().manual_seed(3)
    salience = {m.name: torch.rand(m.weight.shape, generator=generator) for m in adapter.matrices}
    units, channels = group_importance(parts, salience)
    q, k, v, o = (salience[m.name] for m in (parts.q, parts.k, parts.v, parts.o))
    for unit in range(parts.units):
        total, wide = 0.0, 6 * unit_heads
        for row in range(unit * wide, (unit + 1) * wide):
            total += sum(float(x) for x in q[row]) + sum(float(x) for x in o[:, row])
        if keys == parts.units:
            for row in range(unit * 6, unit * 6 + 6):
                total += sum(float(x) for x in k[row]) + sum(float(x) for x in v[row])
        assert float(units[unit]) == pytest.approx(total, rel=1e-6)
    gate, up, down = (salience[m.name] for m in (parts.gate, parts.up, parts.down))
    for channel in (0, 7, 39):
        total = sum(float(x) for x in (*gate[channel], *up[channel], *down[:, channel]))
        assert float(channels[channel]) == pytest.approx(total, rel=1e-6)
    assert units.numel() * parts.unit_size + channels.numel() * parts.channel_size == sum(
        m.size for group in adapter.of_block(1) for m in group
    ) - (2 * k.numel() if keys != parts.units else 0)


def test_the_most_important_stay_in_order() -> None:
    assert most_important(torch.tensor([3.0, 9.0, 1.0, 9.0, 4.0]), 3).tolist() == [1, 3, 4]


PLAIN = """
import json, sys
import torch
from transformers import AutoModelForImageTextToText
for folder in sys.argv[1:]:
    model, told = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        cached = model(input_ids=ids[:, :8], use_cache=True)
        rest = model(input_ids=ids[:, 8:], past_key_values=cached.past_key_values).logits
    assert torch.allclose(rest, logits[:, 8:], atol=2e-5)
    print(json.dumps([model.num_parameters(), logits.double().sum().item()]))
"""


def test_smaller_models_load_with_plain_transformers(tmp_path: Path) -> None:
    """Three of four heads do not divide LLaMA's width, and grouped queries keep their groups."""
    ids = torch.arange(5, 17)[None]
    expected, folders = [], []
    for index, (ratio, keys) in enumerate([(0.5, 4), (0.25, 4), (0.5, 2), (0.3, 1)]):
        model = random_llava(num_key_value_heads=keys)
        dense = model.num_parameters()
        left, _, structure = smaller(model, ratio)
        gone = structure["dense_weights"] - structure["stored_weights"]
        assert model.num_parameters() == dense - gone, "parameters are really gone"
        assert gone / structure["dense_weights"] == pytest.approx(ratio, abs=0.02)
        folder = tmp_path / str(index)
        model.save_pretrained(folder)
        with torch.no_grad():
            total = model(input_ids=ids).logits.double().sum().item()
        expected.append([model.num_parameters(), total])
        folders.append(str(folder))
        config = model.config.text_config
        assert [len(kept["channels"]) for kept in structure["kept"]] == [
            config.intermediate_size
        ] * len(left.blocks)
    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN, *folders], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected


def test_a_smaller_text_only_model_loads_with_plain_transformers(tmp_path: Path) -> None:
    """Three of four heads: saved as `mistral`, since LLaMA's configuration refuses them."""
    torch.manual_seed(0)
    values = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**values, vocab_size=64, num_attention_heads=4)).eval()
    smaller(model, 0.25, random_proxy(pairs=0))
    assert model.config.model_type == "mistral" and model.config.num_attention_heads == 3
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_what_is_kept_computes_as_before_where_the_rest_is_zero() -> None:
    """A smaller model equals the whole one with the removed parts set to zero."""
    ids = torch.arange(5, 17)[None]
    model, masked = random_llava(), random_llava()
    _, _, structure = smaller(model, 0.5)
    adapter = adapter_for(masked)
    for block, kept in enumerate(structure["kept"]):
        parts = coupled(adapter, block)
        for head in set(range(4)) - set(kept["heads"]):
            parts.o.weight[:, 6 * head : 6 * head + 6] = 0.0
        for channel in set(range(40)) - set(kept["channels"]):
            parts.down.weight[:, channel] = 0.0
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=ids).logits, masked(input_ids=ids).logits, rtol=1e-4, atol=1e-4
        )


def test_protected_blocks_stay_whole_and_shapes_stay() -> None:
    model = random_llava(num_hidden_layers=4)
    dense = {m.name: m.weight.clone() for m in adapter_for(model).matrices}
    left, rows, structure = smaller(model, 0.3, protect_first=1, protect_last=1)
    assert structure["stored"] == "zeros" and structure["protected"] == [0, 3]
    for matrix in left.matrices:
        if matrix.block in (0, 3):
            assert torch.equal(matrix.weight, dense[matrix.name])
        else:
            gone = structure["removed"][matrix.name]
            assert int((matrix.weight == 0).sum()) == round(gone * matrix.size) > 0
        assert matrix.weight.shape == dense[matrix.name].shape
    assert removed_share(rows, structure) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("ratio", "changes", "message"),
    [
        (1.0, {}, "at least one head and one MLP channel must stay"),
        (0.9, {"protect_first": 1}, "135.0% of the weights of a block are to go"),
        (0.3, {"protect_first": 2, "protect_last": 1}, "all 3 decoder blocks are protected"),
    ],
)
def test_ratios_that_leave_nothing_are_refused(
    ratio: float, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        smaller(random_llava(), ratio, **changes)


def test_shapes_meet_the_total_to_half_a_channel() -> None:
    for ratio in (0.1, 0.3, 0.5, 0.7, 0.9):
        target = ratio * (8 * 100 + 50 * 12)
        shape = shape_for(target, 8, 100, 50, 12, list(range(1, 9)))
        gone = (8 - shape.units) * 100 + (50 - shape.channels) * 12
        assert abs(gone - target) <= 6 and shape.units >= 1 and shape.channels >= 1
    # only numbers of heads that a configuration can hold
    assert shape_for(700, 8, 100, 50, 12, [1, 2, 8]).units == 2
