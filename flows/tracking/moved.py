"""A clone that was moved or copied: MLflow's database names the folder in which it was made."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse

from flows.tracking.store import file_of

ARTIFACTS = "mlruns"
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)
WORKSPACE_TAGS = "UPDATE tags SET value = ? WHERE key = 'pipeline.workspace' AND value = ?"


def follow_clone(uri: str) -> int:
    """Let MLflow find its artifacts where they are now, in mlruns/ beside its database.

    Places in another folder's mlruns/ are changed where that folder is gone (the clone was moved),
    or where artifacts that it names lie beside the database too (the clone was copied).

    Args:
        uri: of MLflow; addresses other than of an SQLite file are left alone.

    Returns:
        How many places were changed.

    Raises:
        sqlite3.Error: the database is in use or no database.
    """
    path = file_of(uri)
    if path is None or not path.is_file() or not (path.parent / ARTIFACTS).is_dir():
        return 0
    here = path.parent
    with closing(sqlite3.connect(path, timeout=20)) as database, database:
        places = [
            (table, column, place, *split)
            for table, column in COLUMNS
            for (place,) in database.execute(f"SELECT DISTINCT {column} FROM {table}")
            if (split := _split(place)) is not None and split[0] != here
        ]
        ours = _ours({(clone, rest) for *_, clone, rest in places}, here)
        changed = [place for place in places if place[3] in ours]
        for table, column, place, _, rest in changed:
            now = here.as_uri() if place.startswith("file://") else str(here)
            values = (f"{now}/{ARTIFACTS}{rest}", place)
            database.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", values)
        for clone in ours:
            database.execute(WORKSPACE_TAGS, (str(here), str(clone)))
    return len(changed)


def _split(place: str | None) -> tuple[Path, str] | None:
    """The folder of a place, and what follows mlruns; None for a place that is no such folder."""
    clone, found, rest = (place or "").rpartition(f"/{ARTIFACTS}")
    if not found or (rest and not rest.startswith("/")):
        return None
    if clone.startswith("file://"):
        return Path(unquote(urlparse(clone).path)), rest
    return None if "://" in clone else (Path(clone), rest)


def _ours(places: Iterable[tuple[Path, str]], here: Path) -> set[Path]:
    """The folders from which this clone was moved or copied."""
    return {
        clone
        for clone, rest in places
        if not (clone / ARTIFACTS).is_dir()
        or (rest.endswith("/artifacts") and (here / f"{ARTIFACTS}{rest}").is_dir())
    }
