"""Mixtures of experts: every expert is a matrix of its own; the router stays."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from efficientllava.allocation.context import Allocation
from efficientllava.calibration.block_walk import FEW_TOKENS, BlockWalk, calibration_inputs
from efficientllava.calibration.opened import OpenModel
from efficientllava.data.proxy import ProxyData
from efficientllava.models.checkpoint import load_model, save_checkpoint
from efficientllava.models.families import adapter_for, replace_weights, text_inputs
from efficientllava.parameters import Parameters
from efficientllava.pruning.masked import prune_masked
from tests.models.families import TINY

FAMILIES = ["qwen3_vl_moe", "qwen3_5_moe", "qwen3_moe", "mixtral", "olmoe"]


def segments(count: int) -> ProxyData:
    generator = torch.Generator().manual_seed(0)
    return ProxyData(torch.randint(10, 40, (count, 16), generator=generator), None)


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "obs"])
@pytest.mark.parametrize("name", FAMILIES)
def test_zeros_are_exact_per_expert(name: str, criterion: str, tmp_path: Path) -> None:
    model, processor = TINY[name].build()
    adapter = adapter_for(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    policy = {m.name: 0.25 if i % 2 else 0.5 for i, m in enumerate(adapter.matrices)}
    record = prune_masked(
        OpenModel(adapter), segments(8), criterion, Allocation(policy, "uniform"), Parameters()
    )
    save_checkpoint(model, processor, tmp_path / "pruned")
    saved = adapter_for(load_model(tmp_path / "pruned"))
    experts = [matrix for matrix in saved.matrices if matrix.expert is not None]
    assert len(experts) == 2 * 4 * len(saved.blocks)
    for matrix in saved.matrices:
        zeros = round(policy[matrix.name] * matrix.size)
        assert int((matrix.weight == 0).sum()) == zeros, matrix.name
    pruned = {matrix.parameter for matrix in adapter.matrices}
    after = saved.model.state_dict()
    assert any(key.endswith("mlp.gate.weight") for key in after.keys() - pruned)
    for key in after.keys() - pruned:
        assert torch.equal(after[key], before[key]), key
    assert record["achieved_sparsity"] == pytest.approx(
        sum(policy[m.name] * m.size for m in saved.matrices) / sum(saved.sizes), abs=1e-3
    )


def test_experts_without_tokens_are_pruned_by_magnitude_and_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No token goes to expert 3: OBS prunes it by magnitude, and says so."""
    model, _ = TINY["qwen3_moe"].build()
    adapter = adapter_for(model)
    for block in adapter.blocks:
        block.get_submodule("mlp.gate").register_forward_hook(
            lambda module, args, output: (
                output[0],
                output[1],
                torch.where(output[2] == 3, (output[2] + 1) % 3, output[2]),
            )
        )
    dense = {matrix.name: matrix.weight.clone() for matrix in adapter.matrices}
    policy = {matrix.name: 0.5 for matrix in adapter.matrices}
    with caplog.at_level(logging.WARNING):
        record = prune_masked(
            OpenModel(adapter), segments(16), "obs", Allocation(policy, "uniform"), Parameters()
        )
    assert f"fewer than {FEW_TOKENS} calibration tokens" in caplog.text
    rows = {row["name"]: row for row in record["matrices"]}
    for matrix in adapter.matrices:
        assert ("few_tokens" in rows[matrix.name]) == (matrix.expert == 3), matrix.name
        if matrix.expert == 3:
            assert rows[matrix.name]["few_tokens"] == 0
            old, new = dense[matrix.name], matrix.weight
            assert torch.equal(new[new != 0], old[new != 0])
            assert old[new == 0].abs().max() <= old[new != 0].abs().min()


def test_replaced_experts_leave_the_old_weights_as_they_were() -> None:
    model, _ = TINY["qwen3_moe"].build()
    matrices = [m for m in adapter_for(model).matrices if m.expert is not None][:4]
    old = [matrix.weight for matrix in matrices]
    copies = [weight.clone() for weight in old]
    replace_weights([(matrix, torch.zeros_like(matrix.weight)) for matrix in matrices])
    assert all(torch.equal(a, b) for a, b in zip(old, copies, strict=True))
    assert all(int(matrix.weight.count_nonzero()) == 0 for matrix in matrices)
    with pytest.raises(ValueError, match="experts.0.gate_up_proj"):
        matrices[0].replace(torch.zeros(2, 2))


@pytest.mark.parametrize("name", TINY)
def test_replayed_blocks_give_the_model_s_own_outputs(name: str) -> None:
    """To the bit: also with features between blocks, shared keys and values, linear attention."""
    model, _ = TINY[name].build()
    adapter = adapter_for(model)
    outputs: list[torch.Tensor] = []
    for block in adapter.blocks:
        block.register_forward_hook(
            lambda module, args, output: outputs.append(
                output[0] if isinstance(output, tuple) else output
            )
        )
    proxy = segments(3)
    with torch.no_grad():
        model(**text_inputs(model, proxy.segments), use_cache=False)
    own = list(outputs)
    walk = BlockWalk(adapter, calibration_inputs(adapter, proxy, "text"))
    for block, expected in enumerate(own):
        [(_, output)] = walk.outputs(block)
        assert torch.equal(output, expected)
        walk.advance(block)
