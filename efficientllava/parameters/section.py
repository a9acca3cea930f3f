"""What the sections of params.yaml share: their base class and the types of names and ratios."""

from __future__ import annotations

import difflib
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from efficientllava.registry import BENCHMARKS, METHODS, RUNTIMES

Ratio = Annotated[float, Field(ge=0.0, le=1.0)]


def _known_method(name: str) -> str:
    if name == "dense":
        raise ValueError("dense is always measured; name what it is compared with")
    return METHODS.checked(name)


def _known_or_demo(name: str) -> str:
    if name == "demo":
        return name
    if difflib.get_close_matches(name, ["demo"]):
        raise ValueError(f"unknown benchmark {name!r} (did you mean demo?)")
    return BENCHMARKS.checked(name)


MethodName = Annotated[str, AfterValidator(_known_method), METHODS]
RuntimeName = Annotated[str, AfterValidator(RUNTIMES.checked), RUNTIMES]
BenchmarkName = Annotated[str, AfterValidator(BENCHMARKS.checked), BENCHMARKS]
MainBenchmark = Annotated[Literal["demo"] | str, AfterValidator(_known_or_demo), BENCHMARKS]


class Section(BaseModel):
    """A section of params.yaml: unknown names are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
