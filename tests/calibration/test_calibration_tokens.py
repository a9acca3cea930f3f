"""obs.calibration_tokens: which tokens a block's Hessians see, against loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from efficientllava.calibration.block_walk import block_walk
from efficientllava.calibration.visual_tokens import largest_share
from efficientllava.data.proxy import ProxyData
from efficientllava.models.families import Adapter
from efficientllava.parameters import ObsParameters


@torch.no_grad()
def loop_rows(adapter: Adapter, proxy: ProxyData, block: int, tokens: str) -> list[torch.Tensor]:
    """Inputs of q_proj at the tokens that are wanted, one position at a time."""
    model: Any = adapter.model
    assert proxy.pairs is not None
    module, layers = adapter.blocks[block], adapter.blocks
    seen: dict[str, torch.Tensor] = {}
    attention: Any = module.get_submodule("self_attn.q_proj")
    after = layers[block + 1] if block < 2 else model.model.language_model.norm
    handles = [
        attention.register_forward_pre_hook(lambda _m, args: seen.update(q=args[0])),
        module.register_forward_pre_hook(lambda _m, args: seen.update(before=args[0])),
        after.register_forward_pre_hook(lambda _m, args: seen.update(after=args[0])),
    ]
    rows = []
    for inputs in ({"input_ids": proxy.segments}, proxy.pairs.inputs):
        model(**inputs, use_cache=False)
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids))
        for sample in range(len(ids)):
            places = [p for p in range(ids.shape[1]) if mask[sample, p]]
            visual = [p for p in places if ids[sample, p] == 4]
            wanted = [p for p in places if ids[sample, p] != 4]
            if tokens == "all":
                wanted = places
            elif tokens == "text_and_drifting_visual":
                change = {}
                for p in visual:
                    a, b = seen["before"][sample, p].double(), seen["after"][sample, p].double()
                    change[p] = 1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
                most = sorted(visual, key=lambda p: -change[p])
                wanted += most[: math.ceil(0.3 * len(visual))]
            rows += [seen["q"][sample, p].double() for p in wanted]
    for handle in handles:
        handle.remove()
    return rows


@pytest.mark.parametrize("tokens", ["text", "all", "text_and_drifting_visual"])
def test_hessians_see_the_chosen_tokens(tokens: Any, adapter: Adapter, proxy: ProxyData) -> None:
    parameters = ObsParameters(calibration_tokens=tokens, drifting_share=0.3)
    walk = block_walk(adapter, proxy, parameters)
    for block in range(3):
        rows = torch.stack(loop_rows(adapter, proxy, block, tokens))
        group = walk.hessians(block)[0]
        assert group.tokens == len(rows)
        exact = 2 / len(rows) * rows.T @ rows
        torch.testing.assert_close(group.hessian.double(), exact, rtol=1e-4, atol=1e-5)
        walk.advance(block)


def test_the_largest_share_rounds_up_and_prefers_earlier_places() -> None:
    score = torch.tensor([[3.0, 3.0, 9.0, 1.0, 3.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    among = torch.tensor([[True, True, False, True, True], [False] * 5])
    chosen = largest_share(score, among, 0.5)
    assert chosen.tolist() == [[True, True, False, False, False], [False] * 5]
    assert largest_share(score, among, 0.51).sum() == 3
    assert torch.equal(largest_share(score, among, 1.0), among)
    # 0.1 * 30 is a little more than 3 in float64
    thirty = torch.ones(1, 30)
    assert largest_share(thirty, thirty.bool(), 0.1).sum() == 3
