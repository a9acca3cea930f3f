"""VizWiz: photos by blind people, ten answers each.

The answers of the test split are hidden: for it there is a file for the server instead of a score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from efficientllava.benchmarks.base import Benchmark, Outcome
from efficientllava.progress import Progress

if TYPE_CHECKING:
    from efficientllava.benchmarks.judge.client import Judging
    from efficientllava.benchmarks.predictions import Predictions
    from efficientllava.benchmarks.vizwiz.reading import Photo


@dataclass(frozen=True)
class VizWiz(Benchmark["Photo"]):
    """See `Benchmark`."""

    def read(self, source: str | Path, split: str, style: str) -> Sequence[Photo]:
        """See `Benchmark`."""
        from efficientllava.benchmarks.vizwiz.reading import read_photos

        return read_photos(source, split)

    def spelled(self, records: Sequence[Photo], texts: Mapping[str, str]) -> dict[str, str]:
        """See `Benchmark`: submissions name answers by image."""
        from efficientllava.benchmarks.vizwiz.scores import by_number

        return by_number(records, texts)

    def score(
        self,
        records: Sequence[Photo],
        predictions: Predictions,
        source: str | Path,
        judging: Judging | None,
        progress: Progress,
    ) -> Outcome:
        """See `Benchmark`.

        Raises:
            UserError: the split's answers are not public, too.
        """
        from efficientllava.benchmarks.vizwiz.scores import score_texts

        return self.outcome(score_texts(records, self.answers(records, predictions)))

    def has_answers(self, records: Sequence[Photo]) -> bool:
        """See `Benchmark`."""
        return all(photo.answers for photo in records)

    def submission(
        self, records: Sequence[Photo], texts: Mapping[str, str]
    ) -> list[dict[str, str]] | None:
        """See `Benchmark`."""
        from efficientllava.benchmarks.vizwiz.scores import submission

        return submission(records, texts)


VIZWIZ = VizWiz(
    name="vizwiz",
    title="VizWiz-VQA",
    splits=("val", "test", "train"),
    new_tokens=128,
    digits=4,
    hub="lmms-lab/VizWiz-VQA",
    source="haotian-liu/LLaVA c121f04: model_vqa_loader.py, m4c_evaluator.py",
)
