"""VizWiz's scores, and its file for the evaluation server.

Source: convert_vizwiz_for_submission.py at haotian-liu/LLaVA c121f04.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from efficientllava.benchmarks.accuracy import mean
from efficientllava.benchmarks.vizwiz.reading import Photo
from efficientllava.benchmarks.vizwiz.vqa_answers import answer_accuracy, normalise
from efficientllava.errors import UserError


def by_number(photos: Sequence[Photo], texts: Mapping[str, str]) -> dict[str, str]:
    """Answers by the questions' numbers, where a file names them by image (submissions)."""
    numbers = {photo.name: photo.id for photo in photos}
    numbers |= {photo.name.removesuffix(".jpg"): photo.id for photo in photos}
    return {numbers.get(identifier, identifier): text for identifier, text in texts.items()}


def submission(photos: Sequence[Photo], texts: Mapping[str, str]) -> list[dict[str, str]]:
    """The file for the evaluation server: [{"image", "answer"}] with normalised answers."""
    return [{"image": photo.name, "answer": normalise(texts[photo.id])} for photo in photos]


def score_texts(photos: Sequence[Photo], texts: Mapping[str, str]) -> dict[str, Any]:
    """Mean agreement with the annotators, in all and by type of answer.

    Raises:
        UserError: the split has no answers.
    """
    if not all(photo.answers for photo in photos):
        raise UserError(
            "the answers of this split are not public: there is nothing to score against",
            where="vizwiz",
            remedy="score split val, or write a file for the evaluation server (--submission)",
        )
    values = [answer_accuracy(texts[photo.id], photo.answers) for photo in photos]
    kinds = {photo.answer_type for photo in photos} - {""}

    def of(kind: str) -> list[float]:
        pairs = zip(values, photos, strict=True)
        return [value for value, photo in pairs if photo.answer_type == kind]

    return {
        **mean(values),
        "breakdowns": {kind: mean(of(kind)) for kind in sorted(kinds)},
        "notes": [],
    }
