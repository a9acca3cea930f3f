"""ScienceQA: multiple-choice questions from school books; all of them, or those with an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from efficientllava.benchmarks.base import Benchmark, Outcome, Style
from efficientllava.benchmarks.scienceqa import prompts
from efficientllava.errors import UserError
from efficientllava.progress import Progress

if TYPE_CHECKING:
    from efficientllava.benchmarks.judge.client import Judging
    from efficientllava.benchmarks.predictions import Predictions
    from efficientllava.benchmarks.scienceqa.reading import Problem


@dataclass(frozen=True)
class ScienceQA(Benchmark["Problem"]):
    """See `Benchmark`.

    Attributes:
        images_only: leave out questions without an image.
    """

    images_only: bool = False

    def read(self, source: str | Path, split: str, style: str) -> Sequence[Problem]:
        """See `Benchmark`."""
        from efficientllava.benchmarks.scienceqa.reading import read_problems

        problems = read_problems(source, split, style)
        return [problem for problem in problems if problem.has_image or not self.images_only]

    def message(self, record: Problem, style: str) -> str:
        """See `Benchmark`.

        Raises:
            UserError: the question cannot be put in this style, because its record is missing.
        """
        if not record.text:
            raise UserError(
                f"style {style} needs the whole record of question {record.id}, and only its text "
                "in another layout is at hand",
                where=self.name,
                remedy="put problems.json into the data folder",
            )
        return prompts.message(record.text, record.has_image, self.styles[style].suffix)

    def logged_prompt(self, record: Problem, style: str) -> str:
        """See `Benchmark`: officially with "<image>" here."""
        return self.message(record, style)

    def question_id(self, record: Problem) -> str:
        """See `Benchmark`: officially as text, though all are numbers."""
        return record.id

    def score(
        self,
        records: Sequence[Problem],
        predictions: Predictions,
        source: str | Path,
        judging: Judging | None,
        progress: Progress,
    ) -> Outcome:
        """See `Benchmark`: a missing answer counts as wrong, as officially."""
        from efficientllava.benchmarks.scienceqa.scores import score_answers

        return self.outcome(score_answers(records, predictions, source))


SCIENCEQA = ScienceQA(
    name="scienceqa",
    title="ScienceQA",
    styles={
        "llava_v1_5": Style("vicuna_v1", prompts.LETTER_SUFFIX),
        "llava_sqa": Style("llava_v1"),
    },
    splits=("test", "val", "train", "minitest", "minival", "minitrain"),
    new_tokens=1024,
    digits=2,
    hub="derek-thomas/ScienceQA",
    source="haotian-liu/LLaVA c121f04: model_vqa_science.py, eval_science_qa.py",
)
SCIENCEQA_IMG = replace(
    SCIENCEQA,
    name="scienceqa_img",
    title="ScienceQA, questions with an image",
    images_only=True,
)
