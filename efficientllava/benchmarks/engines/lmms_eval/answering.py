"""Questions of lmms-eval put to a model with our prompts, encoding, batches and greedy decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from efficientllava.benchmarks.generation import Asked, generate_answers
from efficientllava.benchmarks.journal import Journal
from efficientllava.data.encoding import encode_answered
from efficientllava.data.prompts import asks_as_vicuna, conversation_prompt
from efficientllava.errors import UserError
from efficientllava.models.batches import batch_inputs
from efficientllava.models.checkpoint import load_processor
from efficientllava.models.families import family_of
from efficientllava.models.likelihood import answer_likelihoods
from efficientllava.models.source import NEEDS_IMAGES
from efficientllava.progress import Event, Progress, silent

NEW_TOKENS = 1024
"""Where a task names no length, as lmms-eval's own models have it."""
DEFAULT_STOP = "\n\n"
"""lmms-eval puts it into every task that names no end; its newer models ignore it, as we do."""


@dataclass(frozen=True)
class LmmsQuestion:
    """A question as a task of lmms-eval asks it.

    Attributes:
        id: TASK/number.
        turns: as `data.prompts.conversation_prompt` takes them.
        digest: of the pictures' pixels; empty without one.
        pictures: opens them, in RGB.
        new_tokens: length at which the answer is cut.
        stops: texts at which it ends.
    """

    id: str
    turns: Sequence[Mapping[str, Any]]
    digest: str
    pictures: Callable[[], list[Image.Image]] = field(repr=False)
    new_tokens: int = NEW_TOKENS
    stops: tuple[str, ...] = ()

    def image_digest(self) -> str:
        """Digest of the pictures; empty without one."""
        return self.digest

    def open_image(self) -> list[Image.Image] | None:
        """The pictures, decoded anew: all of a task's would not fit the memory."""
        return self.pictures() if self.digest else None


@dataclass(frozen=True)
class Answering:
    """A model that answers questions.

    Attributes:
        key: digest of its weights; answers are taken up under it.
        journal: where answers are kept as they come.
        new_tokens: length of answers; None for each task's own.
    """

    model: Any
    processor: Any
    key: str
    journal: Path
    batch_size: int = 1
    new_tokens: int | None = None
    progress: Progress = silent

    def answers(self, questions: Sequence[LmmsQuestion]) -> list[str]:
        """Greedy answers, each cut before the first of its stops.

        Raises:
            UserError: a question cannot be put to the model.
        """
        lengths = [self.new_tokens or question.new_tokens for question in questions]
        texts, done = [""] * len(questions), 0
        for length in sorted(set(lengths)):
            chosen = [number for number, own in enumerate(lengths) if own == length]
            given = generate_answers(
                self.model,
                self.processor,
                [Asked(questions[number], self._prompt(questions[number])) for number in chosen],
                self.batch_size,
                length,
                Journal(self.journal),
                self.key,
                _continued(self.progress, done, len(questions)),
            )
            for number, text in zip(chosen, given, strict=True):
                texts[number] = _cut(text, questions[number].stops)
            done += len(chosen)
        return texts

    @torch.no_grad()
    def losses(
        self, questions: Sequence[LmmsQuestion], continuations: Sequence[str]
    ) -> list[tuple[float, bool]]:
        """Mean negative log-likelihood of the tokens of each continuation, in nats, and whether
        greedy decoding would give it.

        lmms-eval's own models return this loss as "likelihood", and its tasks choose the lowest.

        Raises:
            UserError: a question cannot be put to the model.
        """
        found: list[tuple[float, bool]] = []
        pairs = list(zip(questions, continuations, strict=True))
        for start in range(0, len(pairs), self.batch_size):
            batch = pairs[start : start + self.batch_size]
            samples = [self._answered(*pair) for pair in batch]
            inputs = batch_inputs(self.model, self.processor, samples, side="right")
            logits = self.model(**inputs).logits
            for row, ids, sample in zip(logits, inputs["input_ids"], samples, strict=True):
                values, likeliest = answer_likelihoods(row, ids, sample)
                found.append((-float(values.mean()), bool(likeliest.all())))
            self.progress(Event("question", len(found), len(pairs)))
        return found

    def _answered(self, question: LmmsQuestion, continuation: str) -> Any:
        try:
            return encode_answered(
                self.processor, self._prompt(question), continuation.strip(), question.open_image()
            )
        except (ValueError, IndexError) as error:
            raise UserError(
                f"the processor refuses a prompt: {str(error).strip()}",
                where=f"question {question.id}",
            ) from error

    def _prompt(self, question: LmmsQuestion) -> str:
        family = family_of(self.model.config)
        if question.digest and not family.takes_images:
            raise UserError(
                "has a picture, and the model takes none",
                where=f"question {question.id}",
                remedy="name tasks of text alone, or evaluate a model that takes images",
            )
        if not question.digest and self.model.config.model_type in NEEDS_IMAGES:
            raise UserError(
                "has no picture, and the model takes no question without one",
                where=f"question {question.id}",
                remedy="name tasks whose questions all have one",
            )
        return conversation_prompt(self.processor, question.turns, family.image_token)


def official_processor(checkpoint: Path, model: Any, processor: Any, style: str, name: str) -> Any:
    """The processor whose template asks as our own benchmarks do.

    Args:
        processor: loaded with the template `name`; with `auto` a LLaVA without a template of its
            own, or with the hub's, is asked with that of its official scripts.
        style: `evaluation.style`.
    """
    if name != "auto" or model.config.model_type != "llava" or not asks_as_vicuna(processor):
        return processor
    return load_processor(checkpoint, style, "llava_v1" if style == "llava_sqa" else "vicuna_v1")


def _continued(progress: Progress, before: int, total: int) -> Progress:
    def report(event: Event) -> None:
        progress(replace(event, done=before + event.done, total=total))

    return report


def _cut(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.partition(stop)[0]
    return text.strip()
