"""Scores of prediction files, without a model; a judge where the benchmark needs one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efficientllava.benchmarks.base import Benchmark, Outcome, read_records
from efficientllava.benchmarks.judge.client import Judge, JudgeSettings, Judging
from efficientllava.benchmarks.predictions import read_predictions
from efficientllava.errors import UserError
from efficientllava.parameters import JudgeParameters
from efficientllava.progress import Progress, silent


def judging_by(
    benchmark: Benchmark[Any], parameters: JudgeParameters, cache: Path
) -> Judging | None:
    """The judge that the parameters name; None for a benchmark that needs none."""
    if not benchmark.judge:
        return None
    settings = JudgeSettings(
        parameters.model or benchmark.judge,
        parameters.base_url,
        parameters.parallel,
        parameters.attempts,
        parameters.timeout,
    )
    return Judging(Judge(settings, cache), parameters.runs)


def score_files(
    benchmark: Benchmark[Any],
    files: Sequence[Path],
    source: str | Path,
    split: str | None = None,
    judging: Judging | None = None,
    runs: int | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Score prediction files in the official formats.

    Args:
        files: one file; for LLaVA-Bench also several review files, which are averaged.
        source: the benchmark's data.
        runs: how many grades of each question of an MM-Vet grade file are used; None for all.

    Raises:
        UserError: naming the file, line or ids that cannot be used, or that a judge is missing.
    """
    records = read_records(benchmark, source, split)
    predictions = [read_predictions(file) for file in files]
    if len(predictions) > 1 and not (
        benchmark.averages_judgements and all(prediction.rows for prediction in predictions)
    ):
        raise UserError(
            "one file of predictions at a time; only review files of LLaVA-Bench are averaged",
            where=benchmark.name,
        )
    if predictions[0].rows:
        return benchmark.score_judged(records, predictions, runs)
    return benchmark.score(records, predictions[0], source, judging, progress)
