"""How long stages took when they last ran in this workspace, by the flow."""

from __future__ import annotations

from pathlib import Path

from efficientllava.errors import UserError
from efficientllava.files import read_json, write_json

SECONDS = Path(".work/seconds.json")


def keep_seconds(root: Path, stage: str, seconds: float) -> None:
    """Note the wall seconds of a stage that has run."""
    write_json(root / SECONDS, {**last_seconds(root), stage: round(seconds, 1)})


def last_seconds(root: Path) -> dict[str, float]:
    """The wall seconds of stages, by name; of those that are known."""
    try:
        known = read_json(root / SECONDS)
    except UserError:  # a note that a killed machine left broken is written anew
        return {}
    return known if isinstance(known, dict) else {}
