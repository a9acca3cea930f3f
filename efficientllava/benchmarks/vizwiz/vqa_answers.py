"""Short answers compared as the VQA leaderboards do: m4c's EvalAIAnswerProcessor.

Source: llava/eval/m4c_evaluator.py at haotian-liu/LLaVA c121f04, which scripts/
convert_vizwiz_for_submission.py applies to VizWiz. Its oddities are kept, because published
numbers hold them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from efficientllava.benchmarks.vizwiz.contractions import CONTRACTIONS

_NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten".split(),
    )
} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# a point before no digit; the "look behind" of the official pattern, (?!<=\d), never bites
_POINT = re.compile(r"(?!<=\d)(\.)(?!\d)")
# re.UNICODE is passed where re.sub takes a count
_MOST_POINTS = int(re.UNICODE)


def normalise(answer: str) -> str:
    """An answer in the form in which it is compared. Not idempotent ("whats" -> "what's")."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    spaced = text  # where a character stands is looked up before any is taken out
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in spaced or f" {mark}" in spaced
        text = text.replace(mark, "" if beside_space else " ")
    text = _POINT.sub("", text, count=_MOST_POINTS)
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Agreement with the annotators in [0, 1]: the mean of min(matches / 3, 1) over the sets that
    leave one annotator out (by place, not by value). All texts are normalised first.
    """
    normalised = normalise(prediction)
    matches = [normalise(answer) == normalised for answer in answers]
    others = (sum(matches) - match for match in matches)
    # the official script sums in this order
    return sum(min(1.0, other / 3) for other in others) / len(matches)
