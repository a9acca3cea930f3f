"""Prediction files in the official formats: read to texts by id, and written.

| format | whose |
| --- | --- |
| JSON lines of {question_id, prompt, text, ...} | LLaVA, all benchmarks |
| {"results": {id: index}, "outputs": {id: text}} | ScienceQA: lupantech, GPT-3, LLaVA |
| {"v1_<id>": text} | MM-Vet |
| {"v1_<id>": {"model", "content", "score"}} | MM-Vet's grades |
| JSON lines of {question_id, category, content, tuple, ...} | LLaVA-Bench's reviews |
| [{"image", "answer"}] | VizWiz's submission |
| JSON lines of {id, predicted, answer, answer_nll} | our demo questions, answered by likelihood |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from efficientllava.benchmarks.rows import Row, read_document
from efficientllava.errors import UserError
from efficientllava.files import value_digest, write_text

T = TypeVar("T")


@dataclass(frozen=True)
class Predictions:
    """The content of a file of predictions.

    Attributes:
        texts: a model's answer by id, where the file has texts.
        indices: the chosen index by id, where it has those (ScienceQA's results, demo questions).
        rows: the records of a review or grade file, by id; already judged.
        answer_ids: of an answer, by question, where the file has them.
    """

    source: Path
    texts: dict[str, str] = field(default_factory=dict)
    indices: dict[str, int] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    answer_ids: dict[str, str] = field(default_factory=dict)


def read_predictions(path: Path) -> Predictions:
    """Read a file of predictions; its format is recognised by its content.

    Raises:
        UserError: the format is none of the official ones; a line is cut off (named); a field is
            missing; an id occurs twice (named). The official scripts silently take the last of
            two answers: here it is an error, because a file that holds two is two files.
    """
    path = Path(path)
    value = read_document(path)
    if value in ([], {}):
        raise UserError("holds no answers", where=str(path))
    if isinstance(value, list):
        rows = [
            row if isinstance(row, Row) else Row(_record(row, path, n), f"{path}, entry {n}")
            for n, row in enumerate(value, start=1)
        ]
        if rows and all("tuple" in row.values or "content" in row.values for row in rows):
            return Predictions(path, rows=_by_id(rows, path, lambda row: row, "question_id"))
        if all("predicted" in row.values and "question_id" not in row.values for row in rows):
            return Predictions(path, indices=_by_id(rows, path, _chosen, "id"))
        texts = _by_id(rows, path, _answer, "question_id", "image")
        names = {
            key: str(row.values["answer_id"])
            for key, row in zip(texts, rows, strict=True)
            if "answer_id" in row.values
        }
        return Predictions(path, texts=texts, answer_ids=names)
    if isinstance(value, dict) and isinstance(value.get("results"), dict):
        return _results(path, value)
    if isinstance(value, dict) and value:
        if all(isinstance(text, str) for text in value.values()):
            return Predictions(path, texts=value)
        if all(isinstance(grade, dict) and "score" in grade for grade in value.values()):
            rows_by_id = {key: Row(grade, f"{path}, {key}") for key, grade in value.items()}
            return Predictions(path, rows=rows_by_id)
    raise UserError(
        "is in none of the official prediction formats",
        where=str(path),
        remedy='give JSON lines of {"question_id", "text"}, or one of the formats in '
        "docs/evaluate.md",
    )


def _record(value: Any, path: Path, number: int) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError("is no record of fields", where=f"{path}, entry {number}")
    return value


def _answer(row: Row) -> str:
    submitted = "answer" in row.values and "text" not in row.values
    return row.text("answer" if submitted else "text")


def _chosen(row: Row) -> int:
    value = row.value("predicted")
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"predicted must be the index of a choice, not {value!r}", where=row.where)
    return value


def _by_id(rows: Iterable[Row], path: Path, value: Callable[[Row], T], *names: str) -> dict[str, T]:
    predictions: dict[str, T] = {}
    first: dict[str, str] = {}
    for row in rows:
        identifier = row.identity(*names)
        if identifier in predictions:
            raise UserError(
                f"question {identifier} is answered twice, first in {first[identifier]}",
                where=row.where,
                remedy="keep one answer for every question",
            )
        predictions[identifier], first[identifier] = value(row), row.where
    return predictions


def _results(path: Path, value: dict[str, Any]) -> Predictions:
    outputs = value.get("outputs", {})
    indices: dict[str, int] = {}
    for identifier, index in value["results"].items():
        try:
            indices[identifier] = int(index)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"result {index!r} is no index", where=f"{path}, question {identifier}"
            ) from error
    if not isinstance(outputs, dict):
        raise UserError("outputs is no mapping from id to text", where=str(path))
    for identifier, text in outputs.items():
        if not isinstance(text, str):
            raise UserError("its output is no text", where=f"{path}, question {identifier}")
    return Predictions(path, texts=dict(outputs), indices=indices)


def require_known(answered: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse answers to questions that the benchmark does not have.

    Raises:
        UserError: naming some of them.
    """
    there = set(known)
    if unknown := [identifier for identifier in answered if identifier not in there]:
        raise UserError(
            f"{len(unknown)} answers to questions that the benchmark does not have: "
            f"{some(unknown)}",
            where=where,
            remedy="check that predictions, data folder and split belong together",
        )


def require_all(asked: Iterable[str], answered: Iterable[str], where: str) -> None:
    """Refuse predictions that leave questions out, where the official script does too.

    Raises:
        UserError: naming some of them.
    """
    there = set(answered)
    if missing := [identifier for identifier in asked if identifier not in there]:
        raise UserError(
            f"{len(missing)} questions without an answer: {some(missing)}",
            where=where,
            remedy="the official script stops here too: answer all questions of the split",
        )


def some(identifiers: Iterable[str], most: int = 5) -> str:
    """The first few ids, for messages."""
    listed = list(identifiers)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def answer_row(question_id: str | int, prompt: str, text: str, model_id: str) -> dict[str, Any]:
    """One line of LLaVA's answer files.

    The answer_id is a digest, not random: the same answers give the same bytes.
    """
    digest = value_digest([question_id, prompt, text, model_id])
    return {
        "question_id": question_id,
        "prompt": prompt,
        "text": text,
        "answer_id": digest[:22],
        "model_id": model_id,
        "metadata": {},
    }


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, whole or not at all."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
