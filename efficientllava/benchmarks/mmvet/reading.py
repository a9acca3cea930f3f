"""MM-Vet's records: from mm-vet.json or the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from efficientllava.benchmarks.records import Record, has_parquet, hub_rows, is_local, picture
from efficientllava.benchmarks.rows import Row
from efficientllava.errors import UserError
from efficientllava.files import read_json
from efficientllava.reading import expanded

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")


@dataclass(frozen=True)
class Sample(Record):
    """One question; `answer` separates parts by <AND> and alternatives by <OR>."""

    answer: str
    capabilities: frozenset[str]


def read_samples(source: str | Path, split: str = "test") -> list[Sample]:
    """The questions, in the order of mm-vet.json.

    Args:
        source: a folder with mm-vet.json and images/, or a hub id of parquet records.
        split: "test", or "bard" for the subset of bard_set.json.

    Raises:
        UserError: naming the record that cannot be used.
    """
    if not is_local(source) or (
        not (expanded(source) / "mm-vet.json").is_file() and has_parquet(expanded(source))
    ):
        rows = hub_rows(str(source), None, split)
        return [_sample(row.identity("question_id"), row, None) for row in rows]
    folder = expanded(source)
    values = read_json(folder / "mm-vet.json")
    if not isinstance(values, dict) or not all(
        isinstance(value, dict) for value in values.values()
    ):
        raise UserError("is no mapping from id to record", where=str(folder / "mm-vet.json"))
    chosen = read_json(folder / "bard_set.json") if split == "bard" else values
    return [
        _sample(key, Row(value, f"{folder / 'mm-vet.json'}, {key}"), folder / "images")
        for key, value in values.items()
        if key in chosen
    ]


def _sample(identifier: str, row: Row, images: Path | None) -> Sample:
    listed = row.value("capability")
    names = [name.strip() for name in listed.split(",")] if isinstance(listed, str) else listed
    if not isinstance(names, list) or not names or any(name not in CAPABILITIES for name in names):
        raise UserError(
            f"capability {listed!r} names others than {', '.join(CAPABILITIES)}", where=row.where
        )
    image = picture(row.value("image"), row.where) if images is None else None
    return Sample(
        id=identifier,
        text=row.text("question"),
        image=images / row.text("imagename") if images is not None else image,
        answer=row.text("answer"),
        capabilities=frozenset(names),
    )
