"""Bad values of every parameter, from the model of params.yaml: wrong types, NaN, inf, bounds."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from efficientllava.parameters import Parameters
from tests.bad_inputs.commands import Case

HUGE = 10**30
NUMBERS = {
    "NaN": float("nan"), "inf": float("inf"), "-inf": float("-inf"), "huge": HUGE,
    "hugely negative": -HUGE, "true": True, "text": "many", "a number in quotes": "5",
    "a list": [1], "a mapping": {"a": 1}, "more digits than Python reads": "int(5000)",
    "a date": "a date",
}  # fmt: skip
TEXTS = {"a number": 5, "true": True, "a list": ["a"], "a mapping": {"a": "b"}, "zero byte": "a\0b"}
FLAGS = {"a number": 7, "text": "perhaps", "a list": [True], "a mapping": {"a": True}}
CHOICES = {"unknown": "no such thing", "a number": 5, "true": True, "a list": [], "a mapping": {}}
LISTS = {"a number": 5, "text": "abc", "a mapping": {"a": 1}}


def leaves(
    section: type[BaseModel] = Parameters, name: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """Every parameter's dotted name and declaration."""
    for key, field in section.model_fields.items():
        path = f"{name}.{key}" if name else key
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, path)
        else:
            yield path, field


def bad_values(field: FieldInfo) -> Iterator[tuple[str, Any]]:
    """What a parameter must not be, with a name for each."""
    kinds = _parts(field.annotation)
    if NoneType not in kinds:
        yield "null", None
    plain = next(kind for kind in kinds if kind is not NoneType)
    origin = get_origin(plain)
    if origin is tuple:
        item = get_args(plain)[0]
        yield from LISTS.items()
        yield from ((f"a list of {name}", [value]) for name, value in _values_for(item, []))
    elif origin is dict:
        yield from (("a number", 5), ("text", "abc"), ("a list", ["a"]))
        yield from (("an unknown name", {"no_such": "x"}), ("a number inside", {"scienceqa": 5}))
    else:
        yield from _values_for(plain, field.metadata)


def _values_for(kind: Any, metadata: list[Any]) -> Iterator[tuple[str, Any]]:
    if get_origin(kind) is Annotated:
        kind, *inner = get_args(kind)
        metadata = [part for item in inner for part in getattr(item, "metadata", [item])]
        yield from _values_for(kind, metadata)
    elif kind in (int, float):
        yield from NUMBERS.items()
        if kind is int:
            yield "a fraction", 1.5
        for item in metadata:
            yield from _beyond(item, kind)
    elif kind is bool:
        yield from FLAGS.items()
    elif get_origin(kind) is Literal:
        yield from CHOICES.items()
    else:
        yield from TEXTS.items()
        if any(getattr(item, "min_length", 0) for item in metadata):
            yield "empty", ""


def _beyond(item: Any, kind: Any) -> Iterator[tuple[str, Any]]:
    """Values just beyond a bound."""
    for bound, sign in (("ge", -1), ("le", 1)):
        if (limit := getattr(item, bound, None)) is not None:
            beyond = limit + sign if kind is int else limit + sign * 1e-6 * max(1, abs(limit))
            yield f"beyond {bound} {limit}", beyond
    if (limit := getattr(item, "gt", None)) is not None:
        yield f"at gt {limit}", kind(limit)


def _parts(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return list(get_args(annotation))
    return [annotation]


def parameters_yaml(path: str, value: Any) -> str:
    """A params.yaml with one parameter changed."""
    content: dict[str, Any] = {"methods": ["magnitude"], "ratios": [0.5]}
    inner = content
    *sections, key = path.split(".")
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[key] = value
    text = yaml.safe_dump(content, sort_keys=False)
    return text.replace("int(5000)", "9" * 5000).replace("a date", "2001-01-01")


CASES = {
    f"{path} is {name}": (path, value)
    for path, field in leaves()
    for name, value in bad_values(field)
}
"""Path and value of each."""


def case_of(name: str) -> tuple[Case, str]:
    """A case, and its params.yaml."""
    path, value = CASES[name]
    text = parameters_yaml(path, value)
    words = ("params.yaml",) if "9999999999" in text else ("params.yaml", path)
    return Case(name, ("tasks.parameters",), words), text
