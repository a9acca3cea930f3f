"""Image files as Pillow opens them: no format that starts a program, none larger than fits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from efficientllava.errors import UserError
from efficientllava.reading.regular import read_bytes

LARGEST = 512 * 2**20
"""Bytes of an image file."""
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000",
           "TGA", "ICO", "PCX", "SGI")  # fmt: skip
"""Not among them: EPS, for which Pillow starts Ghostscript."""


@cache
def _formats() -> list[str]:
    """Those that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def read_picture(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        FileNotFoundError: there is none: who asks for it says what it belongs to.
        UserError: as `open_regular`.
    """
    if not path.exists():
        raise FileNotFoundError(str(path))
    return read_bytes(path, LARGEST)


@contextmanager
def open_picture(
    content: bytes, where: str, broken: str = "broken image file"
) -> Iterator[Image.Image]:
    """An image, which the block decodes.

    Args:
        where: what messages call it.
        broken: what is said when it cannot be decoded.

    Raises:
        UserError: it cannot be decoded, or is too large to be decoded safely.
    """
    try:
        with Image.open(BytesIO(content), formats=_formats()) as image:
            yield image
    except UserError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise UserError(f"image too large ({error})", where=where) from error
    except UnidentifiedImageError as error:  # its own words name an object in memory
        remedy = f"give one of {', '.join(_formats())}"
        raise UserError(f"{broken} (in no known format)", where, remedy) from error
    except Exception as error:  # every decoder of Pillow raises kinds of its own
        raise UserError(f"{broken} ({error})", where=where) from error
