"""Goals of the list of `python -m bench card`, and what the lines of its parts say of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """One number that was asked for.

    Attributes:
        name: what is measured.
        limit: as a table shows it.
        measured: as it was printed.
        met: None where the part did not come so far.
    """

    name: str
    limit: str
    measured: str
    met: bool | None


def cells(lines: Iterable[str]) -> list[list[str]]:
    """The rows of all Markdown tables among the lines."""
    return [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in lines
        if line.startswith("|") and not line.startswith("|---")
    ]


def at_least(name: str, limit: float, value: float | None, unit: str = "") -> Goal:
    """A goal that a value is not below a limit."""
    shown = "not measured" if value is None else f"{value:g}{unit}"
    return Goal(name, f">= {limit:g}{unit}", shown, None if value is None else value >= limit)


def at_most(name: str, limit: float, value: float | None, unit: str = "") -> Goal:
    """A goal that a value is not above a limit."""
    shown = "not measured" if value is None else f"{value:g}{unit}"
    return Goal(name, f"<= {limit:g}{unit}", shown, None if value is None else value <= limit)


def of_tests(lines: list[str]) -> list[Goal]:
    """That none failed and some ran."""
    last = next((line for line in reversed(lines) if re.search(r"\d+ (passed|failed)", line)), "")
    passed = re.search(r"(\d+) passed", last)
    failed = re.search(r"\d+ (failed|error)", last)
    met = None if not last else passed is not None and failed is None
    return [Goal("tests/gpu and the kernels' own tests", "none fails", last.strip("= "), met)]


def of_obs(lines: list[str]) -> list[Goal]:
    """The whole block's speed against the published code, and its least agreement of masks."""
    rows = cells(lines)
    ratio = next((float(row[5]) for row in rows if row[0] == "all"), None)
    # of the second table: matrix, level, share of equal masks, ...
    masks = [float(row[2]) for row in rows if len(row) == 6 and _number(row[1])]
    return [
        at_least("7B block, five levels, against SparseGPT as published", 50, ratio, "x"),
        at_least("the same masks, fewest", 0.999, min(masks, default=None)),
    ]


GPU_LIMITS = {"database": 60.0, "search": 300.0, "whole": 720.0}


def of_gpu(lines: list[str]) -> list[Goal]:
    """Seconds of the phases with all memory, and peaks of both modes, at 7B."""
    found = [row for row in cells(lines) if len(row) >= 5 and row[0].endswith("GB")]
    goals = []
    for name, limit in GPU_LIMITS.items():
        seconds = [float(row[2]) for row in found if row[:2] == ["80 GB", name]]
        done = [row[4] for row in found if row[:2] == ["80 GB", name]]
        bad = any(word in text for text in done for word in ("FAILED", "INCOMPLETE"))
        goals.append(at_most(f"7B, {name}", limit, None if bad or not done else seconds[0], " s"))
    for mode in ("80 GB", "22 GB"):
        shown = [row[3].partition(" ")[0] for row in found if row[0] == mode]
        peaks = [float(peak) for peak in shown if _number(peak)]
        goals.append(at_most(f"7B, peak in the mode of {mode}", float(mode[:2]),
                             max(peaks, default=None), " GB"))  # fmt: skip
    return goals


def of_sparse(lines: list[str]) -> list[Goal]:
    """Decode of one token and bytes at 50 %, each matrix; prefill of many tokens."""
    rows = [row for row in cells(lines) if len(row) == 8 and row[1] == "0.5"]
    one = [float(row[5].split()[0]) for row in rows if row[2] == "1"]
    prefill = [float(row[5].split()[0]) for row in rows if int(row[2]) > 16]
    stored = [float(row[7]) for row in rows]
    return [
        at_least("decode at 50 %, one token, the least of the matrices", 1.3, _least(one), "x"),
        at_most("bytes at 50 %", 0.57, max(stored, default=None)),
        at_least("prefill at 50 %, the least", 0.9, _least(prefill), "x"),
    ]


def of_generate(lines: list[str]) -> list[Goal]:
    """That a packed model decodes faster than the dense one, in a graph."""
    rows = [row for row in cells(lines) if len(row) == 8 and row[1] == "static"]
    ratios = [float(row[4].split()[0]) for row in rows]
    return [at_least("generate in a graph, the least of the models", 1.0, _least(ratios), "x")]


def _least(values: list[float]) -> float | None:
    return min(values, default=None)


def _number(text: str) -> bool:
    return re.fullmatch(r"[0-9.]+", text) is not None


READERS: dict[str, Callable[[list[str]], list[Goal]]] = {
    "tests": of_tests,
    "obs": of_obs,
    "gpu": of_gpu,
    "sparse": of_sparse,
    "generate": of_generate,
}
"""What reads the lines of a part; the others have no goal."""
