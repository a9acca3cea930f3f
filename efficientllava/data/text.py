"""Text that stands in for the unknown training text, and text held out from it.

A source is `demo` (prose of the Python standard library), a text file, a folder with
ptb.train.txt (held out: ptb.test.txt, or else ptb.valid.txt), or a hub id of parquet text. Each has
two parts that share nothing: the proxy part is what models are calibrated on, the held-out part is
what their text loss is measured on.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import random
import re
import sysconfig
from array import array
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from efficientllava import reading
from efficientllava.errors import UserError
from efficientllava.reading import expanded

logger = logging.getLogger(__name__)

Part = Literal["proxy", "held_out"]
HELD_OUT_PERCENT = 15
PIECE, MARGIN = 2**18, 2**10
"""Characters that are encoded at a time, and how many more on both sides."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def read_text(source: str, part: Part = "proxy") -> str:
    """The text of a source's part.

    Raises:
        UserError: naming the file that is missing, empty or not UTF-8.
    """
    if source == "demo":
        return demo_text(part)
    path = expanded(source)
    if path.is_dir():
        return _join_lines(_read_file(path / _ptb_file(path, part)))
    if path.is_file():
        return _cut(_read_file(path), part)
    if _HUB_ID.fullmatch(source):
        return _hub_text(source, part)
    raise UserError(
        "no such text",
        where=source,
        remedy="name `demo`, a text file, a folder with ptb.train.txt or a hub id",
    )


def _ptb_file(folder: Path, part: Part) -> str:
    """The file of a part: results are held against the test text, where it is there."""
    if part == "proxy":
        return "ptb.train.txt"
    return "ptb.test.txt" if (folder / "ptb.test.txt").is_file() else "ptb.valid.txt"


def sample_segments(
    tokenizer: Any, text: str, segments: int, length: int, seed: int
) -> torch.LongTensor:
    """Random windows of the tokenised text, which may overlap; [segments, length].

    SparseGPT draws its calibration data so: the text is tokenised once, starts are uniform. A text
    shorter than all windows together gives a warning: what is chosen on some of them has then seen
    many tokens of the others.

    Raises:
        UserError: the text does not hold so many segments.
    """
    tokens = _tokenise(tokenizer, text)
    starts = len(tokens) - length
    if starts < 1:
        raise UserError(
            f"the text is too short: it has {len(tokens)} tokens, a segment needs {length}",
            where="proxy text",
            remedy="lower proxy.segment_length or give more text",
        )
    if segments > starts:
        raise UserError(
            f"more segments than the text holds: {segments} are asked for, {starts} can start "
            f"in its {len(tokens)} tokens",
            where="proxy text",
            remedy="lower proxy.segments or give more text",
        )
    if segments * length > len(tokens):
        logger.warning(
            "%d segments of %d tokens come from a text of %d tokens: they overlap, so that what is "
            "measured on some is no test of others; give more text",
            segments,
            length,
            len(tokens),
        )
    draw = random.Random(seed)
    windows = []
    for _ in range(segments):
        start = draw.randint(0, starts - 1)
        windows.append(tokens[start : start + length].tolist())
    return torch.LongTensor(windows)


