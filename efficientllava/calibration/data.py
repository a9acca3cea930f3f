"""The calibration data of a model: segments of text, and image-text pairs if it takes images.

`calibration_data` is part of the public API: `from efficientllava import calibration_data`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from efficientllava.data.encoding import Encoded
from efficientllava.data.images import as_rgb, read_rgb
from efficientllava.data.prompts import chat_prompt, format_prompt
from efficientllava.data.proxy import (
    Pairs,
    ProxyData,
    build_pairs,
    encode_pair,
    join_pairs,
    tensors_digest,
)
from efficientllava.data.questions import read_questions
from efficientllava.data.text import demo_text, read_text, sample_segments
from efficientllava.demo.questions.generator import picture_items
from efficientllava.errors import UserError
from efficientllava.models.loading import VisionLanguageModel
from efficientllava.reading import expanded

SEGMENTS, LENGTH, PAIRS = 64, 256, 256
"""Of text: the paper's. Of pairs: as many as the pipeline draws."""
TEXT_COLUMNS = ("text", "sentence")
PAIR_KEYS = ("image", "question", "answer")
IN_TEXT, IN_PAIRS = "calibration_data, text", "calibration_data, pairs"


@dataclass(frozen=True)
class _Pair:
    """One image-text pair before it is encoded; `where` names it in messages."""

    prompt: str
    answer: str
    image: Image.Image
    where: str


def calibration_data(
    vlm: VisionLanguageModel,
    text: str | Path | Sequence[str] | Any = None,
    pairs: str | Path | Sequence[Mapping[str, Any]] | Any = None,
    segments: int = SEGMENTS,
    length: int = LENGTH,
    count: int | None = None,
    seed: int = 0,
) -> ProxyData:
    """Draw what stands in for the unknown training data. No weights are read.

    Args:
        text: a text file (its last 15 % are held out, as in the pipeline), a folder with
            ptb.train.txt, a list of strings, or a `datasets.Dataset` with a column `text` or
            `sentence`; packaged prose when None.
        pairs: a folder in ScienceQA's layout (its training split), a `datasets.Dataset` with the
            columns image, question and answer, or a list of such mappings, whose image is a path
            or a PIL image; packaged drawings when None, and none for a text-only model.
        segments: random windows of the text, which may overlap.
        length: tokens in a segment.
        count: pairs, drawn without replacement; at most 256 when None. 0 draws none.
        seed: of both draws.

    Returns:
        Segments, pairs, their digest, and a description of where they come from.

    Raises:
        UserError: the text is missing or too short, an image is missing or cannot be read, a pair
            lacks a key, there are fewer pairs than asked for, or pairs for a text-only model.
    """
    _require_sizes(segments, length, count, seed)
    tokenizer = vlm.processor.tokenizer
    words, source = _text(text)
    try:
        drawn = sample_segments(tokenizer, words, segments, length, seed)
    except UserError as error:
        remedy = "give more text, or ask for fewer or shorter segments"
        raise UserError(error.what, where=IN_TEXT, remedy=remedy) from error
    description = f"{segments} segment{'s' * (segments > 1)} of {length} tokens from {source}"
    made: Pairs | None = None
    if not vlm.family.takes_images:
        if pairs is not None:
            raise UserError(
                "the model takes no images: it is a text-only language model",
                where=IN_PAIRS,
                remedy="leave `pairs` out",
            )
        description += "; no pairs: the model takes no images"
    elif count == 0:
        description += "; no pairs, as asked"
    else:
        made, source = _pairs(vlm, pairs, count, seed)
        description += f"; {len(made)} image-text pairs from {source}"
    return ProxyData(drawn, made, tensors_digest(drawn, made), description, vlm.reads)


def _require_sizes(segments: int, length: int, count: int | None, seed: int) -> None:
    given = {"segments": segments, "length": length, "count": count or 0, "seed": seed}
    for name, value in given.items():
        if not isinstance(value, Integral):
            problem = f"{name} is {type(value).__name__}, no whole number"
            raise UserError(problem, where="calibration_data")
    for name, value, least in (("segments", segments, 1), ("length", length, 2)):
        if value < least:
            raise UserError(f"{name} is {value}, at least {least} is needed", IN_TEXT)
    if count is not None and count < 0:
        raise UserError(f"count is {count}, which is no number of pairs", IN_PAIRS)


# --- text -------------------------------------------------------------------------------------


def _text(source: Any) -> tuple[str, str]:
    """The text of a source, and what to call it."""
    if source is None:
        return demo_text(), "packaged text (prose of Python's documentation)"
    if isinstance(source, (str, Path)):
        path = expanded(source)
        if not str(source).strip() or not _exists(path):
            raise UserError(
                "no such text file or folder",
                where=f"{IN_TEXT}: {str(source)[:80]}",
                remedy="name a text file, or a folder with ptb.train.txt",
            )
        return read_text(str(path.absolute())), str(path)
    if (columns := _columns(source)) is not None:
        column = next((name for name in TEXT_COLUMNS if name in columns), None)
        if column is None:
            raise UserError(
                f"has no column `text` or `sentence` (found: {', '.join(columns)})",
                where=IN_TEXT,
                remedy="rename the column that holds the text",
            )
        return _joined(source[column]), f"column `{column}` of a dataset of {len(source)} rows"
    if isinstance(source, Sequence):
        return _joined(source), f"{len(source)} strings"
    raise UserError(
        f"{type(source).__name__} is no text",
        where=IN_TEXT,
        remedy="give a path, a list of strings or a datasets.Dataset",
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a text in place of its path may be longer than names can be
        return False


def _joined(texts: Sequence[Any]) -> str:
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"item {index} is {type(text).__name__}, no string", where=IN_TEXT)
    return "\n\n".join(stripped for text in texts if (stripped := text.strip()))


