"""A card for the tests of this folder, which are skipped where there is none.

EFFICIENTLLAVA_TEST_CARD=cpu runs them on the CPU, to try the tests themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from efficientllava.offload.devices import open_device


@pytest.fixture
def card() -> Iterator[torch.device]:
    """The device, with float32 kept float32; every test frees what it took."""
    name = os.environ.get("EFFICIENTLLAVA_TEST_CARD", "cuda")
    if name != "cpu" and not torch.cuda.is_available():
        built = torch.version.cuda
        why = "torch was built for the CPU alone" if built is None else "torch sees no GPU"
        pytest.skip(f"needs a CUDA card: {why}")
    before = torch.are_deterministic_algorithms_enabled()
    device = open_device(name)
    yield device
    torch.use_deterministic_algorithms(before)
    if device.type == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture
def cuda(card: torch.device) -> torch.device:
    """As `card`, for what only CUDA has."""
    if card.type != "cuda":
        pytest.skip("streams and graphs are CUDA's")
    return card
