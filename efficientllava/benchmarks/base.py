"""A benchmark: one object that reads its questions, puts them to a model, scores answers.

A benchmark of another package is an object of a subclass of `Benchmark`, and an entry point in the
group `efficientllava.benchmarks` that names it (docs/architecture.md shows one). This module and
those of the objects load no torch, because names are checked before anything else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from efficientllava.data.conversations import CONVERSATIONS, IMAGE_TOKEN
from efficientllava.errors import UserError
from efficientllava.progress import Progress

if TYPE_CHECKING:
    from efficientllava.benchmarks.judge.client import Judging
    from efficientllava.benchmarks.predictions import Predictions
    from efficientllava.benchmarks.records import Record

R = TypeVar("R", bound="Record")


def with_image(text: str, has_image: bool) -> str:
    """The user's message: the image token on a line of its own in front."""
    return f"{IMAGE_TOKEN}\n{text}" if has_image else text


@dataclass(frozen=True)
class Style:
    """A way to put the questions.

    Attributes:
        conversation: a name of `data.conversations.CONVERSATIONS`.
        suffix: a last line of the user's message; empty for none.
    """

    conversation: str = "vicuna_v1"
    suffix: str = ""


@dataclass(frozen=True)
class Outcome:
    """The scores of answers, and the judgements behind them.

    Attributes:
        scores: in the form of scores.json: accuracy in [0, 1] with standard error, n, breakdowns;
            "official" numbers as the official script rounds them; notes.
        judgements: the judge's grades or reviews by file name, in the official formats.
    """

    scores: dict[str, Any]
    judgements: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark(ABC, Generic[R]):
    """One benchmark: a subclass says how questions are read and answers are scored.

    Attributes:
        name: as in params.yaml.
        source: the official scripts that are followed; stands in the scores.
        styles, splits: what there is; the first is taken when none is named.
        new_tokens: the length at which the official script cuts an answer.
        digits: decimals of the published percentages.
        hub: parquet records; empty where there are none.
        judge: the judge that the published numbers were made with; empty where none is needed.
    """

    name: str
    title: str
    source: str
    styles: Mapping[str, Style] = field(default_factory=lambda: {"llava_v1_5": Style()})
    splits: tuple[str, ...] = ("test",)
    new_tokens: int = 1024
    digits: int = 1
    hub: str = ""
    judge: str = ""
    averages_judgements = False
    """Whether several files of judgements are averaged."""

    @abstractmethod
    def read(self, source: str | Path, split: str, style: str) -> Sequence[R]:
        """The questions of a split, in official order.

        Args:
            source: a folder with the official files, a folder of parquet files or a hub id.

        Raises:
            UserError: naming the file and the record that cannot be used.
        """

    @abstractmethod
    def score(
        self,
        records: Sequence[R],
        predictions: Predictions,
        source: str | Path,
        judging: Judging | None,
        progress: Progress,
    ) -> Outcome:
        """Score a model's answers.

        Raises:
            UserError: answers are missing, or belong to no question; a judge is missing.
        """

    def score_judged(
        self, records: Sequence[R], predictions: Sequence[Predictions], runs: int | None
    ) -> Outcome:
        """Score files that a judge has judged already.

        Args:
            runs: how many judgements of each answer are used; None for all.

        Raises:
            UserError: the benchmark has no judge.
        """
        raise UserError(f"holds no answers to {self.title}", where=str(predictions[0].source))

    def message(self, record: R, style: str) -> str:
        """The user's message, with the image token in front where there is an image."""
        return with_image(record.text, record.image is not None)

    def prompt(self, record: R, style: str) -> str:
        """Everything the model reads, to the character: system sentence, roles, message.

        BOS is the tokenizer's; "<image>" stands where the image's tokens go.
        """
        return CONVERSATIONS[self.styles[style].conversation].prompt(self.message(record, style))

    def logged_prompt(self, record: R, style: str) -> str:
        """The `prompt` of an answer line, officially without "<image>"."""
        return self.message(record, style).removeprefix(f"{IMAGE_TOKEN}\n")

    def question_id(self, record: R) -> str | int:
        """The id as answer lines write it: a number where it is one."""
        return int(record.id) if record.id.isdigit() else record.id

    def spelled(self, records: Sequence[R], texts: Mapping[str, str]) -> dict[str, str]:
        """Answers under the records' ids, where official files spell them in another way."""
        return dict(texts)

    def has_answers(self, records: Sequence[R]) -> bool:
        """Whether the split's right answers are public; without them nothing is scored."""
        return True

    def submission(
        self, records: Sequence[R], texts: Mapping[str, str]
    ) -> list[dict[str, str]] | None:
        """The file for the evaluation server; None where there is no server."""
        return None

    @property
    def has_submission(self) -> bool:
        """Whether there is an evaluation server, for which `submission` makes a file."""
        return type(self).submission is not Benchmark.submission

    def style(self, name: str | None) -> str:
        """A style by name; the first one for None.

        Raises:
            UserError: the benchmark is not put in that style.
        """
        return self._one_of("style", name, tuple(self.styles))

    def split(self, name: str | None) -> str:
        """A split by name; the first one for None.

        Raises:
            UserError: the benchmark has no such split.
        """
        return self._one_of("split", name, self.splits)

    def _one_of(self, kind: str, name: str | None, known: tuple[str, ...]) -> str:
        chosen = name or known[0]
        if chosen not in known:
            raise UserError(f"no {kind} {chosen!r} (there are: {', '.join(known)})", self.name)
        return chosen

    def answers(self, records: Sequence[R], predictions: Predictions) -> dict[str, str]:
        """All answers by the records' ids.

        Raises:
            UserError: there is none, one is missing, or one belongs to no question.
        """
        from efficientllava.benchmarks.predictions import require_all, require_known

        where = str(predictions.source)
        if not predictions.texts:
            raise UserError(f"holds no answers to {self.title}", where=where)
        texts = self.spelled(records, predictions.texts)
        identifiers = [record.id for record in records]
        require_known(texts, identifiers, where)
        require_all(identifiers, texts, where)
        return texts

    def require_judge(self, judging: Judging | None, predictions: Predictions) -> Judging:
        """The judge, where there is one.

        Raises:
            UserError: there is none, and the answers need one.
        """
        if judging is None:
            raise UserError(
                f"the answers to {self.title} need a judge",
                where=str(predictions.source),
                remedy=f"name one (published: {self.judge}), or give a file that is judged",
            )
        return judging

    def outcome(
        self,
        scores: Mapping[str, Any],
        judge: Mapping[str, Any] | None = None,
        judgements: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """Scores under the benchmark's name, with its judge's where it has one."""
        named = {"benchmark": self.name, "source": self.source, **scores}
        if judge is not None:
            named["judge"] = dict(judge)
        return Outcome(named, dict(judgements or {}))


def read_records(
    benchmark: Benchmark[Any],
    source: str | Path,
    split: str | None = None,
    style: str | None = None,
) -> Sequence[Any]:
    """The questions of a benchmark, in official order.

    Args:
        source: a folder with the official files, a folder of parquet files or a hub id.
        split, style: the first of the benchmark's for None.

    Raises:
        UserError: naming the file and the record that cannot be used; there is no question.
    """
    chosen = benchmark.style(style)
    records = benchmark.read(source, benchmark.split(split), chosen)
    if not len(records):
        raise UserError(f"holds no questions of split {benchmark.split(split)}", where=str(source))
    return records


def require_images(
    benchmark: Benchmark[Any],
    source: str | Path,
    split: str | None,
    style: str | None,
    questions: int | None,
) -> None:
    """Check that all of the first questions have an image, for a model that takes no others.

    Raises:
        UserError: they have not; as `read_records`.
    """
    records = read_records(benchmark, source, split, style)[:questions]
    if without := [record.id for record in records if record.image is None]:
        raise UserError(
            f"{len(without)} of {len(records)} questions have no image (first: {without[0]}), and "
            "the model takes no question without one",
            where=benchmark.title,
            remedy="take a benchmark whose questions all have one (scienceqa_img)",
        )


def full_prompt(benchmark: Benchmark[Any], record: Record, style: str | None = None) -> str:
    """Everything the model reads, to the character: see `Benchmark.prompt`.

    Raises:
        UserError: the question cannot be put in this style, because its full record is missing.
    """
    return benchmark.prompt(record, benchmark.style(style))
