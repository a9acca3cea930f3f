"""What the sections of params.yaml share: their base class and the types of names and ratios."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from efficientllava.registry import BENCHMARKS, ENGINES, METHODS, RUNTIMES

Share = Annotated[float, Field(ge=-1.0, le=1.0)]
"""A difference of two ratios."""
LARGEST = 2**31 - 1
"""Of any number, unless a parameter's own bound is lower."""

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
EngineName = Annotated[str, AfterValidator(ENGINES.checked), ENGINES]
BenchmarkName = Annotated[str, AfterValidator(BENCHMARKS.checked), BENCHMARKS]
MainBenchmark = Annotated[Literal["demo"] | str, AfterValidator(_known_or_demo), BENCHMARKS]


class Section(BaseModel):
    """A section of params.yaml: unknown names are errors, values do not change.

    Numbers are finite and no larger than `LARGEST`; true, false and text are none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def plain_values(cls, value: Any, info: ValidationInfo) -> Any:
        """The value as it was given, if what it holds is of the field's kinds."""
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        sections = any(isinstance(kind, type) and issubclass(kind, Section) for kind in kinds)
        for item in () if sections else _values(value):  # a section looks at its own
            if isinstance(item, bool) and bool not in kinds:
                raise ValueError("true and false are no value here")
            if isinstance(item, str) and kinds <= {int, float, NoneType}:
                raise ValueError("text is no number: write 0.5, without quotes")
            if isinstance(item, str) and "\0" in item:
                raise ValueError("a zero byte is no text")
            if isinstance(item, int | float) and abs(item) > LARGEST:
                raise ValueError(f"beyond {LARGEST:,}")
        return value


def _values(value: Any) -> Iterator[Any]:
    """What stands in a value, lists and mappings opened."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple | set):
        for item in value:
            yield from _values(item)
    else:
        yield value


def _kinds(annotation: Any) -> set[Any]:
    """The plain types in a field's type, those of literal values too."""
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    if parts := [part for part in get_args(annotation) if part is not Ellipsis]:
        parts = parts[:1] if get_origin(annotation) is Annotated else parts
        return set().union(*map(_kinds, parts))
    return {annotation}
