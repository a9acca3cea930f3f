"""ScienceQA's questions as LLaVA-1.5 and LLaVA-SQA read them.

Sources: llava_test_CQM-A.json of LLaVA's eval.zip; scripts/convert_sqa_to_llava.py and
convert_sqa_to_llava_base_prompt.py with --prompt-format QCM-LEA (haotian-liu/LLaVA c121f04).
The first is not what that script gives for its own format CQM-A.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from efficientllava.benchmarks.base import with_image
from efficientllava.data.conversations import IMAGE_TOKEN

if TYPE_CHECKING:
    from efficientllava.data.questions import Question

LETTERS = ("A", "B", "C", "D", "E")
LETTER_SUFFIX = "Answer with the option's letter from the given choices directly."


def cqm_a(question: Question) -> str:
    """The human turn of llava_test_CQM-A.json, with the image token in front."""
    context = f"Context: {question.hint}\n" if question.hint else ""
    options = "".join(
        f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)
    )
    text = f"{context}{question.question}{options}".replace("  ", " ").strip()
    return with_image(text, question.image is not None)


def qcm_lea(question: Question) -> str:
    """The human turn of llava_{split}_QCM-LEA.json, with the image token at the end."""
    options = " ".join(
        f"({letter}) {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)
    )
    text = (
        f"Question: {question.question}\n"
        f"Context: {question.hint.strip() or 'N/A'}\n"
        f"Options: {options}\n"
    )
    text = text.replace("  ", " ").strip()
    if text.endswith("BECAUSE:"):
        text = text.replace("BECAUSE:", "").strip()
    # the script means the leading word, and takes every one
    text = text.replace("Question: ", "")
    return text if question.image is None else f"{text}\n{IMAGE_TOKEN}"


def message(text: str, has_image: bool, suffix: str) -> str:
    """The user's message of model_vqa_science.py.

    Args:
        text: the human turn of a question file; its image token is moved to the front.
        suffix: a further line, e.g. `LETTER_SUFFIX` (--single-pred-prompt); or empty.
    """
    text = with_image(text.replace(IMAGE_TOKEN, "").strip(), has_image)
    return f"{text}\n{suffix}" if suffix else text