def _columns(source: Any) -> list[str] | None:
    """The columns of a `datasets.Dataset`; None for anything else.

    Raises:
        UserError: it is several splits, or a stream without a length.
    """
    columns = getattr(source, "column_names", None)
    if columns is None:
        return None
    if isinstance(source, Mapping) or not hasattr(source, "__len__"):
        kind = "several splits" if isinstance(source, Mapping) else "a stream without a length"
        raise UserError(
            f"{type(source).__name__} is {kind}",
            where="calibration_data",
            remedy="give one datasets.Dataset, e.g. load_dataset(..., split='train')",
        )
    return list(columns)


# --- pairs ------------------------------------------------------------------------------------


def _pairs(
    vlm: VisionLanguageModel, source: Any, count: int | None, seed: int
) -> tuple[Pairs, str]:
    """The pairs of a source, and what to call it."""
    token = vlm.family.image_token
    if isinstance(source, (str, Path)):
        folder = expanded(source)
        if not str(source).strip() or not folder.is_dir():
            raise UserError(
                "no such folder of questions",
                where=f"{IN_PAIRS}: {str(source)[:80]}",
                remedy="give a folder in ScienceQA's layout, with problems.json in it",
            )
        questions = [
            question for question in read_questions(folder, "train") if question.image is not None
        ]
        drawn = _number(count, len(questions), str(folder))
        return build_pairs(questions, vlm.processor, drawn, seed, token), str(folder)
    if source is None:
        chosen = _packaged(PAIRS if count is None else count, seed)
        name = "packaged pictures (drawn scenes and maps)"
    else:
        rows, name = _rows(source)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        indices = order[: _number(count, len(rows), name)].tolist()
        chosen = (_pair(rows[index], f"{IN_PAIRS}[{index}]") for index in indices)
    samples = [_encoded(vlm.processor, token, question) for question in chosen]
    return join_pairs(samples, vlm.processor), name


def _number(count: int | None, available: int, name: str) -> int:
    number = min(PAIRS, available) if count is None else count
    if number > available or available == 0:
        what = f"{number} are asked for, there are {available}" if available else "there are none"
        raise UserError(
            f"too few image-text pairs: {what}",
            where=f"{IN_PAIRS}: {name}",
            remedy="give more pairs, or a smaller `count` (0 for none)",
        )
    return number


def _rows(source: Any) -> tuple[Any, str]:
    """The pairs, by index, and their name in messages."""
    columns = _columns(source)
    if columns is not None:
        _require_keys(columns, IN_PAIRS)
        return source, f"a dataset of {len(source)} rows"
    if isinstance(source, Sequence):
        return source, f"{len(source)} given pairs"
    raise UserError(
        f"{type(source).__name__} holds no pairs",
        where=IN_PAIRS,
        remedy="give a folder in ScienceQA's layout, a datasets.Dataset or a list of "
        "{image, question, answer}",
    )


def _require_keys(keys: Any, where: str) -> None:
    if missing := [key for key in PAIR_KEYS if key not in keys]:
        raise UserError(
            f"lacks {', '.join(missing)} (found: {', '.join(map(str, keys))})",
            where=where,
            remedy="name the keys or columns image, question and answer",
        )


def _pair(row: Any, where: str) -> _Pair:
    if not isinstance(row, Mapping):
        raise UserError(f"{type(row).__name__} is no mapping of image, question, answer", where)
    _require_keys(row, where)
    for key in ("question", "answer"):
        if not isinstance(row[key], str) or not row[key].strip():
            raise UserError(f"{key} is empty or no text", where=where)
    prompt = format_prompt(row["question"].strip(), (), "")
    return _Pair(prompt, row["answer"].strip(), _picture(row["image"], where), where)


def _picture(image: Any, where: str) -> Image.Image:
    """The image of a pair as RGB: a PIL image, a path, or what `datasets` makes of one."""
    if isinstance(image, Mapping):  # a column that is not decoded
        image = image.get("bytes") or image.get("path")
    try:
        if isinstance(image, Image.Image):
            return as_rgb(image, where)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"broken image ({error})", where=where) from error
    if isinstance(image, bytes):
        return read_rgb(image, where)
    if isinstance(image, (str, Path)):
        return read_rgb(expanded(image), f"{where}, {image}")
    raise UserError(f"image is {type(image).__name__}, neither a path nor a PIL image", where=where)


def _packaged(count: int, seed: int) -> Iterator[_Pair]:
    for number, item in enumerate(picture_items(count, seed)):
        assert item.picture is not None
        prompt = format_prompt(item.question, item.choices, item.hint)
        image = Image.fromarray(item.picture.pixels)
        yield _Pair(prompt, item.answer, image, f"packaged picture {number}")


def _encoded(processor: Any, image_token: str, pair: _Pair) -> Encoded:
    prompt = chat_prompt(processor, pair.prompt, image_token)
    return encode_pair(processor, prompt, pair.answer, pair.image, pair.where)
