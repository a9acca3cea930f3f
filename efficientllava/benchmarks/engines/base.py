"""An engine: one object that measures a model on benchmarks, ours or another package's.

An engine of another package is an object of a subclass of `Engine`, and an entry point in the group
`efficientllava.engines` that names it. This module and those of the objects load no torch, because
parameters are checked before anything else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientllava.files import folder_digest
from efficientllava.progress import Progress

if TYPE_CHECKING:
    from efficientllava.parameters import EvaluationParameters


@dataclass(frozen=True)
class Subject:
    """A loaded model that is measured, and what it is measured with.

    Attributes:
        name: of the model, in files of answers.
        processor: as `evaluation.style` and `evaluation.chat_template` say.
        checkpoint: the folder that both come from.
        questions: the folder of the demo questions.
        work: unfinished answers and replies of judges.
    """

    name: str
    model: Any
    processor: Any
    checkpoint: Path
    questions: Path
    work: Path
    settings: EvaluationParameters
    progress: Progress

    @cached_property
    def key(self) -> str:
        """Digest of the checkpoint; answers are taken up under it."""
        return folder_digest(self.checkpoint)


@dataclass(frozen=True)
class Measured:
    """What an engine found.

    Attributes:
        record: the content of scores.json: accuracy in [0, 1] with standard error and n of the
            main benchmark, and what is below it.
        lines: of predictions.jsonl, the main benchmark's.
        answers: lines of answers by benchmark.
        files: further files beside these, by name.
    """

    record: dict[str, Any]
    lines: list[str]
    answers: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)


class Engine(ABC):
    """Asks a model and scores its answers."""

    name: str

    @abstractmethod
    def misfit(self, settings: EvaluationParameters) -> str | None:
        """Why parameters of `evaluation` do not go together; None where they do."""

    @abstractmethod
    def check_names(self, settings: EvaluationParameters) -> None:
        """Check, before the first stage works, that what the parameters name is there.

        Raises:
            UserError: it is not; the package that knows it is not installed.
        """

    def check(self, settings: EvaluationParameters) -> None:
        """Check all that can be checked before a model is loaded.

        Raises:
            UserError: as `check_names`; a key is missing.
        """
        self.check_names(settings)

    @abstractmethod
    def measure(self, subject: Subject) -> Measured:
        """Ask a model and score its answers.

        Raises:
            UserError: questions, images or a judge cannot be used.
        """
