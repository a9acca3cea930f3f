"""Images as LLaVA was trained on them: LLaVA-1.5 pads to a square, LLaVA-SQA crops the centre.

The original code (haotian-liu/LLaVA, `expand2square` with image_aspect_ratio "pad") converts to
RGB, pads to a square with the mean colour and hands that to CLIP's image processor; the hub's
`llava-1.5-*-hf` processors crop the centre instead. Where image_aspect_ratio is not "pad", as in
LLaVA-SQA's checkpoints, the original code leaves the image to CLIP's processor, which crops the
centre. Both equal the original bit for bit (tests/models/test_llava_images.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import ProcessorMixin
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from efficientllava.data.images import as_rgb

IMAGE_SIDE = 336
ROWS_AT_ONCE = 256
CROPPING_STYLES = ("llava_sqa",)
"""Values of `evaluation.style` that name models trained without padding."""


def squared(
    image: np.ndarray, side: int, colour: Sequence[int], resample: Image.Resampling
) -> np.ndarray:
    """Pad an image to a square and resize it.

    Equals padding and then resizing with PIL, which resamples rows first and columns second: here a
    band of rows at a time, so that a strip of 20,000 x 10 pixels never becomes a square of 1.2 GB.

    Args:
        image: [3, height, width] uint8, centred in the square (offset (long - short) // 2).
        side: of the result.
        colour: of the padding.

    Returns:
        [3, side, side] uint8.
    """
    _, height, width = image.shape
    full = max(height, width)
    top, left = (full - height) // 2, (full - width) // 2
    background = Image.new("RGB", (full, 1), tuple(colour)).resize((side, 1), resample)
    narrow = np.repeat(np.asarray(background), full, axis=0)
    for start in range(0, height, ROWS_AT_ONCE):
        part = image[:, start : start + ROWS_AT_ONCE].transpose(1, 2, 0)
        band = np.empty((len(part), full, 3), np.uint8)
        band[:] = colour
        band[:, left : left + width] = part
        resized = Image.fromarray(band).resize((side, len(part)), resample)
        narrow[top + start : top + start + len(part)] = np.asarray(resized)
    square = Image.fromarray(narrow).resize((side, side), resample)
    return np.asarray(square).transpose(2, 0, 1)


class OriginalLlavaImages(LlavaImageProcessorPil):
    """transformers' LLaVA image processor, for images of every mode and, with `do_pad`, every size.

    It is saved as `LlavaImageProcessor`, which gives the same values for RGB images.
    """

    def convert_to_rgb(self, image: Any, input_data_format: Any = None) -> np.ndarray:
        """RGB [height, width, 3] as `data.images` converts."""
        if isinstance(image, Image.Image):
            return np.asarray(as_rgb(image))
        converted: np.ndarray = super().convert_to_rgb(image, input_data_format)
        return converted

    def _preprocess(self, images: list[np.ndarray], *args: Any, **kwargs: Any) -> BatchFeature:
        if kwargs.get("do_pad") and kwargs.get("do_resize"):
            colour = [int(255 * mean) for mean in kwargs["image_mean"]]
            side, resample = kwargs["size"].shortest_edge, Image.Resampling(kwargs["resample"])
            images = [squared(image, side, colour, resample) for image in images]
            kwargs |= {"do_pad": False, "do_resize": False}
        return super()._preprocess(images, *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As transformers' own class."""
        return {**super().to_dict(), "image_processor_type": "LlavaImageProcessor"}


def original_images(side: int = IMAGE_SIDE, pad: bool = True) -> OriginalLlavaImages:
    """The image processor of LLaVA-1.5 as it was trained; without `pad`, of LLaVA-SQA."""
    return OriginalLlavaImages(
        do_pad=pad, size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )


def pads_images(config: Any, style: str | None) -> bool:
    """Whether a LLaVA was trained on padded images.

    Its configuration's `image_aspect_ratio` decides, where it has one: "pad", or anything else for
    a centre crop. Without it the style decides.

    Args:
        config: of the checkpoint.
        style: `evaluation.style`, or None where it is unknown.
    """
    if hasattr(config, "image_aspect_ratio"):
        return bool(config.image_aspect_ratio == "pad")
    return style not in CROPPING_STYLES


def crops_images(processor: Any) -> bool:
    """Whether `use_original_images` made the processor crop."""
    images = getattr(processor, "image_processor", None)
    return isinstance(images, OriginalLlavaImages) and not images.do_pad


def use_original_images(processor: ProcessorMixin, pad: bool = True) -> bool:
    """Let a LLaVA's processor pad, or crop the centre, as in training; its files may say otherwise.

    Processors with another mean, deviation or geometry are left alone: they are of models that
    were trained otherwise.

    Args:
        pad: see `pads_images`.

    Returns:
        Whether the processor was changed.
    """
    images: Any = processor.image_processor
    size: Any = getattr(images, "size", None)
    crop: Any = getattr(images, "crop_size", None)
    like_clip = (
        list(getattr(images, "image_mean", None) or ()) == OPENAI_CLIP_MEAN
        and list(getattr(images, "image_std", None) or ()) == OPENAI_CLIP_STD
        and bool(getattr(images, "do_center_crop", False))
        and size is not None
        and crop is not None
        and size.shortest_edge == crop.height == crop.width
    )
    if like_clip:
        processor.image_processor = original_images(size.shortest_edge, pad)
    return like_clip
