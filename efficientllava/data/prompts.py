"""How a question is put to a model, and what the model should say."""

from __future__ import annotations

from collections.abc import Sequence

from efficientllava.data.questions import Question

IMAGE_TOKEN = "<image>"


def question_prompt(question: Question, image_token: str = IMAGE_TOKEN) -> str:
    """The prompt of a question; the answer follows it after a space.

    Args:
        image_token: what stands for an image in a prompt of the model's family.
    """
    text = format_prompt(question.question, question.choices, question.hint)
    return f"{image_token}\n{text}" if question.image is not None else text


def answer_text(question: Question) -> str:
    """The right choice."""
    return question.choices[question.answer]


def format_prompt(question: str, choices: Sequence[str], hint: str) -> str:
    """Context, options and question; parts without content are left out.

    The question comes last, beside its answer: a tiny model learns that order much faster.
    """
    parts = [f"Context: {hint}"] if hint else []
    if choices:
        parts.append(f"Options: {', '.join(choices)}.")
    parts.append(f"Question: {question}")
    return " ".join(parts)
