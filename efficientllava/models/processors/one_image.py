"""Whether processor and model agree about images: one of each shape goes through both."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from efficientllava.data.encoding import encode_prompt
from efficientllava.data.prompts import chat_prompt
from efficientllava.errors import UserError
from efficientllava.models.batches import batch_inputs
from efficientllava.models.families import adapter_for, family_of

SHAPES = ((64, 32), (32, 64))
"""Width and height: grids of tiles differ most where images are wide and tall."""
GRIDS = "image_grid_pinpoints"
REMEDY = "take processor files and config.json from the same checkpoint"


class _Reached(Exception):
    """The decoder's input is there: the rest of the forward pass says nothing of images."""


def check_images(processor: Any, model: PreTrainedModel, where: str) -> None:
    """Let a wide and a tall image go through processor, vision tower and projector.

    Decoder blocks do not run. Nothing is done for a model that reads text only.

    Raises:
        UserError: processor and config.json name different grids of tiles (both are named), or the
            model refuses what the processor gives.
    """
    family = family_of(model.config)
    if not family.takes_images:
        return
    grids: list[Any] = [
        getattr(part, GRIDS, None)
        for part in (getattr(processor, "image_processor", None), model.config)
    ]
    if None not in grids and sorted(map(list, grids[0])) != sorted(map(list, grids[1])):
        raise UserError(
            f"the image grids differ: the processor's {GRIDS} are {_listed(grids[0])}, those of "
            f"config.json {_listed(grids[1])}",
            where=where,
            remedy=REMEDY,
        )
    prompt = chat_prompt(processor, "What is this?", family.image_token)
    for width, height in SHAPES:
        image = Image.new("RGB", (width, height), (120, 60, 180))
        try:
            sample = encode_prompt(processor, prompt, image)
            _up_to_decoder(model, batch_inputs(model, processor, [sample], side="right"))
        except (ValueError, RuntimeError, IndexError, KeyError, TypeError) as error:
            raise UserError(
                f"an image of {width} x {height} pixels does not go through processor and model: "
                f"{str(error).strip().splitlines()[0]}",
                where=where,
                remedy=REMEDY,
            ) from error


@torch.no_grad()
def _up_to_decoder(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
        raise _Reached

    handle = adapter_for(model).language_model.register_forward_pre_hook(stop)
    try:
        model(**inputs, use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()


def _listed(grids: Any) -> str:
    return "[" + ", ".join(f"{height} x {width}" for height, width in grids) + "]"
