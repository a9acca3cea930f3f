"""Which instructions the kernels use: the best that the processor has, or what a setting forces."""

from __future__ import annotations

import logging
import os
import platform
from dataclasses import dataclass
from functools import cache, cached_property

from efficientllava.errors import UserError

logger = logging.getLogger(__name__)

SETTING = "EFFICIENTLLAVA_CPU_PATH"
"""Environment variable that forces a path; for tests and comparisons."""
AVX2 = frozenset({"avx2", "fma", "f16c", "popcnt", "ssse3"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
OPTIONAL = ("avx512vbmi2", "avx512vnni", "avx512bf16")
"""What the AVX-512 paths use where it is there."""


@dataclass(frozen=True, eq=False)
class Path:
    """How kernels are compiled; equal to itself alone, which makes it quick to look up.

    Attributes:
        cpu, features: of LLVM's target machine.
        has: the instruction sets that the kernels may name.
    """

    name: str
    cpu: str
    features: str
    has: frozenset[str]

    @cached_property
    def has_pairs(self) -> bool:
        """Whether the processor multiplies pairs of bfloat16."""
        return "avx512bf16" in self.has

    @property
    def wide(self) -> bool:
        """Whether a register holds 16 float32."""
        return "avx512f" in self.has

    def expands(self, bytes_each: int) -> bool:
        """Whether one instruction expands elements of this size."""
        return self.wide if bytes_each == 4 else "avx512vbmi2" in self.has


def _avx512(name: str, has: frozenset[str]) -> Path:
    # compilers prefer registers of 256 bits on some processors: never here
    extra = ",".join(["-prefer-256-bit", *(f"+{each}" for each in OPTIONAL if each in has)])
    return Path(name, "x86-64-v4", extra, has)


def paths() -> dict[str, Path]:
    """The paths that this processor can run, the best first.

    numba's NUMBA_CPU_NAME=generic and NUMBA_CPU_FEATURES are obeyed.
    """
    has, found = _features(), {}
    if AVX512 <= has:
        allowed = has & (AVX512 | set(OPTIONAL))
        if "avx512bf16" in has:
            found["avx512_bf16"] = _avx512("avx512_bf16", allowed)
        found["avx512"] = _avx512("avx512", allowed - {"avx512bf16"})
    if AVX2 <= has:
        found["avx2"] = Path("avx2", "x86-64-v3", "", AVX2)
    generic = "x86-64" if platform.machine().lower() in ("x86_64", "amd64") else ""
    found["portable"] = Path("portable", generic, "", frozenset())
    return found


def _features() -> frozenset[str]:
    from llvmlite import binding

    if os.environ.get("NUMBA_CPU_NAME", "").lower() == "generic":
        text = os.environ.get("NUMBA_CPU_FEATURES", "")
    else:
        text = os.environ.get("NUMBA_CPU_FEATURES") or binding.get_host_cpu_features().flatten()
    return frozenset(each[1:] for each in text.split(",") if each.startswith("+"))


def chosen_path() -> Path:
    """The path of this process: the forced one, or the best one. Says once that none is fast.

    Raises:
        UserError: the setting names a path that there is not, or that this processor cannot run.
    """
    return _forced or _default_path()


def force_path(name: str | None) -> None:
    """Take a path from now on, or the default one again; for tests and comparisons.

    Raises:
        UserError: this processor has no such path.
    """
    global _forced
    _forced = None if name is None else _named(name, "force_path")


_forced: Path | None = None


@cache
def _default_path() -> Path:
    if forced := os.environ.get(SETTING):
        return _named(forced, SETTING)
    best = next(iter(paths().values()))
    if best.name == "portable":
        logger.warning(
            "sparse: this processor has neither AVX2 nor AVX-512; "
            "sparse layers take the portable path, which is right and slow"
        )
    return best


@cache
def _named(name: str, where: str) -> Path:
    possible = paths()
    if name not in possible:
        raise UserError(
            f"this processor has no path {name!r}",
            where=where,
            remedy=f"one of {', '.join(possible)}, or none to take the best",
        )
    return possible[name]
