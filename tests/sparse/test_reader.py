"""The reader that docs/sparse_format.md shows reads what is packed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from efficientllava.sparse import pack_checkpoint
from tests.sparse.packed import tiny_pruned

PAGE = Path(__file__).parents[2] / "docs" / "sparse_format.md"


def reader() -> Any:
    """`read_matrix`, as the page shows it."""
    source = next(
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if "def read_matrix" in block
    )
    assert source.split("def read_matrix")[1].strip().count("\n") <= 24
    names: dict[str, Any] = {}
    exec(compile(source, str(PAGE), "exec"), names)
    return names["read_matrix"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int8])
def test_the_reader_of_the_page_reads_every_matrix(dtype: torch.dtype, tmp_path: Path) -> None:
    read, int8 = reader(), dtype == torch.int8
    folder = tiny_pruned("llama", tmp_path / "dense", torch.float32 if int8 else dtype)
    settings = pack_checkpoint(folder, tmp_path / "packed", "int8" if int8 else None)
    weights = load_file(folder / "model.safetensors")
    for module in settings.modules:
        found, weight = read(str(tmp_path / "packed"), module), weights[f"{module}.weight"]
        if int8:
            step = weight.abs().amax(dim=1, keepdim=True).numpy() / 127
            assert (numpy.abs(found - weight.numpy()) <= step * 0.5001).all()
            continue
        bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
        same = found.view(f"int{8 * dtype.itemsize}") == weight.view(bits).numpy()
        assert same.all() and found.shape == tuple(weight.shape)


def test_the_reader_of_the_page_reads_each_matrix_of_a_stack(tmp_path: Path) -> None:
    read = reader()
    folder = tiny_pruned("qwen3_vl_moe", tmp_path / "dense", torch.float32)
    weights = load_file(folder / "model.safetensors")
    stacked = {
        name: weight.transpose(1, 2).contiguous()
        for name, weight in weights.items()
        if ".mlp.experts." in name
    }
    save_file(weights | stacked, folder / "model.safetensors", {"format": "pt"})
    settings = pack_checkpoint(folder, tmp_path / "packed")
    assert settings.stacked.keys() == stacked.keys() and len(stacked) == 4
    for name, weight in stacked.items():
        experts, _, parameter = name.rpartition(".")
        for expert, matrix in enumerate(weight):
            found = read(str(tmp_path / "packed"), f"{experts}.{expert}.{parameter}")
            assert (found.view("int32") == matrix.t().contiguous().view(torch.int32).numpy()).all()
