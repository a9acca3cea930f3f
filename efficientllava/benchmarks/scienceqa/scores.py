"""ScienceQA: the choice in an answer's text, and the scores.

Sources: llava/eval/eval_science_qa.py at haotian-liu/LLaVA c121f04 (extraction, total, IMG);
tools/evaluate_acc.py of lupantech/ScienceQA (the eight classes). No answer is ever guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from efficientllava.benchmarks.accuracy import share
from efficientllava.benchmarks.predictions import Predictions, require_all, require_known, some
from efficientllava.benchmarks.scienceqa.prompts import LETTERS
from efficientllava.benchmarks.scienceqa.reading import Problem, all_identifiers
from efficientllava.data.questions import PROBLEMS, Question

FAILED = "FAILED"
_STATED = re.compile(r"The answer is ([A-Z]).")
# ScienceQA's classes; TXT and IMG may overlap
BREAKDOWNS: dict[str, Callable[[Question], bool]] = {
    "NAT": lambda question: question.subject == "natural science",
    "SOC": lambda question: question.subject == "social science",
    "LAN": lambda question: question.subject == "language science",
    "TXT": lambda question: bool(question.hint),
    "IMG": lambda question: question.image is not None,
    "NO": lambda question: not question.hint and question.image is None,
    "G1-6": lambda question: question.grade_number <= 6,
    "G7-12": lambda question: question.grade_number > 6,
}


def stated_letter(text: str) -> str:
    """The letter that an answer states, or "FAILED": a letter alone; "X. ..."; or exactly one
    "The answer is X" with any character after it.
    """
    if text in LETTERS:
        return text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        return text[0]
    stated = _STATED.findall(text)
    return stated[0] if len(stated) == 1 else FAILED


def chosen_index(text: str, choices: int) -> int:
    """The index that an answer's text chooses among `choices`; -1 (wrong) if it chooses none, or
    a letter beyond them.
    """
    letter = stated_letter(text)
    return LETTERS.index(letter) if letter in LETTERS[:choices] else -1


def score_answers(
    problems: Sequence[Problem], predictions: Predictions, source: str | Path
) -> dict[str, Any]:
    """Score a file of answers, of chosen indices, or of both.

    Raises:
        UserError: an answer belongs to no question of the benchmark; an index is missing.
    """
    where = str(predictions.source)
    identifiers = [problem.id for problem in problems]
    asked = set(identifiers)
    answered = {**predictions.indices, **predictions.texts}
    require_known(answered, asked | all_identifiers(source), where)
    notes = []
    if beyond := [identifier for identifier in answered if identifier not in asked]:
        notes.append(f"{len(beyond)} answers to questions of other splits or without image unused")
    if predictions.indices:
        require_all(identifiers, predictions.indices, where)  # as evaluate_acc.py does
    chosen, unparsed = dict(predictions.indices), 0
    if predictions.texts.keys() >= predictions.indices.keys() & asked:
        for problem in problems:
            if problem.id in predictions.texts:
                text = predictions.texts[problem.id]
                chosen[problem.id] = chosen_index(text, problem.choices)
                unparsed += stated_letter(text) == FAILED
        if predictions.indices:
            own = score_indices(problems, predictions.indices)["correct"]
            notes.append(
                "answers are read from `outputs`, nothing guessed; the file's own `results` have "
                f"{own} right ({100 * own / len(problems):.2f} %)"
            )
    missing = [identifier for identifier in identifiers if identifier not in chosen]
    if missing:
        notes.append(
            f"{len(missing)} questions without an answer count as wrong, as in "
            f"eval_science_qa.py: {some(missing)}"
        )
    if unparsed:
        notes.append(f"{unparsed} answers state no letter and count as wrong")
    scores = score_indices(problems, chosen)
    return {
        **scores,
        "unparsed": unparsed,
        "missing": len(missing),
        "notes": [*notes, *scores["notes"]],
    }


def score_indices(problems: Sequence[Problem], chosen: Mapping[str, int]) -> dict[str, Any]:
    """Accuracy in all, of the questions with an image, and by the eight classes.

    Args:
        chosen: index by id; a question without one counts as wrong, as officially.
    """
    right = [chosen.get(problem.id, -1) == problem.answer for problem in problems]

    def part(belongs: Callable[[Problem], bool]) -> dict[str, Any]:
        return share([hit for hit, asked in zip(right, problems, strict=True) if belongs(asked)])

    classes: dict[str, Callable[[Problem], bool]] = {
        "TXT": lambda problem: problem.has_hint,
        "IMG": lambda problem: problem.has_image,
        "NO": lambda problem: not problem.has_hint and not problem.has_image,
    }
    notes = []
    full = [problem for problem in problems if problem.question is not None]
    if len(full) == len(problems):
        for name, belongs in BREAKDOWNS.items():
            if name not in classes:
                classes[name] = _of_question(belongs)
    else:
        notes.append(
            f"NAT, SOC, LAN, G1-6 and G7-12 are left out: subject and grade are at hand for "
            f"{len(full)} of {len(problems)} questions (they need the whole {PROBLEMS})"
        )
    order = [name for name in BREAKDOWNS if name in classes]
    return {
        **share(right),
        "correct": sum(right),
        "breakdowns": {name: part(classes[name]) for name in order},
        "notes": notes,
    }


def _of_question(belongs: Callable[[Question], bool]) -> Callable[[Problem], bool]:
    return lambda problem: problem.question is not None and belongs(problem.question)
