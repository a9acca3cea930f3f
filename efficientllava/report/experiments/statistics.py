"""Models measured over seeds, and their means with standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from efficientllava.report.comparison import Row, Score


@dataclass(frozen=True)
class Mean:
    """Mean over seeds; the standard error is unknown (None) for a single seed."""

    value: float
    error: float | None
    n: int

    def formatted(self, decimals: int) -> str:
        """As "81.4 ± 0.3"."""
        text = f"{self.value:.{decimals}f}"
        return text if self.error is None else f"{text} ± {self.error:.{decimals}f}"


def mean(values: Iterable[float]) -> Mean | None:
    """Mean with the standard error of the sample; None without values."""
    known = list(values)
    if not known:
        return None
    error = stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
    return Mean(fmean(known), error, len(known))


def formatted(value: Mean | None, decimals: int) -> str:
    """The mean as text, a dash for None."""
    return "–" if value is None else value.formatted(decimals)


Setting = tuple[tuple[str, int | str], ...]
"""Parameters that an experiment varies beside the seed, by their dotted name, and their values."""


@dataclass(frozen=True)
class Measured:
    """One model of an experiment.

    Attributes:
        seed: of the model (demo), the proxy data and the search.
        row: its record of the pipeline's stages.
        setting: other parameters that the experiment varies.
    """

    seed: int
    row: Row
    setting: Setting = ()

    @property
    def label(self) -> str:
        """The method with the values that are varied; the dense model depends on none."""
        values = [] if self.row.method == "dense" else [str(value) for _, value in self.setting]
        return " ".join([self.row.method, *values])


def accuracy_of(rows: Sequence[Measured], part: str = "") -> Mean | None:
    """Mean accuracy in per cent over seeds: in all, of one breakdown or on a further benchmark.

    With a single seed its standard error is the one over questions.
    """
    scores = [
        score
        for model in rows
        if (
            score := (model.row.breakdowns | model.row.benchmarks).get(part)
            if part
            else model.row.score
        )
        is not None
    ]
    return _mean_score(scores)


def _mean_score(scores: Sequence[Score]) -> Mean | None:
    if len(scores) == 1:
        [only] = scores
        return Mean(100 * only.accuracy, 100 * only.standard_error, 1)
    return mean(100 * score.accuracy for score in scores)


def models_of(measured: Sequence[Measured]) -> dict[tuple[str, float], list[Measured]]:
    """The models by label and ratio, one a seed, dense first, in the order of measurement."""
    groups: dict[tuple[str, float], list[Measured]] = {}
    for model in measured:
        rows = groups.setdefault((model.label, model.row.ratio), [])
        # every setting measures the same dense model
        if all(row.seed != model.seed for row in rows):
            rows.append(model)
    return dict(sorted(groups.items(), key=lambda item: item[0][1]))
