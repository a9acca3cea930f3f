"""The projector's steps: gradient checkpointing changes memory and nothing else."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.autograd.graph import saved_tensors_hooks

from efficientllava.allocation.gradient_checkpointing import checkpointed
from efficientllava.allocation.search.projector import ProjectorEvolution
from efficientllava.calibration.proxy_loss import pair_loss_batches, remember_dense
from efficientllava.data.proxy import Pairs, ProxyData, build_pairs
from efficientllava.data.questions import Question
from efficientllava.models.families import FAMILIES, Adapter, adapter_for
from efficientllava.parameters import SearchParameters
from tests.conftest import random_llava, random_proxy
from tests.models.families import PICTURED


def evolution(adapter: Adapter, pairs: Pairs, checkpointing: bool) -> ProjectorEvolution:
    """Of candidates 0, 1, ... whose matrices are 0.9, 0.8, ... of the model's own."""
    proxy = ProxyData(torch.empty(0, 0, dtype=torch.int64), pairs)
    dense = remember_dense(adapter, adapter.head, pair_loss_batches(adapter, proxy))
    originals = [matrix.weight.clone() for matrix in adapter.matrices]

    def stitch(candidate: int) -> None:
        for matrix, original in zip(adapter.matrices, originals, strict=True):
            matrix.weight.copy_(original * (0.9 - 0.1 * candidate))

    # small enough to gain: tiny Gemmas answer with a loss near zero
    rate = 1e-7 if "gemma" in adapter.model.config.model_type else 1e-4
    parameters = SearchParameters(
        projector_steps=4, projector_learning_rate=rate, projector_batch=3
    )
    return ProjectorEvolution(adapter, pairs, stitch, dense, parameters, checkpointing)


def family_pairs(folder: Path, model: Any, processor: Any) -> Pairs:
    generator = np.random.default_rng(0)
    questions = []
    for index, (width, height) in enumerate([(20, 30), (40, 16), (16, 16), (30, 30), (17, 64)]):
        path = folder / f"{index}.png"
        pixels = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        choices = ("w2", "w3 w4")
        questions.append(
            Question(str(index), "w1 w1", choices, index % 2, "", path, "", "grade1", "train")
        )
    image_token = FAMILIES[model.config.model_type].image_token
    return build_pairs(questions, processor, len(questions), 0, image_token)


def test_a_projector_that_diverges_is_put_back(adapter: Adapter, proxy: ProxyData) -> None:
    half = adapter_for(adapter.model.half())
    assert half.projector is not None and proxy.pairs is not None
    evolves = evolution(half, proxy.pairs, checkpointing=False)
    evolves.parameters = SearchParameters(projector_steps=40, projector_learning_rate=10)
    before = [weight.clone() for weight in half.projector.parameters()]
    step = evolves.step([0.5, 0.5], Random(0))
    assert step.after is None and not step.kept
    assert all(map(torch.equal, before, half.projector.parameters()))


@pytest.mark.parametrize("name", PICTURED)
def test_checkpointing_moves_the_projector_to_the_same_bits(name: str, tmp_path: Path) -> None:
    moved, repeated = [], []
    for checkpointing in (False, True):
        model, processor = PICTURED[name].build()
        adapter = adapter_for(model)
        pairs = family_pairs(tmp_path, model, processor)
        before = [tensor.clone() for tensor in adapter.projector.state_dict().values()]
        evolved = evolution(adapter, pairs, checkpointing)
        evolved.held_out = evolved.training  # so that what was gained is seen and kept
        passes = [0]
        handle = adapter.blocks[0].register_forward_pre_hook(
            lambda *_, passes=passes: passes.__setitem__(0, passes[0] + 1)
        )
        step = evolved.step([0.5, 0.3, 0.2], Random(1))
        handle.remove()
        repeated.append(passes[0])
        after = [tensor.clone() for tensor in adapter.projector.state_dict().values()]
        assert step.kept and not all(map(torch.equal, before, after))
        moved.append((step, after))
    (plain, first), (saving, second) = moved
    assert plain == saving
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    # each of the four steps ran its blocks once more, and the hooks before them
    assert repeated[1] == repeated[0] + 4


def test_gradients_are_the_same_bits() -> None:
    gradients = []
    for checkpointing in (False, True):
        adapter, pairs = adapter_for(random_llava()), random_proxy().pairs
        assert pairs is not None
        evolved = evolution(adapter, pairs, checkpointing)
        adapter.model.requires_grad_(False)
        adapter.projector.requires_grad_(True)
        with checkpointed(adapter.blocks if checkpointing else []):
            total, _ = evolved._loss([0, 2, 5])
            total.backward()
        gradients.append([p.grad for p in adapter.projector.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])


def kept_bytes(adapter: Adapter, pairs: Pairs, checkpointing: bool) -> int:
    """What autograd keeps for the backward pass of one step beside the weights."""
    kept: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in adapter.model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    evolved = evolution(adapter, pairs, checkpointing)
    adapter.model.requires_grad_(False)
    adapter.projector.requires_grad_(True)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        with checkpointed(adapter.blocks if checkpointing else []):
            total, _ = evolved._loss(list(range(len(pairs))))
    assert total.requires_grad
    return sum(kept.values())


def test_without_it_memory_grows_with_every_block_and_with_it_hardly() -> None:
    pairs = random_proxy().pairs
    assert pairs is not None
    sizes: dict[bool, list[int]] = {False: [], True: []}
    for checkpointing, found in sizes.items():
        for blocks in (2, 6):
            adapter = adapter_for(random_llava(num_hidden_layers=blocks))
            found.append(kept_bytes(adapter, pairs, checkpointing))
    tokens, width, mlp = pairs.labels.numel(), 24, 40
    plain, saving = ((b - a) / 4 for a, b in sizes.values())
    # the formula of ProjectorEvolution, and a number here and there for each head and norm
    assert plain == pytest.approx(tokens * (6 * width + 3 * mlp) * 4, rel=0.1)
    # a block's input is held by the call that is to be repeated, which no hook sees
    assert saving <= tokens * width * 4


def test_blocks_and_gradients_are_as_before_after_an_exception() -> None:
    adapter, pairs = adapter_for(random_llava()), random_proxy().pairs
    assert pairs is not None
    evolved = evolution(adapter, pairs, True)
    classes = [type(block) for block in adapter.blocks]
    required = [p.requires_grad for p in adapter.model.parameters()]

    def stitch(candidate: int) -> None:
        if (
            adapter.projector.linear_1.weight.requires_grad
            and not adapter.model.lm_head.weight.requires_grad
        ):
            raise InterruptedError

    evolved.stitch = stitch
    with pytest.raises(InterruptedError):
        evolved.step([1.0], Random(0))
    assert [type(block) for block in adapter.blocks] == classes
    assert [p.requires_grad for p in adapter.model.parameters()] == required
    assert all(p.grad is None for p in adapter.model.parameters())
