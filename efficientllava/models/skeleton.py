"""A checkpoint's model without its weights: built from config.json, compared with the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from efficientllava.errors import UserError, library_reads
from efficientllava.models.packed import is_packed
from efficientllava.models.weight_files import stored_names, weight_files
from efficientllava.reading import read_model_config, stored_numbers

LAYERS = ("num_hidden_layers", "num_layers", "depth")
"""Names of the number of layers in configurations."""

SAME = "take config.json and all weights from the same model"

MISSING = (0.1, 2**20)
"""Weights that files may lack before they are allocated: a share of those they hold, or a number.

Up to here transformers allocates and names them; beyond, the configuration is another model's.
"""


def model_class(takes_images: bool) -> Any:
    """transformers' class that loads such models."""
    return AutoModelForImageTextToText if takes_images else AutoModelForCausalLM


def read_config(folder: Path) -> Any:
    """A checkpoint's configuration, whose attention is transformers' choice of sdpa or eager.

    What config.json asks for (flash attention, where the model was trained) may not be installed,
    and block replay and exact comparisons rest on ours.

    Raises:
        UserError: as `read_model_config`; transformers cannot read it.
    """
    read_model_config(folder)
    with library_reads("transformers cannot read it", str(Path(folder) / "config.json"), SAME):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config._attn_implementation = None
    return config


def without_weights(folder: Path, takes_images: bool) -> PreTrainedModel:
    """A checkpoint's model on torch's meta device, whatever its family."""
    config = read_config(folder)
    failure = "transformers cannot build the model that it describes"
    with library_reads(failure, str(Path(folder) / "config.json"), SAME), torch.device("meta"):
        model: PreTrainedModel = model_class(takes_images).from_config(config)
    return model


def reads_images(folder: Path) -> bool:
    """Whether transformers knows a checkpoint's type as one that reads images beside text.

    Raises:
        UserError: transformers does not know the type.
    """
    model_type = str(read_model_config(folder).get("model_type"))
    if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return True
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return False
    raise UserError(
        f"transformers knows no image-text or language model of type {model_type!r}",
        where=str(Path(folder) / "config.json"),
        remedy="only types that transformers itself knows can be pruned: remote code never runs",
    )


def check_size(folder: Path, takes_images: bool) -> None:
    """Check that the files hold about as many weights as config.json describes.

    The model is built without memory for its weights.

    Raises:
        UserError: it describes far more.
    """
    files, file = weight_files(folder), folder / "config.json"
    where, remedy = str(file), SAME
    stored, names = sum(map(stored_numbers, files)), sum(map(stored_names, files))
    # before transformers reads it, which makes lists as long as these numbers say
    content = read_model_config(folder)
    parts: list[Any] = [content, content.get("text_config"), content.get("vision_config")]
    for part in parts:
        for layers in LAYERS if isinstance(part, dict) else ():
            count = part.get(layers)
            if isinstance(count, int) and count > names:
                raise UserError(
                    f"{layers} is {count}; the files hold {names} tensors", where, remedy
                )
    if is_packed(folder):
        return  # its config.json is the one that was written with the weights
    described = without_weights(folder, takes_images).num_parameters()
    share, number = MISSING
    if described - stored > max(share * stored, number):
        raise UserError(
            f"describes {described:,} weights, but the files hold {stored:,}", where, remedy
        )
