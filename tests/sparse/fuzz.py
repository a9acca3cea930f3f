"""Packed checkpoints with random damage: each is refused, or answers as the undamaged one does.

`python -m tests.sparse.fuzz --files 10000` makes as many; `--first` sets the seed of the first, so
that one that was found can be made again, and `--model qwen3_vl_moe` takes a mixture. Every seed
runs in a fork under limits of time and memory. One of our loader that passes them, or dies, is
bad. With plain transformers (odd seeds) it is counted as theirs: a number in config.json may make
their configuration a list without end, before any code of ours is called.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.limited import limited

SECONDS = 30
MEMORY = 4 * 2**30
REPORT = 500
"""Seeds between two lines of the long run."""


def damage(folder: Path, seed: int) -> str:
    """Change one file of a checkpoint; returns what was done."""
    chance = random.Random(seed)
    weights = sorted(folder.glob("*.safetensors"))
    file = chance.choice([*weights, *weights, folder / "config.json", *folder.glob("*.index.json")])
    content = bytearray(file.read_bytes())
    begin, end = _region(file, content, chance)
    kind = chance.choice(("flip", "flip", "byte", "burst", "zeros", "truncate", "insert", "remove",
                          "swap", "digit", "header"))  # fmt: skip
    place = chance.randrange(begin, end)
    length = min(chance.choice((1, 2, 8, 64, 500)), end - place)
    if kind == "flip":
        for _ in range(chance.choice((1, 1, 2, 5))):
            content[chance.randrange(begin, end)] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        content[place] = chance.randrange(256)
    elif kind == "burst":
        content[place : place + length] = chance.randbytes(length)
    elif kind == "zeros":
        content[place : place + length] = bytes(length)
    elif kind == "truncate":
        del content[chance.choice((place, len(content) - 1, len(content) - 8)) :]
    elif kind == "insert":
        content[place:place] = chance.randbytes(length)
    elif kind == "remove":
        del content[place : place + length]
    elif kind == "swap":
        other = chance.randrange(begin, end)
        content[place], content[other] = content[other], content[place]
    elif kind == "digit":
        digits = [index for index in range(begin, end) if chr(content[index]).isdigit()]
        if digits:
            content[chance.choice(digits)] = ord(str(chance.randrange(10)))
    else:
        content = bytearray(_other_header(file, bytes(content), chance))
    file.write_bytes(content)
    return f"{kind} in {file.name} at {place} of {len(content)}"


def _region(file: Path, content: bytearray, chance: random.Random) -> tuple[int, int]:
    """Half of the damage to weights goes to the header, which is a small part of a file."""
    if file.suffix != ".safetensors" or chance.random() < 0.3:
        return 0, len(content)
    header = 8 + int.from_bytes(content[:8], "little")
    return (0, header) if chance.random() < 0.5 else (header, len(content))


def _other_header(file: Path, content: bytes, chance: random.Random) -> bytes:
    """A header that is valid JSON and says something else; of other files, an entry changed."""
    if file.suffix != ".safetensors":
        value = json.loads(content)
        _change(value, chance)
        return json.dumps(value).encode()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    one, other = chance.sample(names, 2)
    kind = chance.randrange(6)
    if kind == 0:
        header[one], header[other] = header[other], header[one]
    elif kind == 1:
        header[f"{one}x"] = header.pop(one)
    elif kind == 2:
        header[one]["dtype"] = chance.choice(("F16", "BF16", "I16", "I32", "F32", "I64", "I8"))
    elif kind == 3:
        header[one]["shape"] = list(reversed(header[one]["shape"]))
    elif kind == 4:
        header.get("__metadata__", {}).clear()
    else:
        _change(header[one], chance)
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _change(value: Any, chance: random.Random) -> None:
    """Change one entry of nested JSON."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = chance.choice(keys)
    if isinstance(value[key], dict | list) and value[key] and chance.random() < 0.8:
        _change(value[key], chance)
    elif isinstance(value, dict) and chance.random() < 0.3:
        del value[key]
    elif isinstance(value[key], bool):
        value[key] = not value[key]
    elif isinstance(value[key], int | float):
        value[key] = chance.choice((0, -1, 1, value[key] + 1, value[key] * 2, 2**31, 2**63))
    else:
        value[key] = chance.choice((None, "x", [], {}, 3))


def outcome(folder: Path, expected: Any, plain: bool) -> str:
    """Load a damaged checkpoint: an error's name, or whether its answer is the same or wrong."""
    import torch

    from efficientllava.models.checkpoint import load_model
    from tests.sparse.packed import from_pretrained, logits

    try:
        model = from_pretrained(folder) if plain else load_model(folder)
        found = logits(model)
    except Exception as error:
        return type(error).__name__
    return "same answer" if torch.equal(found, expected) else "WRONG ANSWER"


def run(whole: Path, seeds: Iterable[int], work: Path) -> dict[str, list[int]]:
    """Damage a copy of a packed checkpoint with every seed; seeds by outcome."""
    import torch
    from transformers.utils import logging

    from tests.sparse.packed import from_pretrained, logits

    logging.set_verbosity(50)
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    expected = logits(from_pretrained(whole))
    copy = work / "damaged"
    outcomes: dict[str, list[int]] = {}
    for seed in seeds:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        damage(copy, seed)
        plain = bool(seed % 2)
        ended = limited(lambda plain=plain: print(outcome(copy, expected, plain)), SECONDS, MEMORY)
        if ended.limit:
            told = f"beyond the limit of {ended.limit}"
        else:
            told = f"died ({ended.status})" if ended.status else ended.last_line
        outcomes.setdefault(f"{'transformers' if plain else 'ours'}: {told}", []).append(seed)
    return outcomes


def is_bad(name: str) -> bool:
    """Whether an outcome is a defect of ours: a wrong answer, or no answer at all by our loader."""
    return "WRONG" in name or (name.startswith("ours") and ("beyond" in name or "died" in name))


def main() -> None:
    """Make damaged checkpoints; exit status 1 if one crashed or answered otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--model", default="llama", help="a name in tests.models.families.TINY")
    arguments = parser.parse_args()
    from efficientllava.sparse import pack_checkpoint
    from tests.sparse.packed import tiny_pruned

    counted: Counter[str] = Counter()
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        pack_checkpoint(tiny_pruned(arguments.model, work / "dense", shard=20_000), work / "packed")
        end = arguments.first + arguments.files
        for first in range(arguments.first, end, REPORT):
            seeds = range(first, min(first + REPORT, end))
            for name, found in run(work / "packed", seeds, work).items():
                counted[name] += len(found)
                if is_bad(name) or "beyond" in name:
                    bad += [f"{name}: seeds {found}"] if is_bad(name) else []
                    print(f"{name}: seeds {found}", flush=True)
            print(seeds.stop, dict(counted), flush=True)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
