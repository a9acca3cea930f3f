"""Multiple-choice questions: a model chooses what is most likely after the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from efficientllava.benchmarks.accuracy import share
from efficientllava.benchmarks.scienceqa.scores import BREAKDOWNS
from efficientllava.data.questions import Question
from efficientllava.models.likelihood import choice_likelihoods
from efficientllava.progress import Progress


@dataclass(frozen=True)
class Prediction:
    """The choice of a model for one question.

    Attributes:
        predicted, answer: indices into the question's choices.
        answer_nll: negative log-likelihood of the right choice after the prompt, in nats.
    """

    id: str
    predicted: int
    answer: int
    answer_nll: float


def answer_questions(
    model: nn.Module,
    processor: Any,
    questions: Sequence[Question],
    batch_size: int,
    progress: Progress,
) -> list[Prediction]:
    """The choice with the highest likelihood, for every question; the first of equals."""
    likelihoods = choice_likelihoods(model, processor, questions, batch_size, progress)
    return [
        Prediction(
            id=question.id,
            predicted=max(range(len(values)), key=values.__getitem__),
            answer=question.answer,
            answer_nll=-values[question.answer],
        )
        for question, values in zip(questions, likelihoods, strict=True)
    ]


def scores(questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Accuracy with standard error, in all and by ScienceQA's classes, and the answers' NLL."""
    right = [prediction.predicted == prediction.answer for prediction in predictions]
    breakdowns = {
        name: share([hit for hit, asked in zip(right, questions, strict=True) if belongs(asked)])
        for name, belongs in BREAKDOWNS.items()
    }
    nll = (
        sum(question.answer_nll for question in predictions) / len(predictions)
        if predictions
        else None
    )
    return {**share(right), "answer_nll": nll, "breakdowns": breakdowns}
