"""The fields of every benchmark's record, and how records are read: local files or the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from efficientllava.benchmarks.rows import Row
from efficientllava.data.images import image_bytes, read_rgb
from efficientllava.errors import UserError
from efficientllava.reading import expanded

Picture = Path | bytes | None
"""An image file, its bytes (from parquet), or no image."""


@dataclass(frozen=True)
class Record:
    """One question as a model is asked it.

    Attributes:
        id: as the official prediction files spell it.
        text: the official question file's text; may hold the image token.
        image: the picture that belongs to it.
    """

    id: str
    text: str
    image: Picture

    def image_digest(self) -> str:
        """Digest of the picture's bytes; empty without one.

        Raises:
            UserError: as `open_image`.
        """
        content = self.image
        if isinstance(content, Path):
            try:
                content = image_bytes(content)
            except OSError:
                self.open_image()  # tells what is missing
                raise
        return "" if content is None else hashlib.sha256(content).hexdigest()

    def open_image(self) -> Image.Image | None:
        """The picture in RGB; None for a question without one.

        Raises:
            UserError: the file is missing, broken or too large to be decoded safely.
        """
        if self.image is None:
            return None
        where = str(self.image) if isinstance(self.image, Path) else f"image of {self.id}"
        return read_rgb(
            self.image,
            where,
            missing=f"image file of question {self.id} missing",
            remedy="put the benchmark's images where its official archive puts them",
        )


def require_distinct(records: Sequence[Record], where: str) -> None:
    """Refuse records that share an id.

    Raises:
        UserError: naming the id.
    """
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise UserError(f"question {record.id} occurs twice", where=where)
        seen.add(record.id)


def is_local(source: str | Path) -> bool:
    """Whether records come from a folder here, not from the hub.

    Raises:
        UserError: it is a path, but there is no such folder.
    """
    text = str(source)
    folder = expanded(text)
    if folder.is_dir():
        return True
    if text.startswith((".", "/", "~")) or text.count("/") != 1:
        remedy = "name the folder of the official files, or a hub id (OWNER/NAME)"
        raise UserError("no such folder of benchmark data", where=text, remedy=remedy)
    return False


def has_parquet(folder: Path) -> bool:
    """Whether a folder is a local copy of a hub dataset."""
    return next(Path(folder).rglob("*.parquet"), None) is not None


def hub_rows(source: str, config: str | None, split: str, revision: str | None = None) -> list[Row]:
    """The rows of a parquet dataset by hub id, or of a local folder of parquet files.

    Images stay undecoded: {"bytes", "path"}. Datasets that need a loading script cannot be
    read (`datasets` runs none): name the dataset's parquet copy.

    Raises:
        UserError: there is no such dataset, configuration or split, or it cannot be fetched.
    """
    from datasets import Image as ImageFeature
    from datasets import load_dataset

    where = " ".join(filter(None, [source, config, split]))
    folder = expanded(source)
    try:
        if folder.is_dir():
            files = [str(path) for path in sorted(folder.rglob("*.parquet")) if _of(path, split)]
            if not files:
                raise UserError(f"no parquet files of split {split!r}", where=str(folder))
            table: Any = load_dataset("parquet", data_files={split: files}, split=split)
        else:
            table = load_dataset(source, config, split=split, revision=revision)
    except UserError:
        raise
    except Exception as error:  # the library raises a dozen kinds, some of them requests' own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"records cannot be loaded: {first}",
            where=where,
            remedy="check id, split and network, or give a folder with the official files",
        ) from error
    for name, feature in table.features.items():
        if isinstance(feature, ImageFeature):
            table = table.cast_column(name, ImageFeature(decode=False))
    return [Row(values, f"{where}, row {number}") for number, values in enumerate(table)]


def _of(path: Path, split: str) -> bool:
    return path.name.startswith(f"{split}-") or split in (path.stem, path.parent.name)


def picture(value: Any, where: str) -> Picture:
    """An image column's value: bytes or a path; None where there is no image.

    Raises:
        UserError: it is something else.
    """
    if value is None:
        return None
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            return value["bytes"]
        if isinstance(value.get("path"), str):
            return Path(value["path"])
    raise UserError("image is neither bytes nor a path", where=where)
