"""The model behind the server: one thread that answers one request at a time, from a queue."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from efficientllava.data.prompts import conversation_prompt
from efficientllava.errors import UserError
from efficientllava.export.reference import model_inputs
from efficientllava.models.batches import plain_generation
from efficientllava.models.checkpoint import load_model, load_processor
from efficientllava.models.families import family_of
from efficientllava.serving.refusal import Refusal, refusal_of
from efficientllava.serving.request import Message, conversation_of

TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"
LOG = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Without a temperature, or at 0, the likeliest: as evaluation does.

    Attributes:
        new_tokens: length at which the answer is cut; None for the server's.
        stops: texts before which the answer ends.
    """

    new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stops: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """For `generate`."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0,
        }


@dataclass(frozen=True)
class Answer:
    """A whole answer.

    Attributes:
        finish: "stop", or "length" where it was cut.
        prompt_tokens, new_tokens: counted, image tokens and an end token included.
    """

    text: str
    finish: str
    prompt_tokens: int
    new_tokens: int


@dataclass
class Job:
    """A request in the queue.

    Attributes:
        tell: called, in the model's thread, with each further piece of text and at last with the
            `Answer` or the error.
        pieces: whether pieces are asked for.
        cancelled: set when nobody waits any more: the answer ends at its next token.
    """

    messages: Sequence[Message]
    sampling: Sampling
    tell: Callable[[str | Answer | Exception], None]
    pieces: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)


class Engine:
    """Loads a checkpoint and answers.

    Args:
        folder: the checkpoint, dense or packed.
        waiting: requests that may wait while one is answered.
        new_tokens: the longest answer where a request does not say.
        threads: of the model's arithmetic.
        ended: called when the checkpoint cannot be loaded.

    Attributes:
        ready: set when the checkpoint is loaded.
        failure: why it could not be.
    """

    def __init__(
        self,
        folder: Path,
        device: str,
        threads: int,
        waiting: int,
        new_tokens: int,
        ended: Callable[[], None],
    ) -> None:
        self.ready, self._closing = threading.Event(), threading.Event()
        self.failure: Exception | None = None
        self._folder, self._device, self._threads = folder, device, threads
        self._new_tokens, self._ended = new_tokens, ended
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._waiting = waiting
        self._current: Job | None = None
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        """Begin to load the checkpoint."""
        self._thread.start()

    def close(self, patience: float = 10.0) -> None:
        """End: the running answer ends at its next token, waiting ones are not begun."""
        self._closing.set()
        self._jobs.put(None)
        self._thread.join(patience)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._jobs.qsize()

    def submit(self, job: Job) -> None:
        """Put a request into the queue.

        Raises:
            Refusal: the checkpoint is not loaded yet, or as many wait as may.
        """
        if not self.ready.is_set() or self._closing.is_set():
            doing = "ending" if self._closing.is_set() else "loading the model"
            raise Refusal(f"the server is {doing}", status=503, code="not_ready")
        busy = self._current is not None
        if self._jobs.qsize() >= self._waiting + (not busy):
            raise Refusal(
                f"the model answers one request at a time, and {self._waiting} wait already",
                status=429,
                code="queue_full",
            )
        self._jobs.put(job)

    def _work(self) -> None:
        try:
            torch.set_num_threads(self._threads)
            self._model: Any = load_model(self._folder, device=self._device)
            self._processor: Any = load_processor(self._folder)
            # its warning of a long message; ours is the answer to the request
            self._processor.tokenizer.deprecation_warnings[TOO_LONG] = True
        except Exception as error:
            self.failure = error
            self._ended()
            return
        self.ready.set()
        while (job := self._jobs.get()) is not None and not self._closing.is_set():
            if job.cancelled.is_set():
                continue
            self._current = job
            try:
                job.tell(self._answer(job))
            except Refusal as error:
                job.tell(error)
            except UserError as error:
                job.tell(refusal_of(error))
            except Exception as error:  # this request's; the server stays
                LOG.exception("the model failed")
                job.tell(error)
            finally:
                self._current = None

    def _answer(self, job: Job) -> Answer:
        model, processor, sampling = self._model, self._processor, job.sampling
        token = family_of(model.config).image_token
        # in turn too: pictures that wait are not decoded, which bounds memory
        conversation = conversation_of(job.messages)
        text = conversation_prompt(processor, conversation.turns, token)
        inputs = model_inputs(model, processor, text, conversation.image)
        prompt_tokens = inputs["input_ids"].shape[1]
        new_tokens = self._length(prompt_tokens, sampling.new_tokens)
        writer = _Writer(processor.tokenizer, job, self._closing)
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        with torch.no_grad(), plain_generation(model):
            sequences = model.generate(
                **inputs,
                **sampling.settings,
                max_new_tokens=new_tokens,
                streamer=writer,
                stopping_criteria=StoppingCriteriaList([writer.stopping]),
            )
        tokens = sequences[0, prompt_tokens:].tolist()
        cut = len(tokens) >= new_tokens and not writer.stopped and not self._is_end(tokens[-1:])
        return Answer(writer.finish(), "length" if cut else "stop", prompt_tokens, len(tokens))

    def _length(self, prompt_tokens: int, asked: int | None) -> int:
        """The longest answer that fits behind a prompt.

        Raises:
            Refusal: the prompt, or the prompt with the answer that is asked for, is too long.
        """
        config = self._model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None)
        if context is None:
            return asked or self._new_tokens
        if prompt_tokens + (asked or 1) > context:
            raise Refusal(
                f"the model reads and writes {context} tokens; the messages have {prompt_tokens}"
                + (f", and {asked} more are asked for" if asked else ""),
                param="messages",
                code="context_length_exceeded",
            )
        return asked or min(self._new_tokens, context - prompt_tokens)

    def _is_end(self, last: list[int]) -> bool:
        ends = self._model.generation_config.eos_token_id
        return bool(last) and last[0] in ([ends] if isinstance(ends, int) else ends or [])


class _Writer(BaseStreamer):
    """The answer's text while its tokens come.

    A piece ends before white space, because a tokenizer may still join what follows to the word
    before. So the pieces together are exactly the whole answer.
    """

    def __init__(self, tokenizer: Any, job: Job, closing: threading.Event) -> None:
        self._tokenizer, self._job, self._closing = tokenizer, job, closing
        self._tokens: list[int] = []
        self._sent = 0
        self._prompt_came = False
        self.stopped = False
        self.stopping: StoppingCriteria = _Stopping(self)

    def put(self, value: torch.Tensor) -> None:
        """Take a token; the prompt comes first."""
        if not self._prompt_came:
            self._prompt_came = True
            return
        self._tokens += value.flatten().tolist()
        if not self._job.pieces and not self._job.sampling.stops:
            return
        text = self._text()
        # a stop may have begun at the end of the text
        held = max((len(stop) - 1 for stop in self._job.sampling.stops), default=0)
        if self._job.pieces and not self.stopped:
            self._send(text[: max(text[: len(text) - held].rfind(" "), 0)])

    def end(self) -> None:
        """Take the end of the tokens."""

    def finish(self) -> str:
        """Send what is left; the whole answer."""
        text = self._text()
        if self._job.pieces:
            self._send(text)
        return text

    @property
    def over(self) -> bool:
        """Whether no further token is needed."""
        return self.stopped or self._job.cancelled.is_set() or self._closing.is_set()

    def _text(self) -> str:
        text = str(self._tokenizer.decode(self._tokens, skip_special_tokens=True)).strip()
        ends = [at for stop in self._job.sampling.stops if (at := text.find(stop)) >= 0]
        self.stopped = bool(ends)
        return text[: min(ends)].strip() if ends else text

    def _send(self, text: str) -> None:
        if len(text) > self._sent:
            self._job.tell(text[self._sent :])
            self._sent = len(text)


class _Stopping(StoppingCriteria):
    def __init__(self, writer: _Writer) -> None:
        self._writer = writer

    def __call__(self, input_ids: torch.Tensor, scores: Any, **named: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._writer.over, device=input_ids.device)
