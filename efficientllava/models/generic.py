"""A family found by the structure of its model: for checkpoints whose type is not in the table.

What is found stands in config.json under `efficientllava_family`, so that every later stage, and
whoever loads the pruned checkpoint, reads the same entry.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from efficientllava.errors import UserError
from efficientllava.files import write_json
from efficientllava.models.checkpoint import load_processor
from efficientllava.models.families import DECODER_GROUPS, FOUND, Family
from efficientllava.models.skeleton import reads_images, without_weights
from efficientllava.models.source import CHECKPOINT_FILES
from efficientllava.models.weight_files import weight_files
from efficientllava.reading import read_model_config

logger = logging.getLogger(__name__)

NOT_TEXT = ("vision", "visual", "image", "audio", "encoder", "tower", "vit")
"""Parts of module names that belong to no language model."""

BRIDGES = ("projector", "connector", "merger", "aligner", "embed_vision", "adapter", "abstractor")
"""Parts of the names of what lies between vision tower and language model."""

SMALL = 0.02
"""Linear layers of an unknown name below this share of their block's weights stay dense."""


def find_family(model: nn.Module, image_token: str) -> Family:
    """Find decoder, blocks, matrices and projector of a model by its structure.

    The blocks are the list of modules with most weights outside of vision and sound. Linear layers
    of names that families use share a Hessian as there; a layer of another name gets its own, or
    stays dense if it is small.

    Args:
        model: may be without weights (on torch's meta device).
        image_token: of its processor; empty for a model that reads text only.

    Raises:
        UserError: there is no such list, or no projector although the model reads images.
    """
    lists = [
        (sum(value.numel() for value in module.parameters()), path)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not any(word in path for word in NOT_TEXT)
    ]
    if not lists or max(lists)[0] == 0 or "." not in max(lists)[1]:
        raise UserError(
            "found no list of decoder blocks",
            where=f"model of type {_model_type(model)}",
            remedy="write a Family for it (docs/models.md)",
        )
    language_model, blocks = max(lists)[1].rsplit(".", 1)
    groups, dense = _groups(model.get_submodule(max(lists)[1]))
    projectors = _bridges(model, language_model) if image_token else []
    if image_token and not projectors:
        raise UserError(
            f"found no projector; its name would hold one of {', '.join(BRIDGES)}",
            where=f"model of type {_model_type(model)}",
            remedy="write a Family for it (docs/models.md)",
        )
    family = Family(
        language_model=language_model,
        projector=tuple(projectors) if image_token else None,
        image_token=image_token,
        blocks=blocks,
        input_groups=groups,
        dense=dense,
        note="found by structure",
    )
    logger.warning(
        "%s is no known family. Found by structure, please check: blocks %s, matrices %s, left "
        "dense: %s, projector %s, image token %s",
        _model_type(model),
        max(lists)[1],
        "; ".join(", ".join(names) for names in groups),
        ", ".join(dense) or "nothing",
        ", ".join(projectors) or "none",
        image_token or "none",
    )
    return family


def _model_type(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def _groups(blocks: nn.Module) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Input groups and the linear layers that stay dense, over all blocks."""
    sizes: dict[str, float] = {}
    for block in blocks.children():
        total = sum(value.numel() for value in block.parameters())
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                sizes[name] = max(sizes.get(name, 0.0), module.weight.numel() / total)
    known = [tuple(name for name in group if name in sizes) for group in DECODER_GROUPS]
    named = {name for group in known for name in group}
    others = [name for name in sizes if name not in named]
    dense = tuple(name for name in others if sizes[name] < SMALL)
    alone = [(name,) for name in others if name not in dense]
    return (*(group for group in known if group), *alone), dense


def _bridges(model: nn.Module, language_model: str) -> list[str]:
    """Outermost modules between the vision tower and the language model, by name."""
    found: list[str] = []
    for path, module in model.named_modules():
        last = path.rsplit(".", 1)[-1]
        inside = path.startswith(f"{language_model}.") or any(
            path.startswith(f"{other}.") for other in found
        )
        if any(word in last for word in BRIDGES) and not inside and list(module.parameters()):
            found.append(path)
    return found


def with_found_family(given: Path, folder: Path) -> Path:
    """A checkpoint like the given one whose config.json holds the family found by structure.

    Its other files are hard links to the given ones, or copies on another file system.

    Args:
        folder: made here; must not exist.

    Raises:
        UserError: see `find_family`; transformers cannot build the model.
    """
    weight_files(given)
    takes_images = reads_images(given)
    processor: Any = load_processor(given) if takes_images else None
    image_token = "" if processor is None else str(processor.image_token)
    family = find_family(without_weights(given, takes_images), image_token)
    folder.mkdir(parents=True)
    for file in sorted({path for pattern in CHECKPOINT_FILES for path in given.glob(pattern)}):
        if file.name != "config.json":
            place = folder / file.relative_to(given)
            place.parent.mkdir(exist_ok=True)
            _link(file, place)
    content = read_model_config(given)
    write_json(folder / "config.json", content | {FOUND: json.loads(json.dumps(asdict(family)))})
    return folder


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
