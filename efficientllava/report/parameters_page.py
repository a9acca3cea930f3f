"""docs/parameters.md, made from the parameters' own descriptions.

Run as `python -m efficientllava.report.parameters_page docs/parameters.md`.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from efficientllava.files import write_text
from efficientllava.parameters import Parameters
from efficientllava.registry import Registry
from efficientllava.report.comparison import markdown_table

_OPENING = """# Parameters

All parameters live in `params.yaml`. A parameter that is left out has its default; `methods` and
`ratios` must stand there, because DVC makes stages of them. An unknown name or a value out of
bounds is an error before any work begins. This page is made from the descriptions in the code by
`python -m efficientllava.report.parameters_page docs/parameters.md`.
"""


def parameters_page() -> str:
    """The page as Markdown: one table per section of params.yaml."""
    parts = [_OPENING, *_section(Parameters, "")]
    return "\n".join(parts)


def _section(section: type[BaseModel], name: str) -> list[str]:
    own: list[list[str]] = []
    below: list[str] = []
    for key, field in section.model_fields.items():
        path = f"{name}.{key}" if name else key
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            below += _section(field.annotation, path)
        else:
            default = json.dumps(field.get_default(call_default_factory=True))
            own.append([f"`{path}`", _kind(field), f"`{default}`", _told(field.description)])
    parts = []
    if own:
        description = "" if section is Parameters else f"{section.__doc__}\n\n"
        heading = f"## {name or 'What is compared'}\n\n{description}"
        headings = ["parameter", "values", "default", "what it does"]
        parts.append(heading + markdown_table(headings, own, rest="---"))
    return parts + below


def _told(text: str | None) -> str:
    return (text or "").replace("|", "\\|").strip()


def _kind(field: FieldInfo) -> str:
    """Type and bounds: "integer, ≥1"."""
    return _type(field.annotation, field.metadata).replace("|", "\\|")


def _type(annotation: Any, metadata: list[Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inside = [
            part
            for item in arguments[1:]
            for part in (item.metadata if isinstance(item, FieldInfo) else [item])
        ]
        return _type(arguments[0], [*inside, *metadata])
    if origin in (Union, types.UnionType):
        kinds = [_type(part, metadata) for part in arguments if part is not type(None)]
        return " or ".join([*kinds, "null"] if type(None) in arguments else kinds)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        one = _type(arguments[0], [])
        return f"list of: {one}" if arguments[-1] is Ellipsis else f"{len(arguments)} x {one}"
    if origin is dict:
        return f"{_type(arguments[1], [])} for each of: {_type(arguments[0], [])}"
    for item in metadata:
        if isinstance(item, Registry):
            return ", ".join(f"`{name}`" for name in item)
    names = {int: "integer", float: "number", bool: "true, false", str: "text"}
    return ", ".join([names.get(annotation, str(annotation)), *_bounds(metadata)])


def _bounds(metadata: list[Any]) -> list[str]:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return [
        f"{sign}{getattr(item, name):,.10g}"
        for item in metadata
        for name, sign in signs.items()
        if getattr(item, name, None) is not None
    ]


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), parameters_page())
