"""Which blocks go, against loops; what is left decodes with a cache and loads again."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from efficientllava.calibration.proxy_loss import ProxyLoss
from efficientllava.data.proxy import ProxyData
from efficientllava.errors import UserError
from efficientllava.models.families import Adapter, adapter_for
from efficientllava.parameters import FinalizeParameters, ObsParameters, Parameters
from efficientllava.pruning.structured import block_removal
from efficientllava.pruning.structured import token_importance as importance
from efficientllava.pruning.structured.structured import (
    prune_structure,
    remove_parts,
    removed_share,
    verify_structure,
)
from tests.conftest import random_llava, random_proxy

BY_COSINE = ["blocks_by_important_tokens", "blocks_by_influence"]
RATIOS = [6 / 32, 8 / 32, 12 / 32, 16 / 32]


def deep_llava(blocks: int = 32) -> Any:
    return random_llava(
        num_hidden_layers=blocks,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
    )


def removed_from(
    model: Any, proxy: ProxyData, update: str, ratio: float, **changes: Any
) -> dict[str, Any]:
    adapter = adapter_for(model)
    loss = ProxyLoss(adapter, proxy, "kl", "text_and_pairs")
    parameters = Parameters(finalize=FinalizeParameters(**changes))
    left, rows, structure = remove_parts(adapter, proxy, update, ratio, parameters, loss)
    verify_structure(left, rows, structure)
    return structure


def cached_logits(model: Any, inputs: dict[str, torch.Tensor], prompt: int) -> torch.Tensor:
    """Logits of every position: the prompt at once, then token by token with the cache."""
    ids = inputs["input_ids"]
    out = model(**{**inputs, "input_ids": ids[:, :prompt]}, use_cache=True)
    found, cache = [out.logits], out.past_key_values
    for place in range(prompt, ids.shape[1]):
        out = model(input_ids=ids[:, place : place + 1], past_key_values=cache, use_cache=True)
        found.append(out.logits)
    return torch.cat(found, dim=1)


@torch.no_grad()
def check_decoding_and_reload(model: Any, folder: Path) -> None:
    pairs = random_proxy().pairs
    assert pairs is not None
    length = int(pairs.inputs["attention_mask"][0].sum())
    inputs = {
        "input_ids": pairs.inputs["input_ids"][:1, :length],
        "pixel_values": pairs.inputs["pixel_values"][:1],
    }
    whole = model(**inputs, use_cache=False).logits
    torch.testing.assert_close(cached_logits(model, inputs, length - 3), whole, rtol=0, atol=2e-5)
    model.save_pretrained(folder)
    loaded, told = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(loaded.eval()(**inputs, use_cache=False).logits, whole)
    torch.testing.assert_close(cached_logits(loaded, inputs, length - 3), whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("update", BY_COSINE)
def test_removed_sets_are_nested(update: str, tmp_path: Path) -> None:
    proxy, sets = random_proxy(pairs=4, segments=2), []
    for ratio in RATIOS:
        model = deep_llava()
        structure = removed_from(model, proxy, update, ratio)
        removed = structure["removed_blocks"]
        assert len(removed) == round(ratio * 32)
        assert 0 not in removed and 31 not in removed
        assert sorted(removed + structure["kept_blocks"]) == list(range(32))
        assert [b for a, e in structure["runs"] for b in range(a, e)] == removed
        assert structure["calibration_digest"] == proxy.digest
        assert structure["removed"]["model.language_model.layers.0.mlp.down_proj"] == 0.0
        gone = {name for name, share in structure["removed"].items() if share == 1.0}
        assert {int(name.split(".")[3]) for name in gone} == set(removed)
        sets.append(set(removed))
    assert sets[0] < sets[1] < sets[2] < sets[3]
    assert model.config.text_config.num_hidden_layers == 16
    check_decoding_and_reload(model, tmp_path / "left")


@pytest.mark.parametrize(
    ("blocks", "counts"),
    [(10, [2, 3, 4, 5]), pytest.param(32, [6, 8, 12, 16], marks=pytest.mark.slow)],
)
def test_greedy_removal_is_nested_too(blocks: int, counts: list[int]) -> None:
    proxy, orders = random_proxy(pairs=0, segments=1), []
    for count in counts:
        model = deep_llava(blocks)
        structure = removed_from(model, proxy, "blocks_by_loss", count / blocks)
        assert len(structure["removed_blocks"]) == count
        assert not {0, blocks - 1} & set(structure["removed_blocks"])
        orders.append(structure["order"])
    assert all(b[: len(a)] == a for a, b in zip(orders, orders[1:], strict=False))


def test_greedy_removal_equals_a_loop_over_copies() -> None:
    """Every candidate is tried on a copy of the whole model, by its own cross entropy."""
    model = random_llava(num_hidden_layers=6)
    proxy = random_proxy(pairs=0, segments=2)
    kept = list(range(6))
    order: list[int] = []
    for _ in range(3):
        losses = {}
        for block in kept[1:-1]:
            trial = copy.deepcopy(model)
            layers = trial.model.language_model.layers
            left = [layers[index] for index in kept if index != block]
            trial.model.language_model.layers = torch.nn.ModuleList(left)
            trial.model.language_model.config.num_hidden_layers = len(left)
            with torch.no_grad():
                logits = trial(input_ids=proxy.segments, use_cache=False).logits[:, :-1].double()
            wanted = proxy.segments[:, 1:, None]
            losses[block] = -float(logits.log_softmax(-1).gather(2, wanted).mean())
        order.append(min(losses, key=lambda block: losses[block]))
        kept.remove(order[-1])
    adapter = adapter_for(model)
    blocks = block_removal.BlockList(adapter)
    loss = ProxyLoss(adapter, proxy, "nll", "text")
    found, losses_found = block_removal.order_by_loss(blocks, [1, 2, 3, 4], 3, loss)
    assert found == order
    assert losses_found[-1] == pytest.approx(losses[order[-1]], rel=1e-5)
    assert len(model.model.language_model.layers) == 6, "the model is whole again"


@torch.no_grad()
def test_block_influence_equals_a_loop_over_hidden_states(
    adapter: Adapter, proxy: ProxyData
) -> None:
    model: Any = adapter.model
    assert proxy.pairs is not None
    sums, count = [0.0, 0.0, 0.0], 0
    for inputs in ({"input_ids": proxy.segments}, proxy.pairs.inputs):
        streams: list[torch.Tensor] = []
        handles = [
            block.register_forward_pre_hook(lambda _m, args, into=streams: into.append(args[0]))
            for block in adapter.blocks
        ]
        handles.append(
            model.model.language_model.norm.register_forward_pre_hook(
                lambda _m, args, into=streams: into.append(args[0])
            )
        )
        model(**inputs, use_cache=False)
        for handle in handles:
            handle.remove()
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        for sample, place in mask.nonzero().tolist():
            count += 1
            for block in range(3):
                a, b = (streams[block + d][sample, place].double() for d in (0, 1))
                sums[block] += float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
    found = block_removal.mean_cosines(adapter, proxy, "text_and_pairs", None)
    assert found == pytest.approx([total / count for total in sums], rel=1e-5)


def loop_scores(attention: torch.Tensor, kinds: str) -> tuple[dict[int, float], dict[int, float]]:
    """s_v and s_t of one sample; kinds holds v, t or - (padding) per position."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else 0.0

    a = attention.double().tolist()
    n = range(len(kinds))
    given = {
        j: mean([a[i][j] for i in n if i >= j and kinds[i] == "t"]) for j in n if kinds[j] != "-"
    }
    visual = {
        j: (mean([a[i][j] for i in n if i >= j and kinds[i] == "v"]) + given[j]) / 2
        for j in n
        if kinds[j] == "v"
    }
    text = {
        i: (mean([a[i][j] for j in n if j <= i and kinds[j] == "v"]) + given[i]) / 2
        for i in n
        if kinds[i] == "t"
    }
    return visual, text


