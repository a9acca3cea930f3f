"""Mutated files for every reader: `python -m tests.reading.fuzz --seconds 3600`.

A mutation-based fuzzer with coverage: an input that reaches a new line of the readers, or of what
they call in Python, is kept and mutated further. A reader may give a value or a UserError;
anything else is a finding. `tests.reading.fuzz_atheris` gives a reader to libFuzzer instead.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from efficientllava.data.images import read_rgb
from efficientllava.errors import UserError
from efficientllava.reading import (
    load_tensors,
    read_json,
    read_json_lines,
    read_model_config,
    read_text,
    require_floats,
    require_plain_yaml,
    stored_numbers,
)

Reader = Callable[[Path], object]
READERS: dict[str, tuple[str, Reader]] = {
    "json": (".json", read_json),
    "json lines": (".jsonl", read_json_lines),
    "config": (".json", lambda path: read_model_config(path.parent)),
    "yaml": (".yaml", lambda path: require_plain_yaml(read_text(path), str(path))),
    "tensors": (".safetensors", load_tensors),
    "header": (".safetensors", lambda path: (stored_numbers(path), require_floats(path))),
    "image": (".png", lambda path: read_rgb(path, str(path))),
}
"""Suffix and reader of each format."""
PIECES = [
    b"{", b"}", b"[", b"]", b'"', b":", b",", b"null", b"NaN", b"1e999", b"-1", b"\\ud800", b"&a ",
    b"*a", b"!!", b"<<: ", b"\x00", b"\xff", b"\xef\xbb\xbf", b"9" * 30, b"dtype", b"F8_E4M3",
    b"data_offsets", b"shape", b"__metadata__", b"IHDR", b"IDAT", b"\n", b"\t", b"---", b"? ",
]  # fmt: skip
LONGEST = 4096


def corpus(name: str) -> list[bytes]:
    """Sound files to begin with."""
    value = {"model_type": "llava", "text_config": {"num_hidden_layers": 2, "x": [1, 0.5, None]}}
    if name in ("json", "config"):
        return [json.dumps(value).encode(), b"{}", b"[[1, 2], {}]"]
    if name == "json lines":
        return [b'{"question_id": 1, "text": "A"}\n' * 2]
    if name == "yaml":
        return [b"model: {source: demo}\nratios: [0.5, &a 0.6, *a]\n", b"a: |\n  text\n"]
    if name == "image":
        from PIL import Image

        files = []
        for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
            Image.new("RGB", (4, 4), "red").save(buffer := BytesIO(), form)
            files.append(buffer.getvalue())
        return files
    import torch
    from safetensors.torch import save

    tensors = {"a.weight": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    return [save(tensors), save({"position_ids": torch.arange(3)}, {"format": "pt"})]


def mutated(content: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """One to four changes."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4))):
        place, length = chance.randrange(len(data) + 1), chance.choice((1, 2, 8, 40))
        kind = chance.randrange(8)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[place : place + length]
        elif kind == 2:
            data[place:place] = chance.choice(PIECES) * chance.choice((1, 1, 2, 70))
        elif kind == 3:
            data[place : place + length] = chance.randbytes(length)
        elif kind == 4:
            part = chance.choice(others)
            data[place:place] = part[chance.randrange(len(part) + 1) :][:length]
        elif kind == 5 and len(data) > 8:
            number = chance.choice((0, 1, 2**31, 2**60, 2**63, len(data), len(data) - 8))
            data[:8] = struct.pack("<Q", number)
        elif kind == 6:
            data[place:place] = data[place : place + length]
        else:
            digits = [index for index, each in enumerate(data) if 48 <= each <= 57]
            if digits:
                data[chance.choice(digits)] = chance.choice(b"0123456789-")
    return bytes(data[:LONGEST])


def reached(read: Callable[[], object]) -> set[tuple[str, int]]:
    """The lines that are run, of the readers and of what they call."""
    lines: set[tuple[str, int]] = set()

    def trace(frame: Any, event: str, _: Any) -> Any:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        read()
    except UserError:
        pass
    finally:
        sys.settrace(None)
    return lines


def fuzz(name: str, seed: int, seconds: float, folder: Path, runs: int = 10**9) -> list[str]:
    """Mutate files of one format; what was found, in words."""
    suffix, read = READERS[name]
    chance, kept, seen = random.Random(f"{name} {seed}"), corpus(name), set[tuple[str, int]]()
    file, found, done = folder / f"config{suffix}", list[str](), 0
    end = time.monotonic() + seconds
    while done < runs and time.monotonic() < end:
        content = mutated(chance.choice(kept), kept, chance)
        file.write_bytes(content)
        began = time.monotonic()
        try:
            new = reached(lambda: read(file)) - seen
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            found.append(f"{name}: {type(error).__name__}: {error} from {content!r}")
            continue
        finally:
            done += 1
        if time.monotonic() - began > 5:
            found.append(f"{name}: took {time.monotonic() - began:.0f} s with {content!r}")
        if new:
            seen |= new
            kept.append(content)
    print(f"{name}: {done} files, {len(kept)} kept, {len(seen)} lines, {len(found)} found")
    return found


def main() -> None:
    """Fuzz every reader for the same time; exit status 1 with findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=READERS)
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else list(READERS)
    found: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            share = arguments.seconds / len(names)
            found += fuzz(name, arguments.seed, share, Path(temporary))
    kinds = Counter(each.split(" from ")[0][:120] for each in found)
    print(*(f"{count} x {kind}" for kind, count in kinds.items()), *found[:20], sep="\n")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
