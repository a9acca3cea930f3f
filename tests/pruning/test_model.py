"""Database, stitching, sequential pruning and the proxy loss on a tiny LLaVA."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllava.calibration.block_walk import BlockWalk, calibration_inputs
from efficientllava.calibration.proxy_loss import ProxyLoss
from efficientllava.data.proxy import ProxyData
from efficientllava.database.build import build_database
from efficientllava.database.solutions import Database, open_database
from efficientllava.errors import UserError
from efficientllava.files import folder_digest
from efficientllava.kernels.hessian import accumulate, empty, inverse_factor
from efficientllava.kernels.obs import prune
from efficientllava.models.families import Adapter, adapter_for
from efficientllava.parameters import ObsParameters
from efficientllava.pruning.sequential import (
    achieved_sparsity,
    prune_model,
    stitch_model,
    verify,
)
from tests.conftest import random_llava, random_proxy

LEVELS = [0.4, 0.5, 0.6]


def uniform(adapter: Adapter, ratio: float) -> dict[str, float]:
    return {matrix.name: ratio for matrix in adapter.matrices}


def built(folder: Path, adapter: Adapter, proxy: ProxyData, **changes: Any) -> Database:
    parameters = ObsParameters(**changes)
    build_database(adapter, proxy, LEVELS, parameters, folder / "db", folder / "work", {})
    return open_database(folder / "db", LEVELS)


def test_seven_matrices_and_four_inputs_a_block(adapter: Adapter) -> None:
    assert len(adapter.matrices) == 21
    assert [len(group) for group in adapter.of_block(1)] == [3, 1, 2, 1]
    assert sum(adapter.sizes) == 3 * (4 * 24 * 24 + 3 * 24 * 40)


def test_hessians_equal_those_of_hooks_on_the_whole_model(
    adapter: Adapter, proxy: ProxyData
) -> None:
    """The reference runs the whole multimodal model and gathers every Linear's inputs."""
    assert proxy.pairs is not None
    gathered: dict[str, list[torch.Tensor]] = {}
    handles = []
    mask = [torch.ones(8, 16, dtype=torch.bool), proxy.pairs.inputs["attention_mask"].bool()]
    current = [0]
    for matrix in adapter.matrices:

        def keep(module: torch.nn.Module, args: Any, name: str = matrix.name) -> None:
            gathered.setdefault(name, []).append(args[0][mask[current[0]]].double())

        handles.append(matrix.module.register_forward_pre_hook(keep))
    with torch.no_grad():
        adapter.model(input_ids=proxy.segments)
        current[0] = 1
        adapter.model(**proxy.pairs.inputs)
    for handle in handles:
        handle.remove()
    walk = BlockWalk(adapter, calibration_inputs(adapter, proxy, "text_and_pairs"))
    for block in range(3):
        for group in walk.hessians(block):
            for matrix in group.matrices:
                inputs = torch.cat(gathered[matrix.name])
                assert group.tokens == len(inputs)
                exact = 2 / len(inputs) * inputs.T @ inputs
                torch.testing.assert_close(group.hessian.double(), exact, rtol=1e-4, atol=1e-5)
        walk.advance(block)


def test_text_calibration_leaves_pairs_out(adapter: Adapter, proxy: ProxyData) -> None:
    walk = BlockWalk(adapter, calibration_inputs(adapter, proxy, "text"))
    assert walk.hessians(0)[0].tokens == 8 * 16


def test_a_walk_over_a_dense_model_is_one_pass(adapter: Adapter, proxy: ProxyData) -> None:
    """Besides finding out what arguments blocks get, for which only the first one runs."""
    runs = [0] * len(adapter.blocks)
    for number, block in enumerate(adapter.blocks):

        def count(module: torch.nn.Module, args: Any, output: Any, number: int = number) -> None:
            runs[number] += 1

        block.mlp.register_forward_hook(count)  # type: ignore[union-attr]
    inputs = calibration_inputs(adapter, proxy, "text_and_pairs")
    kept, again = BlockWalk(adapter, inputs), BlockWalk(adapter, inputs)
    assert runs == [4, 0, 0]  # two batches, two walks
    hessians = [[], []]  # type: list[list[torch.Tensor]]
    for walk, found in zip((kept, again), hessians, strict=True):
        for block in range(3):
            groups = walk.hessians(block, keep_outputs=walk is kept)
            found += [group.hessian for group in groups]
            walk.advance(block)
    assert runs == [4 + 2 + 4, 2 + 4, 2 + 4]
    assert all(torch.equal(a, b) for a, b in zip(*hessians, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept.hidden, again.hidden, strict=True))
    assert all("forward" not in vars(block) for block in adapter.blocks)


