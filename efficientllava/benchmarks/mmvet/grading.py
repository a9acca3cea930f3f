"""MM-Vet's judge: a few examples, then one line to complete with a grade.

Source: mm-vet_evaluator.py of yuweihao/MM-Vet, whose prompt is part of the protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from efficientllava.benchmarks.judge.client import Judge
from efficientllava.benchmarks.mmvet.reading import Sample
from efficientllava.progress import Progress

TRIES = 5
_TOKENS = 3
_AGAIN = "\nPredict the correctness of the answer (digit): "
_MEME = (
    "Can you explain this meme? | This meme is poking fun at the fact that the names of the "
    "countries Iceland and Greenland are misleading. Despite its name, Iceland is known for its "
    "beautiful green landscapes, while Greenland is mostly covered in ice and snow. The meme is "
    "saying that the person has trust issues because the names of these countries do not "
    "accurately represent their landscapes. | "
)
EXAMPLES = (
    "Compare the ground truth and prediction from AI models, to give a correctness score for the "
    "prediction. <AND> in the ground truth means it is totally right only when all elements in "
    "the ground truth are present in the prediction, and <OR> means it is totally right when any "
    "one element in the ground truth is present in the prediction. The correctness score is 0.0 "
    "(totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, or 1.0 (totally right). Just "
    "complete the last space of the correctness score.\n"
    "\n"
    "Question | Ground truth | Prediction | Correctness\n"
    "--- | --- | --- | ---\n"
    "What is x in the equation? | -1 <AND> -5 | x = 3 | 0.0\n"
    "What is x in the equation? | -1 <AND> -5 | x = -1 | 0.5\n"
    "What is x in the equation? | -1 <AND> -5 | x = -5 | 0.5\n"
    "What is x in the equation? | -1 <AND> -5 | x = -5 or 5 | 0.5\n"
    "What is x in the equation? | -1 <AND> -5 | x = -1 or x = -5 | 1.0\n"
    f"{_MEME}The meme talks about Iceland and Greenland. It's pointing out that despite their "
    "names, Iceland is not very icy and Greenland isn't very green. | 0.4\n"
    f"{_MEME}The meme is using humor to point out the misleading nature of Iceland's and "
    "Greenland's names. Iceland, despite its name, has lush green landscapes while Greenland is "
    "mostly covered in ice and snow. The text 'This is why I have trust issues' is a playful way "
    "to suggest that these contradictions can lead to distrust or confusion. The humor in this "
    "meme is derived from the unexpected contrast between the names of the countries and their "
    "actual physical characteristics. | 1.0\n"
)


def request_text(sample: Sample, prediction: str) -> str:
    """The judge's prompt for one answer."""
    truth = sample.answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return EXAMPLES + "\n" + " | ".join([sample.text, truth, prediction, ""])


def parsed_grade(content: str | None) -> float | None:
    """The number before the first blank, if it is one in [0, 1]; None for anything else."""
    try:
        grade = float((content or "").split(" ")[0].strip())
    except ValueError:
        return None
    return grade if 0.0 <= grade <= 1.0 else None


def grade(
    samples: Sequence[Sample],
    texts: Mapping[str, str],
    judge: Judge,
    runs: int,
    progress: Progress,
) -> dict[str, dict[str, list[Any]]]:
    """Grade every answer `runs` times.

    A reply that is no grade is asked for again with a further line, warmer each time; after five
    the grade is 0. (The script asks a sixth time and throws the reply away: here it does not.)

    Returns:
        The official grade file by id: {"model", "content", "score"}, and "malformed", the number
        of replies that were no grade.
    """
    work = {
        f"{sample.id} {run}": partial(_graded, sample, texts[sample.id], judge, run)
        for run in range(runs)
        for sample in samples
    }
    graded = judge.map(work, progress)
    grades: dict[str, dict[str, list[Any]]] = {}
    for sample in samples:
        gradings = [graded[f"{sample.id} {run}"] for run in range(runs)]
        grades[sample.id] = {
            name: [grading[name] for grading in gradings]
            for name in ("model", "content", "score", "malformed")
        }
    return grades


def _graded(sample: Sample, prediction: str, judge: Judge, run: int) -> dict[str, Any]:
    text = request_text(sample, prediction)
    temperature = 0.0
    for tried in range(TRIES):
        again = tried > 0
        reply = judge.ask(
            [{"role": "user", "content": text + _AGAIN if again else text}],
            sample=run,
            max_tokens=_TOKENS,
            temperature=temperature,
        )
        temperature += 0.5 if again else 0.0
        score = parsed_grade(reply.content)
        content = (reply.content or "").split(" ")[0].strip()
        if score is not None:
            break
    return {
        "model": reply.model,
        "content": content,
        "score": 0.0 if score is None else score,
        "malformed": TRIES if score is None else tried,
    }
