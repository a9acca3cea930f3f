"""DVC's own files, mended where a killed process left them half written.

DVC writes `dvc.lock`, its list of locks, its memory of digests and its cache of runs in place.
Everything in them can be had again: outputs from its cache, digests from the files. `python -m
flows.runner.dvc_files` mends those of the current folder, for `dvc repro` without the flow.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from dvc.dvcfile import LOCK_FILE, Lockfile
from dvc.exceptions import DvcException
from dvc.repo import Repo

from efficientllava.errors import UserError
from flows.runner.graph import open_repo
from flows.runner.locks import mend_locks
from tasks.runtime.environment import FOLDERS
from tasks.runtime.workspace import workspace_lock

SITE = "DVC_SITE_CACHE_DIR"
UNFINISHED = ".unfinished"
"""At the end of the name of a file that is put aside."""
CONFLICT = b"\n<<<<<<< "


def mend(root: Path) -> Iterator[str]:
    """Mend DVC's files in a workspace, whose lock the caller holds; yield what was done, in words.

    Raises:
        UserError: the folder is no DVC workspace.
    """
    # before the workspace is opened, which opens this memory
    yield from _mend_memory(Path(os.environ.get(SITE, root / FOLDERS[SITE])))
    with open_repo(root) as repo:
        yield from _mend_lock_file(repo, root / LOCK_FILE)
        yield from mend_locks(Path(repo.tmp_dir))
        yield from _mend_runs(Path(repo.stage_cache.cache_dir))


def _mend_lock_file(repo: Repo, path: Path) -> Iterator[str]:
    """Put a dvc.lock aside that cannot be read, unless a merge has left its marks in it."""
    if not path.is_file():
        return
    content = path.read_bytes()
    try:
        whole = bool(Lockfile(repo, str(path)).load())
    except DvcException:
        whole = CONFLICT in b"\n" + content  # the user's to resolve: reading the graph reports it
    if not whole:
        aside = path.with_name(f"{path.name}{UNFINISHED}")
        path.rename(aside)
        yield (
            f"DVC's {path.name} was half written, by a process that was killed: it is {aside.name} "
            "now, and finished outputs come back from DVC's cache"
        )


def _mend_memory(folder: Path) -> Iterator[str]:
    """Remove a database of digests that SQLite cannot read; DVC computes them again."""
    for path in sorted(folder.rglob("cache.db")):
        if not is_readable(path):
            for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
                file.unlink(missing_ok=True)
            yield f"DVC's {path.relative_to(folder)} was damaged and is made anew"


def _mend_runs(folder: Path) -> Iterator[str]:
    """Remove folders of DVC's cache of runs that are still empty: DVC cannot read them."""
    for path in folder.glob("*/*"):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
            yield "a run that DVC was remembering when it was killed is forgotten"


def is_readable(path: Path) -> bool:
    """Whether SQLite can read a database, or somebody works in it."""
    try:
        with closing(sqlite3.connect(path)) as database:
            return database.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    except sqlite3.OperationalError:  # in use
        return True
    except sqlite3.DatabaseError:
        return False


def main() -> int:
    """Mend the files of the current folder; exit status 2 if another run works in it."""
    try:
        with workspace_lock("mending DVC's files"):
            for done in mend(Path.cwd()):
                print(f"warning: {done}", file=sys.stderr)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