def held_out_segments(tokenizer: Any, source: str, segments: int, length: int) -> torch.LongTensor:
    """The first consecutive windows of the held-out part; [at most segments, length].

    Raises:
        UserError: the held-out part does not fill one segment.
    """
    tokens = _tokenise(tokenizer, read_text(source, "held_out"))
    count = min(segments, len(tokens) // length)
    if count == 0:
        raise UserError(
            f"the held-out text is too short: it has {len(tokens)} tokens, a segment needs "
            f"{length}",
            where=source,
            remedy="lower proxy.segment_length or give more text",
        )
    return torch.LongTensor(tokens[: count * length].tolist()).view(count, length)  # type: ignore[return-value]


def demo_text(part: Part = "proxy") -> str:
    """Prose of the standard library's documentation, one paragraph a line."""
    return "\n".join(
        paragraph for paragraph in _paragraphs() if _is_held_out(paragraph) == (part == "held_out")
    )


def _is_held_out(paragraph: str) -> bool:
    """A paragraph's own words decide, so that the parts cannot overlap."""
    number = int.from_bytes(hashlib.sha256(paragraph.encode()).digest()[:8], "big")
    return number % 100 < HELD_OUT_PERCENT


@cache
def _paragraphs() -> tuple[str, ...]:
    """All distinct paragraphs of prose, shuffled so that topics spread over both parts."""
    distinct: dict[str, None] = {}
    for document in _documents():
        for block in re.split(r"\n\s*\n", document):
            words = block.split()
            if _is_prose(words):
                distinct[" ".join(words)] = None
    paragraphs = sorted(distinct)
    random.Random(0).shuffle(paragraphs)
    return tuple(paragraphs)


def _is_prose(words: list[str]) -> bool:
    """No code, no tables: at least a dozen words, nearly all of them plain."""
    if len(words) < 12:
        return False
    plain_words = sum(word.strip(",.;:'").isalpha() for word in words)
    if plain_words / len(words) < 0.85:
        return False
    text = " ".join(words)
    plain = sum(
        count
        for character, count in Counter(text).items()
        if character.isalpha() or character in " ,.;:'"
    )
    return plain / len(text) >= 0.93


def _documents() -> Iterator[str]:
    """The language reference, the licence, the docstrings of the library's top-level modules.

    Packages are left out: reading them all takes longer than the text is worth.
    """
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]
    library = Path(sysconfig.get_paths()["stdlib"])
    licence = library / "LICENSE.txt"
    if licence.is_file():
        yield licence.read_text(encoding="utf-8")
    for module in sorted(library.glob("*.py")):
        yield from _docstrings(module)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):  # templates and the like
        return
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    # statements alone, and not the expressions in them, which hold no definitions
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield text
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            if isinstance(inside := getattr(node, part, ()), list):
                left += inside


def _read_file(path: Path) -> str:
    text = reading.read_text(path)
    if not text.strip():
        raise UserError("the text is empty", str(path), "give a file with text in it")
    return text


def _join_lines(text: str) -> str:
    """Mikolov's files: a sentence a line, with blanks around it."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _cut(text: str, part: Part) -> str:
    """The first or the last part of a file, cut between two words."""
    cut = len(text) * (100 - HELD_OUT_PERCENT) // 100
    while cut < len(text) and not text[cut].isspace():
        cut += 1
    return text[:cut] if part == "proxy" else text[cut:]


def _hub_text(source: str, part: Part) -> str:
    """Parquet text of the hub: `owner/name`, or `owner/name:folder` for one of its subsets.

    The branch that the hub itself converts to parquet is read, because `datasets` runs no
    loading scripts; its folders are the subsets.
    """
    import datasets

    name, _, folder = source.partition(":")
    split = "train" if part == "proxy" else "validation"
    try:
        rows = datasets.load_dataset(
            name, revision="refs/convert/parquet", data_dir=folder or None, split=split
        )
    except Exception as error:  # datasets raises a dozen kinds for names, networks and splits
        raise UserError(
            f"the hub's text cannot be read ({type(error).__name__}: {error})"[:500],
            where=source,
            remedy="check the name and the network, or give a file or a folder with ptb.train.txt",
        ) from error
    for column in ("sentence", "text"):
        if column in rows.column_names:
            return " ".join(line.strip() for line in rows[column] if line.strip())
    raise UserError(
        f"has no column `sentence` or `text` (found: {', '.join(rows.column_names)})",
        where=source,
    )


def _tokenise(tokenizer: Any, text: str) -> array[int]:
    """The tokens of a text, as of the whole, in pieces: a whole one takes 140 times its bytes.

    A piece begins between two words and is encoded with a margin on both sides, of which only the
    tokens that begin inside the piece are kept. A tokenizer without offsets takes the whole text.
    """
    if not text.strip():
        raise UserError("the text is empty", "proxy text", "give a text with words in it")
    if not getattr(tokenizer, "is_fast", False) or len(text) <= PIECE:
        # verbose=False: the text is longer than the model's context on purpose
        return array("i", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    tokens, begin = array("i"), 0
    while begin < len(text):
        end = _between_words(text, begin + PIECE)
        first, last = max(begin - MARGIN, 0), min(end + MARGIN, len(text))
        first = _between_words(text, first) if first else 0
        encoded = tokenizer(
            text[first:last], add_special_tokens=False, verbose=False, return_offsets_mapping=True
        )
        tokens.extend(
            token
            for token, (start, _) in zip(
                encoded["input_ids"], encoded["offset_mapping"], strict=True
            )
            if begin <= first + start < end
        )
        begin = end
    return tokens


def _between_words(text: str, at: int) -> int:
    """The first place from `at` on where a word has ended; the end where there is none."""
    while at < len(text) and not (text[at].isspace() and not text[at - 1].isspace()):
        at += 1
    return min(at, len(text))
