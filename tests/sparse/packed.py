"""Tiny checkpoints whose prunable matrices have zeros, as they are and packed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from efficientllava.models.checkpoint import load_model, save_checkpoint
from efficientllava.models.families import adapter_for, require_family
from efficientllava.models.weight_files import weight_files
from tests.models.families import TINY


def zeros_in(model: PreTrainedModel, share: float = 0.5, seed: int = 0) -> PreTrainedModel:
    """Put zeros, and a few -0.0, into every prunable matrix."""
    generator = torch.Generator().manual_seed(seed)
    for matrix in adapter_for(model).matrices:
        weight = matrix.weight.clone()
        chance = torch.rand(weight.shape, generator=generator)
        weight[chance < share] = 0
        weight[chance > 0.98] = -0.0
        matrix.replace(weight)
    return model


def tiny_pruned(
    name: str, folder: Path, dtype: torch.dtype = torch.bfloat16, shard: int = 10**9
) -> Path:
    """The folder of a tiny model of a family with half of its matrices' weights zero."""
    model, processor = TINY[name].build()
    save_checkpoint(zeros_in(model.to(dtype)), processor, folder, shard=shard)
    return folder


def packable(folder: Path) -> int:
    """How many matrices of a checkpoint's files are linear layers or an expert's."""
    model = load_model(folder)
    names = {name for file in weight_files(folder) for name in load_file(file)}
    apart = not any(name.endswith("experts.gate_up_proj") for name in names)
    both = [each for each in adapter_for(model).matrices if each.name.endswith("gate_up_proj")]
    gates = sum(matrix.expert is not None for matrix in both) if apart else 0
    return len(adapter_for(model).matrices) + gates


def from_pretrained(folder: Path, **options: object) -> PreTrainedModel:
    """The model as a user of transformers loads it."""
    from efficientllava.files import read_json

    family = require_family(read_json(folder / "config.json")["model_type"])
    auto = AutoModelForImageTextToText if family.takes_images else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_pretrained(folder, **options)
    return model


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    """Of a prompt of five tokens."""
    out: torch.Tensor = model(input_ids=torch.tensor([[5, 9, 7, 6, 8]])).logits
    return out