def random_attention(samples: int, places: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(samples, places, places, generator=generator)
    hidden = torch.ones(places, places, dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)


KINDS = ["tvvvvtttvt", "vvvtttttt-", "tttttttttt"]


def test_token_importance_equals_a_loop() -> None:
    attention = random_attention(3, 10)
    text = torch.tensor([[kind == "t" for kind in row] for row in KINDS])
    visual = torch.tensor([[kind == "v" for kind in row] for row in KINDS])
    of_visual, of_text = importance.token_importance(attention, text, visual)
    chosen = importance.important_tokens(attention, text, visual, 0.3)
    for sample, kinds in enumerate(KINDS):
        expected: set[int] = set()
        for found, scores in zip(
            (of_visual, of_text), loop_scores(attention[sample], kinds), strict=True
        ):
            for place, score in scores.items():
                assert float(found[sample, place]) == pytest.approx(score, rel=1e-5, abs=1e-7)
            rest = {place: score for place, score in scores.items() if place > 0}
            best = sorted(rest, key=lambda place: -rest[place])
            expected |= set(best[: math.ceil(0.3 * len(rest))])
        assert set(chosen[sample].nonzero().flatten().tolist()) == expected


@torch.no_grad()
def test_important_tokens_come_from_each_blocks_own_attention(
    adapter: Adapter, proxy: ProxyData
) -> None:
    """c_l against eager attention of the whole model and a loop over the chosen tokens."""
    model: Any = adapter.model
    assert proxy.pairs is not None
    found = block_removal.mean_cosines(adapter, proxy, "text_and_pairs", 0.5)
    assert model.config.text_config._attn_implementation != "eager", "it is set back"
    model.model.language_model.set_attn_implementation("eager")
    streams: list[torch.Tensor] = []
    for module in (*adapter.blocks, model.model.language_model.norm):
        module.register_forward_pre_hook(lambda _m, args: streams.append(args[0]))
    inputs = proxy.pairs.inputs
    attentions = model(**inputs, use_cache=False, output_attentions=True).attentions
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for block in range(3):
        cosines = []
        for sample in range(len(ids)):
            kinds = "".join(
                "-" if not m else "v" if i == 4 else "t"
                for i, m in zip(ids[sample].tolist(), mask[sample].tolist(), strict=True)
            )
            for scores in loop_scores(attentions[block][sample].mean(0), kinds):
                rest = [place for place in scores if place > 0]
                rest.sort(key=lambda place: -scores[place])
                for place in rest[: math.ceil(0.5 * len(rest))]:
                    a, b = (streams[block + d][sample, place].double() for d in (0, 1))
                    cosines.append(float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)))
        assert found[block] == pytest.approx(sum(cosines) / len(cosines), rel=1e-4)