def test_database_records_what_it_holds(tmp_path: Path, adapter: Adapter, proxy: ProxyData) -> None:
    database = built(tmp_path, adapter, proxy)
    for matrix in adapter.matrices:
        record = database.manifest["matrices"][matrix.name]
        errors = []
        for level in LEVELS:
            solution = database.solution(matrix.name, level)
            row = record["levels"][f"{level:.4f}"]
            assert int((solution == 0).sum()) == row["zeros"] == round(level * matrix.size)
            assert database.norm_ratio(matrix.name, level) == pytest.approx(
                float(solution.norm() / matrix.weight.norm()), rel=1e-5
            )
            errors.append(row["relative_error"])
        assert errors == sorted(errors)


def test_database_goes_on_after_a_kill(tmp_path: Path, adapter: Adapter, proxy: ProxyData) -> None:
    built(tmp_path / "whole", adapter, proxy)
    parameters, blocks = ObsParameters(), []

    class Killed(Exception):
        pass

    def killed(event: Any) -> None:
        if event.done == 2:
            raise Killed

    target = tmp_path / "db"
    with pytest.raises(Killed):
        build_database(adapter, proxy, LEVELS, parameters, target, tmp_path / "w", {}, killed)
    assert not target.exists()
    left = sorted(path.name for path in (tmp_path / "w").glob("*/*.safetensors"))
    assert left == ["block-000.safetensors", "block-001.safetensors"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "w").glob("*/*.safetensors")}
    build_database(adapter, proxy, LEVELS, parameters, target, tmp_path / "w", {}, blocks.append)
    assert (target / "block-000.safetensors").stat().st_mtime_ns in times.values()
    assert folder_digest(target) == folder_digest(tmp_path / "whole" / "db")


def test_level_outside_the_database(tmp_path: Path, adapter: Adapter, proxy: ProxyData) -> None:
    built(tmp_path, adapter, proxy)
    with pytest.raises(UserError, match=r"\[0\.7\] are not in the database"):
        open_database(tmp_path / "db", [0.7])


def test_first_block_of_sequential_pruning_equals_the_database(
    tmp_path: Path, adapter: Adapter, proxy: ProxyData
) -> None:
    """Later blocks differ: they are calibrated on pruned outputs."""
    database = built(tmp_path, adapter, proxy)
    prune_model(adapter, proxy, "obs", uniform(adapter, 0.5), ObsParameters())
    same = [
        torch.equal(matrix.weight, database.solution(matrix.name, 0.5))
        for matrix in adapter.matrices
    ]
    assert all(same[:7])
    assert not any(same[7:])


def test_sequential_pruning_equals_a_naive_one(adapter: Adapter) -> None:
    """The reference runs the whole pruned-so-far model again for every block."""
    proxy = random_proxy(pairs=0)
    prune_model(adapter, proxy, "obs", uniform(adapter, 0.5), ObsParameters())
    naive = adapter_for(random_llava())
    for block in range(3):
        matrices = [matrix for matrix in naive.matrices if matrix.block == block]
        inputs: dict[str, torch.Tensor] = {}
        handles = [
            matrix.module.register_forward_pre_hook(
                lambda module, args, name=matrix.name, into=inputs: into.update(
                    {name: args[0].flatten(0, 1)}
                )
            )
            for matrix in matrices
        ]
        with torch.no_grad():
            naive.model(input_ids=proxy.segments)
        for handle in handles:
            handle.remove()
        for matrix in matrices:
            hessian = empty(matrix.module.in_features)
            accumulate(hessian, 0, inputs[matrix.name])
            matrix.weight.copy_(prune(matrix.weight, inverse_factor(hessian), 0.5))
    for expected, matrix in zip(naive.matrices, adapter.matrices, strict=True):
        agree = ((expected.weight == 0) == (matrix.weight == 0)).float().mean()
        assert agree > 0.99, matrix.name
        torch.testing.assert_close(matrix.weight, expected.weight, rtol=1e-2, atol=1e-2)


def test_policy_is_met_to_the_weight(adapter: Adapter, proxy: ProxyData) -> None:
    policy = {m.name: 0.3 + 0.02 * i for i, m in enumerate(adapter.matrices)}
    rows = prune_model(adapter, proxy, "obs", policy, ObsParameters())
    verify(adapter, rows)
    wanted = sum(round(policy[m.name] * m.size) for m in adapter.matrices)
    assert achieved_sparsity(rows) == wanted / sum(adapter.sizes)
    adapter.matrices[4].weight[0, 0] = 1.0 if adapter.matrices[4].weight[0, 0] == 0 else 0.0
    with pytest.raises(UserError, match=adapter.matrices[4].name):
        verify(adapter, rows)


