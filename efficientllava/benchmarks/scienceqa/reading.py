"""ScienceQA's records: from its official files, LLaVA's question files, or the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from efficientllava.benchmarks.records import (
    Picture,
    Record,
    has_parquet,
    hub_rows,
    is_local,
    picture,
    require_distinct,
)
from efficientllava.benchmarks.rows import Row
from efficientllava.benchmarks.scienceqa.prompts import LETTERS, cqm_a, qcm_lea
from efficientllava.data.questions import (
    PROBLEMS,
    SPLITS,
    Question,
    image_root,
    parse_question,
    split_identifiers,
)
from efficientllava.errors import UserError
from efficientllava.files import read_json
from efficientllava.reading import expanded

_LAYOUTS: dict[str, Callable[[Question], str]] = {"llava_v1_5": cqm_a, "llava_sqa": qcm_lea}


@dataclass(frozen=True)
class Problem(Record):
    """One question.

    Attributes:
        choices: how many there are.
        answer: index of the right one.
        has_hint, has_image: the context it comes with.
        question: all fields, where problems.json is at hand.
    """

    choices: int
    answer: int
    has_hint: bool
    has_image: bool
    question: Question | None = None


def read_problems(
    source: str | Path, split: str = "test", style: str = "llava_v1_5"
) -> list[Problem]:
    """The questions of a split, in the order of pid_splits.json.

    Args:
        source: a folder with problems.json and pid_splits.json, or llava_{split}_CQM-A.json, or
            both; or a hub id (or folder) of parquet records, whose ids are row numbers.
        style: the layout of `text`; without a full record only llava_v1_5 can be laid out, and
            the text is empty otherwise.

    Raises:
        UserError: naming the file and the record that cannot be used.
    """
    if not is_local(source):
        return _from_hub(str(source), split, style)
    folder = expanded(source)
    records, asked = _records(folder), _asked(folder / f"llava_{split}_CQM-A.json")
    if not records and not asked:
        if has_parquet(folder):
            return _from_hub(str(folder), split, style)
        raise UserError(
            f"holds neither {PROBLEMS} nor llava_{split}_CQM-A.json",
            where=str(folder),
            remedy="give the folder data/scienceqa of lupantech/ScienceQA, or scienceqa of "
            "LLaVA's eval.zip",
        )
    problems = []
    for identifier in _identifiers(folder, split, asked or records):
        row = asked.get(identifier)
        if identifier in records:
            file, record = records[identifier]
            problem = _from_record(identifier, record, folder, split, style, file)
            if row is not None and style == "llava_v1_5":
                problem = replace(problem, text=_turns(row)[0])
        elif row is not None:
            problem = _from_question_file(identifier, row, folder, split, style)
        else:
            raise UserError(f"no record of question {identifier} of split {split}", str(folder))
        problems.append(problem)
    require_distinct(problems, f"{folder}, split {split}")
    return problems


def all_identifiers(source: str | Path) -> set[str]:
    """The ids of all splits that pid_splits.json lists; empty without that file."""
    path = expanded(source) / SPLITS
    splits = read_json(path) if path.is_file() else {}
    lists = splits.values() if isinstance(splits, dict) else ()
    return {str(identifier) for ids in lists if isinstance(ids, list) for identifier in ids}


def _records(folder: Path) -> dict[str, tuple[Path, Any]]:
    """problems.json, or else the parts problems.*.json that are there."""
    whole = folder / PROBLEMS
    files = [whole] if whole.is_file() else sorted(folder.glob("problems.*.json"))
    records: dict[str, tuple[Path, Any]] = {}
    for file in files:
        part = read_json(file)
        if not isinstance(part, dict):
            raise UserError("is no mapping from id to question", where=str(file))
        records |= {identifier: (file, record) for identifier, record in part.items()}
    return records


def _asked(path: Path) -> dict[str, Row]:
    if not path.is_file():
        return {}
    values = read_json(path)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise UserError("is no list of questions", where=str(path))
    rows = [Row(value, f"{path}, question {n}") for n, value in enumerate(values, start=1)]
    return {row.identity("id"): row for row in rows}


def _identifiers(folder: Path, split: str, known: Mapping[str, Any]) -> list[str]:
    """The ids of a split; without pid_splits.json all that are known."""
    return split_identifiers(folder, split) if (folder / SPLITS).is_file() else list(known)


def _laid_out(question: Question, style: str, where: str) -> str:
    if len(question.choices) > len(LETTERS):
        raise UserError(f"{len(question.choices)} choices: at most 5 have letters", where=where)
    return _LAYOUTS[style](question)


def _from_record(
    identifier: str, record: Any, folder: Path, split: str, style: str, file: Path
) -> Problem:
    where = f"{file}, question {identifier}"
    question = parse_question(identifier, record, folder, split.removeprefix("mini"), where)
    return _problem(question, question.image, _laid_out(question, style, where))


def _problem(question: Question, image: Picture, text: str) -> Problem:
    return Problem(
        id=question.id,
        text=text,
        image=image,
        choices=len(question.choices),
        answer=question.answer,
        has_hint=bool(question.hint),
        has_image=image is not None,
        question=question,
    )


def _turns(row: Row) -> tuple[str, str]:
    """The human turn and the answer's letter of a question in the question file."""
    try:
        text, letter = (message["value"] for message in row.value("conversations"))
    except (TypeError, KeyError, ValueError) as error:
        raise UserError("has no conversation of two turns", where=row.where) from error
    if not isinstance(text, str) or not isinstance(letter, str):
        raise UserError("a turn of its conversation is no text", where=row.where)
    return text, letter


def _from_question_file(identifier: str, row: Row, folder: Path, split: str, style: str) -> Problem:
    text, letter = _turns(row)
    choices = sum(f"\n{choice}. " in text for choice in LETTERS)
    if letter not in LETTERS[:choices]:
        raise UserError(f"answer {letter!r} is none of its {choices} choices", where=row.where)
    image = row.values.get("image")
    images = image_root(folder) / "images" / split.removeprefix("mini")
    return Problem(
        id=identifier,
        text=text if style == "llava_v1_5" else "",
        image=None if image is None else images / image,
        choices=choices,
        answer=LETTERS.index(letter),
        has_hint=text.removeprefix("<image>\n").startswith("Context: "),
        has_image=image is not None,
    )


def _from_hub(source: str, split: str, style: str) -> list[Problem]:
    config = "ScienceQA-FULL" if source.startswith("lmms-lab") else None
    named = {"val": "validation"}.get(split, split)
    problems = []
    for number, row in enumerate(hub_rows(source, config, named)):
        image = picture(row.value("image"), row.where)
        record = {**row.values, "image": None if image is None else "image.png"}
        question = parse_question(str(number), record, Path(source), split, row.where)
        problems.append(_problem(question, image, _laid_out(question, style, row.where)))
    return problems
