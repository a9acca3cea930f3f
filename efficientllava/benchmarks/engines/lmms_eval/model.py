"""Our models as lmms-eval sees them: its chat interface, and its simple one for likelihoods.

It is imported where lmms-eval is installed, and by lmms-eval itself (`registration`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from PIL import Image

from efficientllava.benchmarks.engines.lmms_eval.answering import (
    DEFAULT_STOP,
    NEW_TOKENS,
    Answering,
    LmmsQuestion,
    official_processor,
)
from efficientllava.data.conversations import IMAGE_TOKEN
from efficientllava.data.images import as_rgb, read_rgb
from efficientllava.errors import UserError
from efficientllava.reading import expanded

Part = dict[str, Any]
Pictures = Callable[[], list[Image.Image]]


class ChatModel(lmms):  # type: ignore[misc]
    """A checkpoint, dense, pruned or packed, behind lmms-eval's chat interface.

    Args:
        pretrained: its folder; or a model that is loaded already.
        chat_template: as `evaluation.chat_template`.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | Answering,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        chat_template: str = "auto",
    ) -> None:
        super().__init__()
        if isinstance(pretrained, str):
            pretrained = opened(pretrained, int(batch_size), device or "cpu", chat_template)
        self.answering = pretrained

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy answers; a task's sampling and beams are left out."""
        return self.answering.answers([self._question(request.args) for request in requests])

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """As `Answering.losses`: the mean loss of each continuation, and whether it is greedy.

        lmms-eval 0.7.3 makes text of a plain pair, but not of one in its own `GenerationResult`.
        """
        questions, continuations = [], []
        for request in requests:
            context, target, doc_to_visual, number, task, split = request.args
            document = self.task_dict[task][split][number]
            questions.append(self._simple(context, doc_to_visual, {}, (number, task, split)))
            continuations.append(target if isinstance(target, str) else str(target(document)))
        losses = self.answering.losses(questions, continuations)
        return [GenerationResult(pair) for pair in losses]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """No task with several rounds can be asked.

        Raises:
            UserError: always.
        """
        raise UserError("a task asks in several rounds, which is not supported here", "lmms-eval")

    def _question(self, arguments: tuple[Any, ...]) -> LmmsQuestion:
        _, doc_to_messages, settings, number, task, split = arguments
        dataset = self.task_dict[task][split]

        def messages() -> list[Any]:
            return list(doc_to_messages(dataset[number]))

        name = f"{task}/{number}"
        turns = messages()
        pictures = [part for turn in turns for part in _pictures(turn, name)]
        content = [{"role": turn["role"], "content": _placed(turn["content"])} for turn in turns]

        def reopen() -> list[Image.Image]:
            return [_opened(part, name) for turn in messages() for part in _pictures(turn, name)]

        opened_now = [_opened(part, name) for part in pictures]
        return _question(name, content, opened_now, reopen, settings)

    def _simple(
        self, context: str, doc_to_visual: Any, settings: Part, place: tuple[int, str, str]
    ) -> LmmsQuestion:
        number, task, split = place
        dataset, name = self.task_dict[task][split], f"{task}/{number}"

        def reopen() -> list[Image.Image]:
            visuals = doc_to_visual(dataset[number]) if doc_to_visual else None
            return [_opened(visual, name) for visual in _flat(visuals)]

        pictures = reopen()
        parts = [*({"type": "image"} for _ in pictures), {"type": "text", "text": context}]
        turns = [{"role": "user", "content": _placed(parts)}]
        return _question(name, turns, pictures, reopen, settings)


class SimpleModel(ChatModel):
    """The same behind lmms-eval's simple interface: pictures, then a text."""

    is_simple = True

    def _question(self, arguments: tuple[Any, ...]) -> LmmsQuestion:
        context, settings, doc_to_visual, number, task, split = arguments
        return self._simple(context, doc_to_visual, settings, (number, task, split))


def opened(folder: str, batch_size: int, device: str, chat_template: str) -> Answering:
    """A checkpoint from its folder, for lmms-eval's own command line.

    Raises:
        UserError: it cannot be loaded.
    """
    from efficientllava.files import folder_digest
    from efficientllava.models.checkpoint import load_model, load_processor
    from efficientllava.models.folder_kind import checkpoint_in

    checkpoint = checkpoint_in(expanded(folder))
    model = load_model(checkpoint, device=device)
    processor = load_processor(checkpoint, chat_template=chat_template)
    processor = official_processor(checkpoint, model, processor, "llava_v1_5", chat_template)
    key = folder_digest(checkpoint)
    journal = Path(".work") / "answers" / f"lmms_eval-{key[:16]}.jsonl"
    return Answering(model, processor, key, journal, batch_size)


def _question(
    name: str,
    turns: Sequence[Mapping[str, Any]],
    pictures: Sequence[Image.Image],
    reopen: Pictures,
    settings: Mapping[str, Any],
) -> LmmsQuestion:
    until = settings.get("until") or []
    stops = [until] if isinstance(until, str) else until
    return LmmsQuestion(
        name,
        turns,
        _digest(pictures),
        reopen,
        int(settings.get("max_new_tokens") or NEW_TOKENS),
        tuple(stop for stop in stops if stop and stop != DEFAULT_STOP),
    )


def _digest(pictures: Sequence[Image.Image]) -> str:
    if not pictures:
        return ""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.size}".encode() + picture.tobytes())
    return digest.hexdigest()


def _flat(visuals: Any) -> list[Any]:
    """Pictures in one list, however deep a task nests them; none for None."""
    if visuals is None:
        return []
    if isinstance(visuals, list | tuple):
        return [each for visual in visuals for each in _flat(visual)]
    return [visuals]


def _pictures(turn: Mapping[str, Any], name: str) -> Iterable[Any]:
    for part in turn["content"]:
        if part["type"] == "image":
            yield part["url"]
        elif part["type"] != "text":
            raise UserError(
                f"asks with {part['type']}; only pictures and text are supported here",
                where=f"lmms-eval, {name}",
            )


def _opened(visual: Any, name: str) -> Image.Image:
    if isinstance(visual, Image.Image):
        return as_rgb(visual, name)
    if isinstance(visual, str | Path) and Path(visual).suffix.lower() not in (".mp4", ".wav"):
        return read_rgb(Path(visual), name)
    raise UserError(
        f"asks with {type(visual).__name__}; only pictures and text are supported here",
        where=f"lmms-eval, {name}",
    )


def _placed(parts: Sequence[Mapping[str, Any]]) -> list[Part]:
    """A turn's parts with its pictures where its text names them by "<image>".

    Without as many names as pictures, the names are dropped and the pictures stay where they are.
    """
    images = sum(part["type"] == "image" for part in parts)
    texts = [part["text"] for part in parts if part["type"] == "text"]
    names = sum(text.count(IMAGE_TOKEN) for text in texts)
    if names != images:
        texts = [text.replace(IMAGE_TOKEN, "").strip() if names else text for text in texts]
        rest = iter(texts)
        return [
            {"type": "image"} if part["type"] == "image" else {"type": "text", "text": next(rest)}
            for part in parts
        ]
    placed: list[Part] = []
    for text in texts:
        for number, piece in enumerate(text.split(IMAGE_TOKEN)):
            placed += [{"type": "image"}] if number else []
            placed += [{"type": "text", "text": piece}] if piece.strip() else []
    return placed
