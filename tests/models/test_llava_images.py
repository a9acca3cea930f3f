"""LLaVA-1.5's images against a transcription of the original code; the image token count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from efficientllava.models.checkpoint import load_processor
from efficientllava.models.processors.llava_images import crops_images, original_images
from tests.export.conftest import tiny_processor
from tests.models.families import tokenizer

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SHAPES = [
    (1, 1),
    (1, 7),
    (336, 336),
    (500, 375),
    (375, 500),
    (2, 900),
    (1201, 3),
    (48, 48),
    (337, 335),
    (4000, 3000),
    (700, 701),
]


def pixel_values(image: Image.Image) -> torch.Tensor:
    """What LLaVA-1.5's vision tower takes of an image: [3, 336, 336] float32."""
    pixels: torch.Tensor = original_images()(image, return_tensors="pt")["pixel_values"][0]
    return pixels


def original(image: Image.Image, side: int = 336) -> np.ndarray:
    """haotian-liu/LLaVA: `expand2square`, then CLIPImageProcessor."""
    image = image.convert("RGB")
    colour = tuple(int(x * 255) for x in MEAN)
    width, height = image.size
    if width > height:
        square = Image.new(image.mode, (width, width), colour)
        square.paste(image, (0, (width - height) // 2))
    elif height > width:
        square = Image.new(image.mode, (height, height), colour)
        square.paste(image, ((height - width) // 2, 0))
    else:
        square = image
    clip = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    return np.asarray(clip(square, return_tensors="np")["pixel_values"][0])


def original_crop(image: Image.Image, side: int = 336) -> np.ndarray:
    """haotian-liu/LLaVA, `process_images` without padding: CLIPImageProcessor alone."""
    clip = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    return np.asarray(clip(image.convert("RGB"), return_tensors="np")["pixel_values"][0])


def noise(size: tuple[int, int]) -> Image.Image:
    generator = np.random.default_rng(size[0])
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SHAPES)
def test_equal_to_the_original(size: tuple[int, int]) -> None:
    image = noise(size)
    values = pixel_values(image)
    assert values.shape == (3, 336, 336) and values.dtype == torch.float32
    assert np.array_equal(values.numpy(), original(image))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_every_mode(mode: str) -> None:
    """Transparency is dropped as the original drops it, not laid on white."""
    image = noise((90, 41)).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(np.tile(np.arange(90, dtype=np.uint8), (41, 1))))
    assert np.array_equal(pixel_values(image).numpy(), original(image))


def test_padding_is_the_mean_colour() -> None:
    corner = pixel_values(Image.new("RGB", (672, 336)))[:, 0, 0]
    expected = (torch.tensor([122, 116, 104]) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(corner, expected)


def test_long_strip_needs_no_square() -> None:
    """Padded it would take 1.2 GB."""
    assert pixel_values(Image.new("RGB", (20_000, 2))).shape == (3, 336, 336)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """Processor files as the hub's llava-1.5-7b-hf first had them: centre crop, no CLS counted."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=336, patch_size=14),
        text_config=LlamaConfig(),
        vision_feature_layer=-2,
    )
    config.save_pretrained(tmp_path)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )
    processor = LlavaProcessor(
        images,
        tokenizer({"image_token": "<image>"}),
        patch_size=14,
        vision_feature_select_strategy="default",
    )
    processor.save_pretrained(tmp_path)
    return tmp_path


def test_loaded_processor_pads_and_counts_576(hub: Path) -> None:
    processor, image = load_processor(hub), noise((500, 300))
    inputs = processor(text=["<image> w1"], images=[image], return_tensors="pt")
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == 24 * 24
    assert np.array_equal(inputs["pixel_values"][0].numpy(), original(image))


def test_saved_processor_pads_too(hub: Path, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    load_processor(hub).save_pretrained(tmp_path / "saved")
    plain = AutoProcessor.from_pretrained(tmp_path / "saved", backend="pil")
    image = noise((500, 300))
    inputs = plain(text=["<image>"], images=[image], return_tensors="pt")
    assert np.array_equal(inputs["pixel_values"][0].numpy(), original(image))
    assert int((inputs["input_ids"] == plain.image_token_id).sum()) == 576


def test_other_processors_are_left_alone(hub: Path) -> None:
    processor = tiny_processor()
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    processor.save_pretrained(hub)
    assert not getattr(load_processor(hub).image_processor, "do_pad", False)


STYLES = (None, "llava_v1_5", "llava_sqa")
ASPECT_RATIOS = {"pad": original, "square": original_crop, None: original_crop}
"""LLaVA pads where a checkpoint's `image_aspect_ratio` is "pad", and crops otherwise."""


def pixels_of(folder: Path, style: str | None, image: Image.Image) -> np.ndarray:
    processor: Any = load_processor(folder, style)
    inputs = processor(text=["<image>"], images=[image], return_tensors="pt")
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == 24 * 24
    values: np.ndarray = inputs["pixel_values"][0].numpy()
    return values


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("mode", ["RGB", "LA", "P"])
def test_style_of_llava_sqa_crops(hub: Path, style: str | None, mode: str) -> None:
    expected = original_crop if style == "llava_sqa" else original
    for size in ((500, 300), (120, 400)):
        image = noise(size).convert(mode)
        assert np.array_equal(pixels_of(hub, style, image), expected(image))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("aspect_ratio", ASPECT_RATIOS)
def test_config_goes_before_the_style(
    hub: Path, style: str | None, aspect_ratio: str | None
) -> None:
    config = json.loads((hub / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps({**config, "image_aspect_ratio": aspect_ratio}))
    image = noise((500, 300))
    assert np.array_equal(pixels_of(hub, style, image), ASPECT_RATIOS[aspect_ratio](image))


@pytest.mark.parametrize("style", STYLES)
def test_style_decides_also_over_a_processor_that_was_saved(
    hub: Path, tmp_path: Path, style: str | None
) -> None:
    """A saved processor pads or crops as it did; loaded again, the style decides anew."""
    from transformers import AutoProcessor

    image = noise((500, 300))
    for first in ("llava_sqa", "llava_v1_5"):
        load_processor(hub, first).save_pretrained(hub)
        plain = AutoProcessor.from_pretrained(hub, backend="pil")
        values = plain(text=["<image>"], images=[image], return_tensors="pt")["pixel_values"][0]
        saved = original_crop if first == "llava_sqa" else original
        assert np.array_equal(values.numpy(), saved(image))
        expected = original_crop if style == "llava_sqa" else original
        assert np.array_equal(pixels_of(hub, style, image), expected(image))


def test_cropping_is_known_of_a_processor(hub: Path) -> None:
    assert crops_images(load_processor(hub, "llava_sqa"))
    assert not crops_images(load_processor(hub, "llava_v1_5"))
    assert not crops_images(tiny_processor())
