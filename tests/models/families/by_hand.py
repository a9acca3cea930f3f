"""Stand-ins for image processors that need torchvision, which has no build for torch's CPU wheels.

They give the tensors that the family's own processor gives for an image of 16 x 16 pixels; the
model, its vision tower and its projector are the family's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedTokenizerFast

SIZE = 16
PATCH = 4


def pixels(image: Any) -> torch.Tensor:
    """[3, 16, 16], between 0 and 1."""
    small = image.convert("RGB").resize((SIZE, SIZE))
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 255


def as_tiles(image: Any) -> dict[str, torch.Tensor]:
    """Cohere2-Vision: one tile."""
    return {"pixel_values": pixels(image)[None]}


def with_size(image: Any) -> dict[str, torch.Tensor]:
    """Mistral 3: the picture and its size."""
    return {"pixel_values": pixels(image)[None], "image_sizes": torch.tensor([[SIZE, SIZE]])}


def as_patches(image: Any) -> dict[str, torch.Tensor]:
    """LFM2-VL: patches in a row, their grid, and which of them are filled."""
    side = SIZE // PATCH
    patches = pixels(image).view(3, side, PATCH, side, PATCH).permute(1, 3, 2, 4, 0)
    return {
        "pixel_values": patches.reshape(1, side * side, -1),
        "spatial_shapes": torch.tensor([[side, side]]),
        "pixel_attention_mask": torch.ones(1, side * side, dtype=torch.long),
    }


@dataclass
class ByHand:
    """Encodes prompts as the family's processor does.

    Attributes:
        image_token: stands for an image in a prompt.
        placeholder: what takes its place.
        image: a picture as the model's tensors.
    """

    tokenizer: PreTrainedTokenizerFast
    image_token: str
    placeholder: str
    image: Any

    @property
    def image_token_ids(self) -> list[int]:
        return [self.tokenizer.convert_tokens_to_ids(self.image_token)]

    def __call__(self, text: Any = None, images: Any = None, **kwargs: Any) -> BatchFeature:
        texts = [one.replace(self.image_token, self.placeholder) for one in text]
        encoded = dict(self.tokenizer(texts, return_tensors="pt"))
        return BatchFeature(encoded | (self.image(images[0]) if images else {}))

    def batch_decode(self, tokens: Any, **settings: Any) -> list[str]:
        return list(self.tokenizer.batch_decode(tokens, **settings))

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
