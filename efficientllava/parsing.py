"""Parse params.yaml: errors name unknown and out-of-bounds parameters, with the nearest name."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from efficientllava.errors import UserError, hint
from efficientllava.parameters import Parameters

MOVED = {
    "model.demo": "model.demo",
    "search.workers": "machine.workers",
    "search.threads": "machine.threads",
    "search.executor": "machine.executor",
    "search.dask_address": "machine.dask_address",
    "search.projector_checkpointing": "machine.gradient_checkpointing",
}
"""Earlier names of parameters, and their names now."""


def parse_parameters(values: Any, where: str = "params.yaml") -> Parameters:
    """Validate the content of params.yaml.

    Raises:
        UserError: naming every parameter that is unknown or out of bounds, with the nearest
            known name where it looks misspelt, and the new place of one that has moved.
    """
    if not isinstance(values, dict):
        raise UserError("holds no parameters (a mapping of sections is needed)", where=where)
    try:
        return Parameters.model_validate(values)
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors()]
    # not inside: the context would be pydantic's error, which quotes all values, passwords too
    raise UserError("; ".join(problems), where=where)


def _describe(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        if name in MOVED:
            return f"unknown parameter {name} (it is {MOVED[name]} now)"
        known = sorted(_fields_at(problem["loc"][:-1]))
        suggestion = hint(str(problem["loc"][-1]), known, "known here")
        return f"unknown parameter {name} ({suggestion})"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "string_pattern_mismatch":  # pydantic shows the regular expression
        message = f"is not of its form: {_meaning(problem['loc'])}"
    return f"{name or 'parameters'}: {message} (given: {problem['input']!r})"[:500]


def _meaning(location: tuple[Any, ...]) -> str:
    """What the page of the parameters says of one, to the first semicolon."""
    names = [part for part in location if isinstance(part, str)]
    section = _section_at(tuple(names[:-1]))
    return str(section.model_fields[names[-1]].description).partition(";")[0]


def _fields_at(location: tuple[Any, ...]) -> set[str]:
    return set(_section_at(location).model_fields)


def _section_at(location: tuple[Any, ...]) -> type[BaseModel]:
    section: type[BaseModel] = Parameters
    for part in location:
        annotation = section.model_fields[part].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        section = annotation
    return section
