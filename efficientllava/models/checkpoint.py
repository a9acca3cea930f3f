"""Transformers checkpoints: safetensors only, checked before they are trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from efficientllava.errors import UserError
from efficientllava.files import read_json, replacing, write_json
from efficientllava.models.adapter import require_family
from efficientllava.models.image_tokens import check_image_size, fit_image_tokens
from efficientllava.models.llava_images import use_original_images
from efficientllava.models.still_images import processor_class

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order, each opened once to see that it is whole.

    Raises:
        UserError: no folder, no config.json, no safetensors (or only pickles), a shard missing
            or truncated.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("no such model folder", where=str(folder))
    if not (folder / "config.json").is_file():
        raise UserError(
            "the model folder has no config.json",
            where=str(folder),
            remedy="give a folder saved by transformers' save_pretrained",
        )
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        what = f"only pickled weights ({', '.join(pickled)})" if pickled else "no safetensors"
        raise UserError(
            f"the model folder holds {what}; pickles are never loaded",
            where=str(folder),
            remedy="save it again with save_pretrained(..., safe_serialization=True)",
        )
    for file in files:
        if not file.is_file():
            raise UserError(
                f"shard {file.name} is missing", where=str(folder), remedy="download it again"
            )
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"not a complete safetensors file ({error})",
                where=str(file),
                remedy="copy or download the file again",
            ) from error
    return files


def check_checkpoint(folder: Path) -> None:
    """Check a checkpoint without loading its weights.

    Raises:
        UserError: as `weight_files`, or the model's family is unknown to us.
    """
    weight_files(folder)
    require_family(str(read_json(Path(folder) / "config.json").get("model_type")))


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a vision-language model in evaluation mode on the CPU.

    Raises:
        UserError: as `check_checkpoint`; weights missing or of another shape than the
            configuration says; NaN or inf in a weight (named).
    """
    folder = Path(folder)
    check_checkpoint(folder)
    try:
        model, loading = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"transformers cannot load the model: {first}", where=str(folder)
        ) from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(str(key) for key in loading[problem]):
            raise UserError(
                f"{problem.replace('_', ' ')}: {', '.join(keys[:3])} ({len(keys)} in all)",
                where=str(folder),
                remedy="weights and config.json do not belong together",
            )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"weight {name} holds NaN or inf",
                where=str(folder),
                remedy="the checkpoint is damaged: get it again",
            )
    loaded: PreTrainedModel = model.eval()
    return loaded


def load_processor(folder: Path) -> ProcessorMixin:
    """Load a checkpoint's processor (tokenizer and image processor; PIL, no torchvision).

    The one place that decides how images are prepared: LLaVA-1.5's are padded as in its training
    (`llava_images`), and the number of image tokens is made to fit the vision tower.

    Raises:
        UserError: the folder holds none, or one that cannot be used.
    """
    folder = Path(folder)
    try:
        loader = processor_class(folder) or AutoProcessor
        processor: ProcessorMixin = loader.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, json.JSONDecodeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"no usable processor: {first}",
            where=str(folder),
            remedy="the folder needs the tokenizer and processor files of its model",
        ) from error
    if config.model_type == "llava":
        use_original_images(processor)
    fit_image_tokens(processor, config, str(folder))
    return processor


def check_tokenizer(processor: ProcessorMixin, model: PreTrainedModel, where: str) -> None:
    """Check that every token the tokenizer can give has an embedding in the model.

    Raises:
        UserError: the tokenizer, or the size of the images, does not fit the model.
    """
    check_image_size(processor, model.config, where)
    largest = max(processor.tokenizer.get_vocab().values())
    rows = model.get_input_embeddings().num_embeddings
    if largest >= rows:
        raise UserError(
            f"the tokenizer does not fit the model: its largest token id is {largest}, "
            f"the model has {rows} embeddings",
            where=where,
            remedy="use the tokenizer that was saved with the model",
        )
    image_token = getattr(model.config, "image_token_id", None)
    known = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    if image_token is not None and known != image_token:
        raise UserError(
            f"the tokenizer does not fit the model: the image token {processor.image_token!r} is "
            f"{known} for the tokenizer, {image_token} for the model",
            where=where,
            remedy="use the tokenizer that was saved with the model",
        )


def save_checkpoint(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    folder: Path,
    records: Mapping[str, Any] | None = None,
) -> None:
    """Save an ordinary transformers checkpoint, whole or not at all.

    Args:
        records: further JSON files by name, e.g. {"pruning.json": {...}}.
    """
    with replacing(Path(folder)) as temporary:
        temporary.mkdir()
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        for name, record in (records or {}).items():
            write_json(temporary / name, record)
