"""The number of image tokens in a prompt of LLaVA, made to fit its vision tower."""

from __future__ import annotations

import logging
from typing import Any

from transformers import ProcessorMixin

from efficientllava.errors import UserError

logger = logging.getLogger(__name__)

CLASS_TOKEN = 1
"""CLIP's vision tower gives one feature more than there are patches."""


def fit_image_tokens(processor: ProcessorMixin, config: Any, where: str) -> None:
    """Repair the settings that count the image tokens of LLaVA-1.5 and LLaVA-NeXT, in place.

    24 x 24 patches + `num_additional_image_tokens` - 1 with the strategy "default": 576 at 336
    pixels in patches of 14. Older processor files lack `num_additional_image_tokens` (and would
    give 575) or the patch size. Other families and vision towers are left alone.
    """
    if not _has_clip_tower(config):
        return
    settings = {
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": CLASS_TOKEN,
    }
    for name, value in settings.items():
        if (current := getattr(processor, name)) != value:
            logger.warning("%s: %s %s does not fit the model: %s", where, name, current, value)
            setattr(processor, name, value)


def check_image_size(processor: ProcessorMixin, config: Any, where: str) -> None:
    """Check that the image processor fits the vision tower of a LLaVA.

    Raises:
        UserError: images of another size.
    """
    if not _has_clip_tower(config):
        return
    crop, size = processor.image_processor.crop_size, config.vision_config.image_size
    if (crop.height, crop.width) != (size, size):
        raise UserError(
            f"the processor gives images of {crop.width} x {crop.height} pixels, the vision tower "
            f"takes {size} x {size}",
            where=where,
            remedy="use the processor that was saved with the model",
        )


def _has_clip_tower(config: Any) -> bool:
    return (
        config.model_type in ("llava", "llava_next")
        and config.vision_config.model_type == "clip_vision_model"
    )


def require_sizes(processor: ProcessorMixin, where: str) -> None:
    """Check that images are brought to a number of pixels: transformers takes `true` for 1.

    Raises:
        UserError: a size is true or false.
    """
    for name in ("size", "crop_size"):
        size = getattr(processor.image_processor, name, None) or {}
        if any(isinstance(value, bool) for value in dict(size).values()):
            raise UserError(f"{name} of its images is no number", where)
