"""Pictures of every mode, through every place that opens one, keep their greys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientllava.benchmarks.records import Record
from efficientllava.data.questions import Question
from efficientllava.errors import UserError
from efficientllava.export.assistant import read_image
from efficientllava.models.processors.llava_images import original_images

RAMP = np.tile(np.arange(256, dtype=np.uint8), (3, 1))
"""All greys of 8 bits [3, 256]."""


def of_question(path: Path) -> Image.Image | None:
    return Question(
        "1", "?", ("a", "b"), 0, "", path, "natural science", "grade1", "test"
    ).open_image()


READERS: dict[str, Callable[[Path], Image.Image | None]] = {
    "proxy pairs": of_question,
    "benchmark": lambda path: Record("1", "?", path).open_image(),
    "parquet": lambda path: Record("1", "?", path.read_bytes()).open_image(),
    "ask": read_image,
}
every_reader = pytest.mark.parametrize("read", READERS.values(), ids=list(READERS))


def deep(values: np.ndarray, order: str = "<") -> Image.Image:
    """A 16-bit grey picture, little or big endian."""
    mode = "I;16" if order == "<" else "I;16B"
    height, width = values.shape
    return Image.frombytes(mode, (width, height), values.astype(f"{order}u2").tobytes())


def with_alpha(mode: str) -> Image.Image:
    image = Image.fromarray(RAMP).convert("P" if mode == "PA" else mode)
    if mode == "PA":
        image = image.convert("PA")
    image.putalpha(Image.fromarray(RAMP[:, ::-1].copy()))
    return image


def transparent_palette() -> Image.Image:
    image = Image.fromarray(RAMP).convert("P")
    image.info["transparency"] = 7
    return image


WIDE = RAMP.astype(np.uint16) * 257
FILES: dict[str, tuple[Image.Image, str]] = {
    "L": (Image.fromarray(RAMP), "png"),
    "I;16": (deep(WIDE), "png"),
    "I;16 tiff": (deep(WIDE), "tiff"),
    "I;16B": (deep(WIDE, ">"), "tiff"),
    "16-bit PGM": (deep(WIDE), "pgm"),
    "I": (Image.fromarray(WIDE.astype(np.int32)), "tiff"),
    "F to 1": (Image.fromarray(RAMP.astype(np.float32) / 255), "tiff"),
    "F to 255": (Image.fromarray(RAMP.astype(np.float32)), "tiff"),
    "LA": (with_alpha("LA"), "png"),
    "RGBA": (with_alpha("RGBA"), "png"),
    "P": (Image.fromarray(RAMP).convert("P"), "png"),
    "P with transparency": (transparent_palette(), "png"),
    "CMYK": (Image.fromarray(RAMP).convert("RGB").convert("CMYK"), "tiff"),
}


@every_reader
@pytest.mark.parametrize("name", FILES)
def test_every_grey_is_kept(
    name: str, read: Callable[[Path], Image.Image | None], tmp_path: Path
) -> None:
    image, kind = FILES[name]
    image.save(tmp_path / f"picture.{kind}")
    opened = read(tmp_path / f"picture.{kind}")
    assert opened is not None and opened.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(opened), np.repeat(RAMP[:, :, None], 3, axis=2))


@every_reader
def test_black_and_white(read: Callable[[Path], Image.Image | None], tmp_path: Path) -> None:
    Image.fromarray(RAMP > 99).save(tmp_path / "picture.png")
    values = np.asarray(read(tmp_path / "picture.png"))
    assert set(np.unique(values)) == {0, 255} and values[0, 99, 0] == 0 and values[0, 100, 2] == 255


@pytest.mark.parametrize("name", [name for name in FILES if " " not in name])
def test_the_image_processor_sees_the_same(name: str) -> None:
    """Pictures that are handed over as they are, not read by one of the readers."""
    image, _ = FILES[name]
    plain = original_images(28)(Image.fromarray(RAMP).convert("RGB"), return_tensors="np")
    values = original_images(28)(image, return_tensors="np")
    np.testing.assert_array_equal(values["pixel_values"], plain["pixel_values"])


@pytest.mark.parametrize("mode", ["PA", "La", "RGBa"])
def test_modes_that_no_file_has(mode: str) -> None:
    image = with_alpha("PA") if mode == "PA" else Image.new({"La": "LA"}.get(mode, "RGBA"), (9, 9))
    values = original_images(28)(image.convert(mode), return_tensors="np")["pixel_values"]
    assert np.isfinite(values).all()


def test_the_range_is_the_mode_s_not_the_picture_s(tmp_path: Path) -> None:
    """12 bits in 16 stay dark: a dark picture and a bright one are not made the same."""
    deep(np.linspace(0, 4095, 64).round().reshape(1, 64)).save(tmp_path / "dark.png")
    values = np.asarray(read_image(tmp_path / "dark.png"))
    assert (values.min(), values.max()) == (0, 16)


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 70_000]], np.int32),
        np.array([[-1, 5]], np.int32),
        np.array([[0.0, 300.0]], np.float32),
        np.array([[-0.5, 0.5]], np.float32),
        np.array([[0.5, np.nan]], np.float32),
    ],
)
@every_reader
def test_a_grey_without_a_known_white_is_refused(
    read: Callable[[Path], Image.Image | None], values: np.ndarray, tmp_path: Path
) -> None:
    Image.fromarray(values).save(tmp_path / "picture.tiff")
    with pytest.raises(UserError, match="white lies is not known") as error:
        read(tmp_path / "picture.tiff")
    assert "8 or 16 bits" in error.value.remedy