def test_layer_types_follow_the_blocks_that_stay() -> None:
    adapter = adapter_for(random_llava(num_hidden_layers=4))
    config: Any = adapter.language_model.config
    config.layer_types = ["full_attention", "sliding_attention"] * 2
    block_removal.BlockList(adapter).keep([0, 1, 3])
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert config.num_hidden_layers == 3
    layers = adapter.language_model.layers
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1, 2]  # type: ignore[union-attr]


def test_runs_are_half_open() -> None:
    assert block_removal.runs_of([7, 3, 4, 9]) == [(3, 5), (7, 8), (9, 10)]
    assert block_removal.runs_of([]) == []


def test_the_last_block_may_go_when_allowed(tmp_path: Path) -> None:
    model = random_llava(num_hidden_layers=4)
    structure = removed_from(
        model, random_proxy(), "blocks_by_influence", 0.75, keep_last_block=False
    )
    assert structure["removed_blocks"] == [1, 2, 3]
    check_decoding_and_reload(model, tmp_path / "left")


@pytest.mark.parametrize("update", [*BY_COSINE, "blocks_by_loss"])
def test_removing_everything_is_refused(update: str, proxy: ProxyData) -> None:
    with pytest.raises(UserError, match="removes 3 of 3 decoder blocks; at most 1 can go"):
        removed_from(random_llava(), proxy, update, 1.0)


@pytest.mark.parametrize("update", [*BY_COSINE, "blocks_by_loss", "heads_and_channels"])
def test_patterns_are_refused(update: str, adapter: Adapter, proxy: ProxyData) -> None:
    # `methods` of these parameters takes a pattern: the method itself must refuse it
    parameters = Parameters(obs=ObsParameters(pattern="2:4"), methods=("magnitude",))
    with pytest.raises(UserError, match="pattern 2:4 says which weights"):
        prune_structure(adapter, proxy, update, 0.5, parameters)


def test_the_record_is_json_and_says_what_is_gone(adapter: Adapter, proxy: ProxyData) -> None:
    record = prune_structure(adapter, proxy, "blocks_by_important_tokens", 1 / 3, Parameters())
    assert json.loads(json.dumps(record)) == record
    assert record["achieved_sparsity"] == pytest.approx(1 / 3)
    assert removed_share(record["matrices"], record["structure"]) == record["achieved_sparsity"]
    assert set(record["policy"].values()) == {0.0}


def test_a_wrong_record_is_found(adapter: Adapter, proxy: ProxyData) -> None:
    loss = ProxyLoss(adapter, proxy, "kl", "text")
    left, rows, structure = remove_parts(
        adapter, proxy, "blocks_by_influence", 1 / 3, Parameters(), loss
    )
    with pytest.raises(UserError, match="its record says 7"):
        verify_structure(left, [{**row, "size": 7, "zeros": 0} for row in rows], structure)
    with pytest.raises(UserError, match="its record keeps 3"):
        verify_structure(left, rows, {**structure, "kept_blocks": [0, 1, 2]})
    left.blocks[1].self_attn.layer_idx = 2  # type: ignore[union-attr]
    with pytest.raises(UserError, match="writes to cache slot"):
        verify_structure(left, rows, structure)
