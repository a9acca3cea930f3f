"""The command `efficientllava score`: prediction files in, one table and JSON files out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from efficientllava.benchmarks.base import Benchmark, read_records
from efficientllava.benchmarks.judge.client import Judge, JudgeSettings, Judging, require_key
from efficientllava.benchmarks.predictions import read_predictions, write_lines
from efficientllava.benchmarks.scoring import score_files
from efficientllava.errors import UserError
from efficientllava.files import require_place, write_json
from efficientllava.registry import BENCHMARKS


@dataclass(frozen=True)
class JudgeOptions:
    """The options that name a judge.

    Attributes:
        settings: None for no judge; files of judgements need none.
        cache: where replies are kept.
        runs: judgements of each answer; None for one, or all that a file holds.
        judgements: folder for the judge's grades or reviews.
    """

    settings: JudgeSettings | None
    cache: Path
    runs: int | None
    judgements: Path | None

    def judging(self) -> Judging | None:
        """The judge.

        Raises:
            UserError: there is no key for it.
        """
        if self.settings is None:
            return None
        require_key()
        return Judging(Judge(self.settings, self.cache), self.runs or 1)


@dataclass(frozen=True)
class Request:
    """The files to score, and where results go.

    Attributes:
        data, split: see `score_files`.
        output: the scores as JSON.
        submission: the file for the evaluation server.
    """

    benchmark: str
    predictions: Sequence[Path]
    data: str
    split: str | None
    style: str | None
    output: Path | None
    submission: Path | None


def run(request: Request, options: JudgeOptions) -> None:
    """Score, write what was asked for, print the table.

    Raises:
        UserError: see `score_files`; the benchmark takes no submission.
    """
    benchmark: Benchmark[Any] = BENCHMARKS[request.benchmark]
    benchmark.style(request.style)
    judging = options.judging()
    _require_places(request, options)
    if request.submission is not None and not _submit(benchmark, request, request.submission):
        return
    outcome = score_files(
        benchmark, request.predictions, request.data, request.split, judging, options.runs
    )
    if options.judgements is not None:
        for name, value in outcome.judgements.items():
            write = write_lines if name.endswith(".jsonl") else write_json
            write(options.judgements / name, value)
    console = Console()
    console.print(score_table(benchmark, outcome.scores))
    if malformed := outcome.scores.get("malformed"):
        print(f"note: {malformed} malformed replies of the judge, handled as officially")
    for note in outcome.scores["notes"]:
        print(f"note: {note}")
    if request.output is not None:
        write_json(request.output, outcome.scores)


def _require_places(request: Request, options: JudgeOptions) -> None:
    """Check, before a judge is paid, that everything can be written."""
    places = {
        "--output": request.output,
        "--submission": request.submission,
        "--judgements": options.judgements,
        "--judge-cache": None if options.settings is None else options.cache,
    }
    for name, place in places.items():
        if place is not None:
            require_place(place, f"{name} {place}")
            if name in ("--output", "--submission") and place.is_dir():
                raise UserError("is a folder", f"{name} {place}", "name a file")


def _submit(benchmark: Benchmark[Any], request: Request, file: Path) -> bool:
    """Write the file for the evaluation server; whether the answers can be scored here too."""
    if not benchmark.has_submission or len(request.predictions) != 1:
        raise UserError(
            "a submission is made of one file of answers"
            + ("" if benchmark.has_submission else f", and {benchmark.title} takes none"),
            where="--submission",
        )
    records = read_records(benchmark, request.data, request.split)
    texts = benchmark.answers(records, read_predictions(request.predictions[0]))
    write_json(file, benchmark.submission(records, texts))
    print(f"{file}: {len(records)} answers for the evaluation server")
    return benchmark.has_answers(records)


def score_table(benchmark: Benchmark[Any], scores: dict[str, Any]) -> Table:
    """All parts in percent with standard error and number of questions.

    The official numbers, rounded as the official script rounds, stand where there are any.
    """
    judge = scores.get("judge")
    title = benchmark.title
    if judge:
        title += f", judged by {', '.join(judge['models'] or [judge.get('asked', '')])}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("part")
    for heading in ("score %", "± s.e.", "n"):
        table.add_column(heading, justify="right")
    official = scores.get("official", {})
    for name, part in scores["breakdowns"].items():
        table.add_row(name, *_cells(benchmark, part, official.get(name)))
    whole = official.get("total", official.get("all"))
    if "correct" in scores:
        table.add_row("right", str(scores["correct"]), "", str(scores["n"]))
    table.add_row("all", *_cells(benchmark, scores, whole), style="bold")
    if len(official.get("runs", [])) > 1:
        runs = ", ".join(f"{value:.{benchmark.digits}f}" for value in official["runs"])
        table.add_row("runs", runs, f"std {official['std']:.{benchmark.digits}f}", "")
    return table


def _cells(benchmark: Benchmark[Any], part: dict[str, Any], official: float | None) -> list[str]:
    if part["accuracy"] is None:
        return ["–", "–", str(part["n"])]
    value = 100 * part["accuracy"] if official is None else official
    error = f"{100 * part['standard_error']:.{benchmark.digits}f}"
    return [f"{value:.{benchmark.digits}f}", error, str(part["n"])]
