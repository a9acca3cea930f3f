"""The pictures of the demo questions: 32 x 32 scenes, handwritten digits and maps."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE = 32
CELL = SIZE // 2
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 40),
    "purple": (150, 60, 180),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross")
CORNERS = ("northwest", "northeast", "southwest", "southeast")  # cells in reading order

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Picture:
    """A picture and what can be seen on it.

    Attributes:
        kind: "scene", "digit" or "map".
        key: what is seen, as text; pictures with the same key belong to the same split.
        pixels: [32, 32, 3], 0 to 255.
        shapes: shape in each of the four cells, None where empty (scenes).
        colours: colour in each of the four cells (scenes and maps).
        digit: the number shown (digits).
    """

    kind: str
    key: str
    pixels: NDArray[np.uint8]
    shapes: tuple[str | None, ...] = (None,) * 4
    colours: tuple[str | None, ...] = (None,) * 4
    digit: int | None = None


def draw_scene(draw: random.Random) -> Picture:
    """One to four coloured shapes, each in a cell of its own."""
    count = draw.choice((1, 1, 2, 2, 3, 4))
    shapes: list[str | None] = [None] * 4
    colours: list[str | None] = [None] * 4
    pixels = _background(draw)
    for cell in sorted(draw.sample(range(4), count)):
        shape, colour = draw.choice(SHAPES), draw.choice(list(COLOURS))
        shapes[cell], colours[cell] = shape, colour
        mask = _shape_mask(
            shape, draw.choice((5, 6, 7)), draw.choice((-1, 0, 1)), draw.choice((-1, 0, 1))
        )
        top, left = cell // 2 * CELL, cell % 2 * CELL
        window = pixels[top : top + CELL, left : left + CELL]
        paint = _paint(colour) * draw.uniform(0.8, 1.0)
        window[:] = window * (1 - mask) + paint * mask
    seen = " ".join(f"{shape}-{colour}" for shape, colour in zip(shapes, colours, strict=True))
    return Picture("scene", f"scene {seen}", _round(pixels), tuple(shapes), tuple(colours))


def draw_digit(draw: random.Random) -> Picture:
    """One of scikit-learn's handwritten digits, enlarged and coloured."""
    images, numbers = _handwritten_digits()
    source = draw.randrange(len(numbers))
    side = draw.choice((22, 24, 26))
    enlarged = Image.fromarray(images[source]).resize((side, side), Image.Resampling.BILINEAR)
    mask = np.asarray(enlarged, dtype=np.float32)[..., None] / 255
    room = SIZE - side
    top, left = (min(room, max(0, room // 2 + draw.randint(-2, 2))) for _ in range(2))
    pixels = _background(draw)
    window = pixels[top : top + side, left : left + side]
    paint = _paint(draw.choice(list(COLOURS)))
    window[:] = window * (1 - mask) + paint * mask
    return Picture("digit", f"digit {source}", _round(pixels), digit=int(numbers[source]))


def draw_map(draw: random.Random) -> Picture:
    """Four countries of different colours."""
    colours = draw.sample(list(COLOURS), 4)
    pixels = np.zeros((SIZE, SIZE, 3), dtype=np.float32)
    row, column = draw.randint(13, 19), draw.randint(13, 19)
    for cell, colour in enumerate(colours):
        rows = slice(0, row) if cell < 2 else slice(row, SIZE)
        columns = slice(0, column) if cell % 2 == 0 else slice(column, SIZE)
        pixels[rows, columns] = _paint(colour) * draw.uniform(0.75, 1.0)
    return Picture(
        "map", f"map {row} {column} {' '.join(colours)}", _round(pixels), colours=tuple(colours)
    )


def _paint(colour: str) -> Pixels:
    return np.array(COLOURS[colour], dtype=np.float32)


def _background(draw: random.Random) -> Pixels:
    return np.full((SIZE, SIZE, 3), draw.uniform(0, 46), dtype=np.float32)


def _round(pixels: Pixels) -> NDArray[np.uint8]:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


@cache
def _shape_mask(shape: str, radius: int, right: int, down: int) -> Pixels:
    """Coverage of a cell by a shape, [16, 16, 1] in 0 to 1, drawn four times finer."""
    fine = 4
    mask = Image.new("L", (CELL * fine, CELL * fine))
    pen = ImageDraw.Draw(mask)
    x, y, r = (CELL // 2 + right) * fine, (CELL // 2 + down) * fine, radius * fine
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    elif shape == "square":
        pen.rectangle((x - r * 0.9, y - r * 0.9, x + r * 0.9, y + r * 0.9), fill=255)
    elif shape == "triangle":
        pen.polygon([(x, y - r), (x - r, y + r * 0.9), (x + r, y + r * 0.9)], fill=255)
    else:
        pen.rectangle((x - r, y - r * 0.3, x + r, y + r * 0.3), fill=255)
        pen.rectangle((x - r * 0.3, y - r, x + r * 0.3, y + r), fill=255)
    coarse = mask.resize((CELL, CELL), Image.Resampling.BILINEAR)
    return np.asarray(coarse, dtype=np.float32)[..., None] / 255


@cache
def _handwritten_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """[1797, 8, 8] pixels in 0 to 255 and the numbers they show.

    From scikit-learn's own file: to import what reads it takes 1 s.
    """
    sklearn = find_spec("sklearn")
    if sklearn is None or sklearn.origin is None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    file = Path(sklearn.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",")  # [1797, 65] pixels in 0 to 16, and the number
    pixels = rows[:, :-1].reshape(-1, 8, 8)
    return np.rint(pixels / 16 * 255).astype(np.uint8), rows[:, -1].astype(np.int64)
