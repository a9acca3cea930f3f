"""How a question is put to a model, and what the model should say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from efficientllava.data.questions import Question

IMAGE_TOKEN = "<image>"


def question_prompt(
    question: Question, image_token: str = IMAGE_TOKEN, processor: Any = None
) -> str:
    """The prompt of a question; the answer follows it (see `join_answer`).

    Args:
        image_token: what stands for an image in a prompt of the model's family.
        processor: whose chat template is used, where it has one.
    """
    text = format_prompt(question.question, question.choices, question.hint)
    return chat_prompt(processor, text, None if question.image is None else image_token)


def chat_prompt(processor: Any, message: str, image_token: str | None) -> str:
    """Everything the model reads before its answer to a user's message.

    Args:
        processor: whose chat template is used, where it has one of its own; else the model reads
            the message as it is, the image token on a line in front.
        image_token: what stands for the image; None without an image.
    """
    if getattr(processor, "chat_template", None):
        image = [] if image_token is None else [{"type": "image"}]
        turn = {"role": "user", "content": [*image, {"type": "text", "text": message}]}
        prompt: str = processor.apply_chat_template(
            [turn], add_generation_prompt=True, tokenize=False
        )
        return prompt
    return message if image_token is None else f"{image_token}\n{message}"


def join_answer(prompt: str, answer: str) -> str:
    """The answer behind its prompt, after a space where the prompt does not end in white space."""
    return f"{prompt}{answer}" if prompt[-1:].isspace() else f"{prompt} {answer}"


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
