"""Image files of every mode as RGB: the one place that decides what a pixel's number means.

An image may lie in a zip archive: the path ARCHIVE.zip/NAME stands for the file NAME in it.

Pillow converts all modes of 8 bits. It cuts deeper greys at 255, so that a 16-bit picture turns
white; here they are scaled by the range that their mode counts to.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
from PIL import Image

from efficientllava.errors import UserError
from efficientllava.reading.pictures import LARGEST, open_picture, read_picture

WHITE = 65535
"""Of 16-bit greys, and of mode I, which Pillow fills with 16-bit greys."""


def as_rgb(image: Image.Image, where: str = "image") -> Image.Image:
    """The picture in RGB of 8 bits; transparency is dropped, not laid on white.

    16-bit greys (I;16, I;16B, ...) and 32-bit integers (I) run from 0 to 65535, whatever the
    largest value in the picture. Floats (F) run from 0 to 1 if none is above 1, else to 255.

    Args:
        where: what messages call the picture.

    Raises:
        UserError: a 32-bit grey lies outside these ranges, so that nobody knows what is white.
        OSError, SyntaxError, ValueError: Pillow cannot decode the picture.
    """
    image.load()
    if image.mode == "La":  # Pillow knows no way from here to RGB
        return image.convert("LA").convert("RGB")
    if image.mode.startswith("I;16"):
        return _grey(_rounded(np.asarray(image)))
    if image.mode == "I":
        values = np.asarray(image)
        _require_within(values, WHITE, "integers", where)
        return _grey(_rounded(values))
    if image.mode == "F":
        values = np.asarray(image)
        _require_within(values, 255, "floats", where)
        scaled = values * 255.0 if values.max() <= 1 else values
        return _grey(np.rint(scaled).astype(np.uint8))
    return image.convert("RGB")


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values).convert("RGB")


def _rounded(values: np.ndarray) -> np.ndarray:
    """0 ... 65535 [height, width] to the nearest of 0 ... 255; 257 v comes back as v."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _require_within(values: np.ndarray, most: int, kind: str, where: str) -> None:
    low, high = values.min(), values.max()  # NaN is in no range
    if not 0 <= low <= high <= most:
        raise UserError(
            f"a grey picture of 32-bit {kind} from {low:g} to {high:g}: where its white lies is "
            "not known",
            where=where,
            remedy="save it with 8 or 16 bits, or scale it to 0 ... 65535 (integers), to 0 ... 1 "
            "or 0 ... 255 (floats)",
        )


def image_bytes(path: Path) -> bytes:
    """The bytes of a file, which may lie in a zip archive.

    Raises:
        FileNotFoundError: there is no such file, or none in the archive.
        OSError: the archive is broken.
        UserError: it is no regular file, cannot be read or is too large.
    """
    archive = _archive_of(path)
    return read_picture(path) if archive is None else _bytes_in(archive, path)


def _archive_of(path: Path) -> Path | None:
    return next((each for each in path.parents if each.suffix == ".zip" and each.is_file()), None)


def _bytes_in(archive: Path, path: Path) -> bytes:
    status = archive.stat()
    name = path.relative_to(archive).as_posix()
    try:
        opened = _archive(archive, status.st_mtime_ns, status.st_ino)
        size = opened.getinfo(name).file_size
        if size > LARGEST:
            raise OSError(f"it unpacks to {size:,} bytes")
        return opened.read(name)
    except KeyError as error:
        raise FileNotFoundError(str(path)) from error
    except (BadZipFile, RuntimeError, ValueError, zlib.error, OSError) as error:
        raise OSError(f"in {archive.name}: {error}") from error


@lru_cache(maxsize=4)
def _archive(path: Path, changed: int, inode: int) -> ZipFile:
    """An archive that stays open, as long as it is the same file: its list is long to read."""
    return ZipFile(path)


def read_rgb(
    source: Path | bytes,
    where: str,
    missing: str = "image file missing",
    broken: str = "broken image file",
    remedy: str = "",
) -> Image.Image:
    """An image file as RGB.

    Args:
        source: the file, or its bytes.
        where: what messages call it.
        missing: what is said when there is no such file, with `remedy`.
        broken: what is said when it cannot be decoded.

    Raises:
        UserError: the file is missing, broken, too large to be decoded safely, or as `as_rgb`.
    """
    try:
        content = image_bytes(source) if isinstance(source, Path) else source
    except FileNotFoundError as error:
        raise UserError(missing, where=where, remedy=remedy) from error
    except OSError as error:
        raise UserError(f"{broken} ({error})", where=where) from error
    with open_picture(content, where, broken) as image:
        return as_rgb(image, where)
