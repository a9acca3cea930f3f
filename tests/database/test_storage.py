"""The two forms of a stored matrix give the same bits back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientllava.data.proxy import ProxyData
from efficientllava.database import storage
from efficientllava.database.build import build_database
from efficientllava.database.offload import offload_database
from efficientllava.database.solutions import open_database
from efficientllava.errors import UserError
from efficientllava.models.families import Adapter
from efficientllava.parameters import ObsParameters


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 30), ratio=st.floats(0, 1))
def test_same_bits_come_back(rows: int, columns: int, ratio: float) -> None:
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    matrix = torch.randn(rows, columns, generator=generator)
    matrix[torch.rand(rows, columns, generator=generator) < ratio] = 0.0
    matrix[0, 0] = -0.0
    for dtype in (torch.float32, torch.bfloat16):
        wanted = matrix.to(dtype)
        tensors = storage.stored("w@0.5", wanted, "compact")
        got = storage.restored(tensors, "w@0.5", wanted.numel())
        assert torch.equal(got.view(torch.uint8), wanted.view(torch.uint8))
        turned = torch.full((columns, rows), 7.0, dtype=dtype).T
        storage.restore_into(tensors, "w@0.5", turned)
        assert torch.equal(turned, wanted)


def test_compact_size() -> None:
    matrix = torch.randn(64, 128)
    matrix[:, ::2] = 0.0
    tensors = storage.stored("w", matrix, "compact")
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert size == matrix.nbytes * (1 / 32 + 1 / 2)


def test_database_in_both_forms(tmp_path: Path, adapter: Adapter, proxy: ProxyData) -> None:
    databases, sizes = [], []
    for form in ("dense", "compact"):
        folder = tmp_path / form
        parameters = ObsParameters(storage=form)
        build_database(adapter, proxy, [0.4, 0.6], parameters, folder, tmp_path / "w", {})
        databases.append(open_database(folder, check=True))
        sizes.append(sum(path.stat().st_size for path in folder.glob("*.safetensors")))
    for matrix in adapter.matrices:
        for level in (0.4, 0.6):
            one, other = (each.solution(matrix.name, level) for each in databases)
            assert torch.equal(one, other)
            databases[1].put(matrix.name, level, matrix.weight)
            assert torch.equal(matrix.weight, one)
    assert sizes[1] < 0.75 * sizes[0]


def test_damaged_file_is_told(tmp_path: Path, adapter: Adapter, proxy: ProxyData) -> None:
    build_database(adapter, proxy, [0.5], ObsParameters(), tmp_path / "d", tmp_path / "w", {})
    path = tmp_path / "d" / "block-001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    opened = open_database(tmp_path / "d")
    for matrix in adapter.matrices:
        if matrix.block != 1:
            opened.put(matrix.name, 0.5, matrix.weight)
    with pytest.raises(UserError, match=r"block-001.* not the file that was written"):
        for matrix in adapter.matrices:
            opened.put(matrix.name, 0.5, matrix.weight)
    with pytest.raises(UserError, match="not the file that was written"):
        offload_database(opened, "host", torch.device("cpu"))
    with pytest.raises(UserError, match="not the file that was written"):
        open_database(tmp_path / "d", check=True)