def test_only_prunable_matrices_change(adapter: Adapter, proxy: ProxyData) -> None:
    before = random_llava().state_dict()
    prune_model(adapter, proxy, "obs", uniform(adapter, 0.5), ObsParameters())
    pruned = {f"{matrix.name}.weight" for matrix in adapter.matrices}
    for name, tensor in adapter.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in pruned), name


def test_obs_beats_magnitude_on_its_calibration_loss() -> None:
    """The structure is learnt, not random: the head is fitted to the text first."""
    proxy = random_proxy(segments=16)
    losses = {}
    for update in ("none", "magnitude", "obs"):
        adapter = adapter_for(random_llava())
        loss = ProxyLoss(adapter, proxy, "kl", "text_and_pairs")
        rows = prune_model(adapter, proxy, update, uniform(adapter, 0.5), ObsParameters())
        losses[update] = loss(adapter.language_model)
        assert all((row["relative_error"] is None) == (update != "obs") for row in rows)
    assert losses["none"] == pytest.approx(0.0, abs=1e-6)
    assert losses["obs"] < losses["magnitude"]


def test_pattern_in_a_whole_model(adapter: Adapter, proxy: ProxyData) -> None:
    parameters = ObsParameters(pattern="2:4", block_size=8)
    verify(adapter, prune_model(adapter, proxy, "obs", uniform(adapter, 0.5), parameters))
    for matrix in adapter.matrices:
        groups = matrix.weight.view(matrix.weight.shape[0], -1, 4)
        assert ((groups == 0).sum(dim=2) == 2).all()


def test_proxy_loss_against_a_plain_forward_pass(adapter: Adapter, proxy: ProxyData) -> None:
    assert proxy.pairs is not None
    with torch.no_grad():
        text = adapter.model(input_ids=proxy.segments).logits[:, :-1].double().log_softmax(-1)
        nll = -text.gather(2, proxy.segments[:, 1:, None]).mean()
        answers = adapter.model(**proxy.pairs.inputs).logits[:, :-1].double().log_softmax(-1)
    wanted = proxy.pairs.labels[:, 1:]
    picked = answers.gather(2, wanted.clamp(min=0)[..., None])[..., 0][wanted != -100]
    positions = proxy.segments[:, 1:].numel() + picked.numel()
    expected = (float(nll) * proxy.segments[:, 1:].numel() - float(picked.sum())) / positions
    loss = ProxyLoss(adapter, proxy, "nll", "text_and_pairs")
    assert loss(adapter.language_model) == pytest.approx(expected, rel=1e-5)
    loss = ProxyLoss(adapter, proxy, "nll", "text")
    assert loss(adapter.language_model) == pytest.approx(float(nll), rel=1e-5)


def test_kl_of_the_dense_model_is_zero_and_grows(
    tmp_path: Path, adapter: Adapter, proxy: ProxyData
) -> None:
    database = built(tmp_path, adapter, proxy)
    loss = ProxyLoss(adapter, proxy, "kl", "text_and_pairs")
    values = [loss(adapter.language_model)]
    for level in LEVELS:
        stitch_model(adapter, database, uniform(adapter, level))
        values.append(loss(adapter.language_model))
    assert values[0] == pytest.approx(0.0, abs=1e-6)
    assert values == sorted(values)


def test_library_stands_alone() -> None:
    """Importing the method loads none of the tools around it."""
    code = (
        "import sys, efficientllava.allocation.search.algorithm\n"
        "assert not {'prefect', 'dvc', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_magnitude_and_none_run_nothing_through_the_model(
    adapter: Adapter, proxy: ProxyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("calibration data is walked")

    monkeypatch.setattr("efficientllava.pruning.sequential.block_walk", refused)
    policy = {matrix.name: 0.3 for matrix in adapter.matrices}
    finished: list[int] = []
    rows = prune_model(
        adapter, proxy, "magnitude", policy, ObsParameters(), finished=finished.append
    )
    assert finished == [0, 1, 2]
    assert all(row["relative_error"] is None for row in rows)
    dense = adapter_for(random_llava())
    for matrix, other, row in zip(adapter.matrices, dense.matrices, rows, strict=True):
        order = other.weight.abs().flatten().argsort()
        assert int((matrix.weight == 0).sum()) == row["zeros"] == round(0.3 * matrix.size)
        assert not matrix.weight.flatten()[order[: row["zeros"]]].any()
    with pytest.raises(AssertionError, match="walked"):
        prune_model(adapter, proxy, "wanda", policy, ObsParameters())
