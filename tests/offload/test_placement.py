"""What fits where: against bytes counted by hand, and what a small model really holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from efficientllava.calibration.working_set import Tokens, calibration_bytes, search_bytes
from efficientllava.database.build import build_database
from efficientllava.database.solutions import open_database
from efficientllava.errors import UserError
from efficientllava.models.families import adapter_for
from efficientllava.offload.placement import (
    DecoderShape,
    Needs,
    choose_placement,
    needs_of,
    shape_of,
)
from efficientllava.parameters import ObsParameters
from tests.conftest import random_llava, random_proxy

GIB = 2**30
RATIOS = [0.4, 0.45, 0.5, 0.55, 0.6]

# GiB by hand, bfloat16. A block: (4 w^2 + 3 w m) 2 bytes; database: 5 levels x 2 bytes, or
# 5 x (1/8 + 1) bytes a weight; fixed: 304 million weights of CLIP-L, embeddings and head
SIZES = {
    "7B": (1.1, 32, 0.377, 60.3, 33.9),
    "13B": (1.2, 40, 0.591, 118.2, 66.5),
    "34B": (2.4, 60, 1.204, 361.0, 203.0),
    "72B": (5.3, 80, 1.853, 741.0, 417.0),
}


def needs(size: str, working: float, compact: bool) -> Needs:
    fixed, blocks, block, dense, small = SIZES[size]
    database = small if compact else dense
    values = (fixed, blocks * block, block, working, database)
    return Needs(*(int(value * GIB) for value in values))


@pytest.mark.parametrize(
    ("size", "working", "compact", "card", "blocks", "database"),
    [
        # 1.1 + 14 + 1 + 2 x 0.4 = 16.9; + 12.1 of blocks = 28.2; + 33.9 = 62.1; dense 88.4, 77.2
        ("7B", 14.0, True, 24, "streamed", "host"),
        ("7B", 14.0, False, 24, "streamed", "disk"),
        ("7B", 14.0, True, 32, "device", "host"),
        ("7B", 14.0, True, 79, "device", "device"),
        ("7B", 14.0, False, 79, "streamed", "device"),
        ("7B", 14.0, False, 139, "device", "device"),
        # 1.2 + 19 + 1 + 1.2 = 22.4; + 23.6 - 1.2 = 44.8; + 66.5 = 111.3
        ("13B", 19.0, True, 24, "streamed", "disk"),
        ("13B", 19.0, True, 79, "device", "disk"),
        ("13B", 19.0, True, 139, "device", "device"),
        # 2.4 + 35 + 1 + 2.4 = 40.8; + 72.2 - 2.4 = 110.6
        ("34B", 35.0, True, 79, "streamed", "disk"),
        ("34B", 35.0, True, 139, "device", "disk"),
        # 5.3 + 55 + 1 + 3.7 = 65
        ("72B", 55.0, True, 79, "streamed", "disk"),
        ("72B", 55.0, True, 139, "streamed", "disk"),
    ],
)  # fmt: skip
def test_the_fastest_that_fits(
    size: str, working: float, compact: bool, card: int, blocks: str, database: str
) -> None:
    found = choose_placement(needs(size, working, compact), card * GIB, host=100 * GIB)
    assert (found.blocks, found.database) == (blocks, database)
    assert found.device_bytes <= card * GIB


def test_what_is_missing_is_told() -> None:
    with pytest.raises(UserError, match=r"40\.8 GiB .* 24\.0 may be used: 16\.8 GiB are missing"):
        choose_placement(needs("34B", 35.0, True), 24 * GIB, 100 * GIB)


def test_without_checkpointing_blocks_are_streamed_rather() -> None:
    """Streamed blocks are always computed again, so that less is kept."""
    wanted = needs("7B", 14.0, True)
    assert choose_placement(wanted, 79 * GIB, 100 * GIB).blocks == "device"
    kept = Needs(**{**vars(wanted), "kept": 160 * GIB})
    assert choose_placement(kept, 79 * GIB, 100 * GIB).blocks == "streamed"


def test_working_set_of_7b_by_hand() -> None:
    shape = DecoderShape(4096, 11008, 32, 32064, 2, 20_979_712)
    tokens = Tokens(text=16384, pairs=256 * 704, answers=1024, batch=4096, step=32 * 704)
    activations = (6 * 4096 + 3 * 11008) * 2
    held = (16384 + 256 * 704) * 4096 * 2 + (16384 + 2 * 1024) * 32064 * 4
    step = 22528 * (32 * 4096 * 2 + 2 * activations) + 128 * 32064 * 16 + 16 * 20_979_712
    assert search_bytes(shape, tokens) == held + step + 16 * 4096 * 11008
    assert search_bytes(shape, tokens) == pytest.approx(15.1 * GIB, rel=0.01)
    few = search_bytes(shape, tokens, kl_tokens=64)
    assert search_bytes(shape, tokens) - few == (16384 + 1024) * (4 * 32064 - 12 * 64)
    # gate and up: 90.2 million weights, at 5 levels 11 times; two sets of solutions
    pruning = calibration_bytes(shape, tokens, 5)
    assert pruning == pytest.approx(
        3 * 196608 * 8192
        + 4 * (3 * 4096**2 + 11008**2)
        + 4 * (11 * 22016 * 4096 + 2 * 128 * 5 * 22016 + 4 * 4096**2)
        + 10 * 2 * 202375168
        + 4096 * activations
    )


@pytest.mark.parametrize("storage", ["dense", "compact"])
def test_bytes_of_a_model_and_its_database(tmp_path: Path, storage: str) -> None:
    model = random_llava().to(torch.bfloat16)
    adapter, levels = adapter_for(model), [0.4, 0.5, 0.6]
    wanted = needs_of(adapter, 0)
    assert wanted.fixed + wanted.blocks == sum(p.nbytes for p in model.parameters())
    assert wanted.largest_block == (4 * 24 * 24 + 3 * 24 * 40 + 2 * 24) * 2 == wanted.blocks // 3
    assert shape_of(adapter) == DecoderShape(24, 40, 3, 64, 2, 16 * 24 + 24 + 24 * 24 + 24)
    parameters = ObsParameters(storage=storage)  # type: ignore[arg-type]
    build_database(adapter, random_proxy(), levels, parameters, tmp_path / "d", tmp_path / "w", {})
    size = sum(tensor.nbytes for tensor in open_database(tmp_path / "d").tensors.values())
    # two bytes a weight and level, or a bit and those that stay
    of_a_level = [2 if storage == "dense" else 1 / 8 + 2 * (1 - level) for level in levels]
    assert size == pytest.approx(sum(adapter.sizes) * sum(of_a_level), rel=1e-3)
