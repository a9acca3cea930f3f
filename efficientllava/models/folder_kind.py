"""Folders that people have beside transformers checkpoints, told apart before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efficientllava.errors import UserError
from efficientllava.models.packed import PACKED
from efficientllava.reading import read_json, read_model_config

ORIGINAL_LLAVA = ("llava_llama", "llava_mistral", "llava_mpt", "llava_qwen", "llava_gemma")
"""`model_type` in the layout of LLaVA's own repository, whose code transformers does not have."""

SECTIONS = (None, "text_config", "vision_config", "llm_config")
"""Where config.json may say that weights are quantised."""


def checkpoint_in(folder: Path) -> Path:
    """The checkpoint of a folder: the packed one of an export, else the folder itself."""
    packed = Path(folder) / "packed"
    return packed if (packed / "config.json").is_file() else Path(folder)


def require_plain_checkpoint(folder: Path) -> None:
    """Check that a folder holds a whole, unquantised checkpoint in transformers' layout.

    Raises:
        UserError: it is a LoRA adapter, GGUF, LLaVA's own layout or quantised; the message names
            the way to a checkpoint that can be pruned.
    """
    folder = Path(folder)
    config = read_model_config(folder) if (folder / "config.json").exists() else {}
    if (folder / "adapter_config.json").is_file() and not config:
        base = _object(folder / "adapter_config.json").get("base_model_name_or_path", "its base")
        raise UserError(
            f"a LoRA adapter of {base}, no whole model",
            where=str(folder),
            remedy="merge it first: PeftModel.from_pretrained(base, folder).merge_and_unload(), "
            "then save_pretrained to another folder",
        )
    if not config and list(folder.glob("*.gguf")):
        raise UserError(
            "GGUF files, which hold quantised weights",
            where=str(folder),
            remedy="give the safetensors checkpoint that they were made from",
        )
    model_type = str(config.get("model_type"))
    if model_type in ORIGINAL_LLAVA or model_type == "llava" and "mm_vision_tower" in config:
        raise UserError(
            f"LLaVA's own layout ({model_type}), which transformers does not read",
            where=str(folder / "config.json"),
            remedy="use the -hf layout: a llava-hf checkpoint of the hub, or convert it with "
            "transformers' convert_llava_weights_to_hf.py",
        )
    for section in SECTIONS:
        part: Any = config if section is None else config.get(section)
        quantised = part.get("quantization_config") if isinstance(part, Mapping) else None
        if not isinstance(quantised, Mapping):
            continue
        method = quantised.get("quant_method", "?")
        if method != PACKED:
            raise UserError(
                f"its weights are quantised ({method})",
                where=str(folder / "config.json"),
                remedy="prune the checkpoint of 16 or 32 bits that it was made from; quantise "
                "the pruned one afterwards",
            )


def _object(file: Path) -> dict[str, Any]:
    content = read_json(file)
    return content if isinstance(content, dict) else {}
