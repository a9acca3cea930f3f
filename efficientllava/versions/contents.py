"""What a `dvc://PATH?md5=DIGEST` address points at: files of DVC's cache or remotes, by digest."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from efficientllava.errors import UserError, without_users
from efficientllava.files import replacing, require_place
from efficientllava.reading import expanded

SCHEME = "dvc"
WORKSPACE = "EFFICIENTLLAVA_WORKSPACE"
"""Variable: the clone whose cache and remotes hold the contents, where none is found."""
_DIGEST = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass(frozen=True)
class Pointer:
    """An output of a stage: its path in the workspace, and DVC's md5 of its content."""

    path: str
    digest: str

    def __str__(self) -> str:
        return f"{SCHEME}://{quote(self.path)}?md5={self.digest}"

    @classmethod
    def parse(cls, address: str) -> Pointer:
        """Read an address.

        Raises:
            UserError: it is no such address.
        """
        parts = urlsplit(address)
        digests = parse_qs(parts.query).get("md5", [])
        if parts.scheme != SCHEME or len(digests) != 1 or not _DIGEST.fullmatch(digests[0]):
            raise UserError(
                "is no address of the form dvc://PATH?md5=DIGEST", without_users(address)
            )
        return cls(unquote(parts.netloc + parts.path), digests[0])


class Contents:
    """The files of one pointer, in the cache of a workspace.

    Attributes:
        files: digest by relative path; the path of a single file is its name.
        sizes: bytes by relative path.
    """

    def __init__(self, pointer: Pointer, tracking_uri: str | None = None) -> None:
        """Find the content in the cache of a workspace, or fetch it there from a remote.

        Args:
            tracking_uri: MLflow's; beside its SQLite file is one of the places.

        Raises:
            UserError: no workspace is found, or none of them has the content.
        """
        self.pointer = pointer
        self.files: dict[str, str] = {}
        self._paths: dict[str, Path] = {}
        found, reasons = workspaces(tracking_uri), []
        for root in found:
            with _repository(root) as repo:
                if (reason := self._look(repo)) is None:
                    return
                reasons.append(f"{root} ({reason})")
        if reasons:
            raise UserError(
                f"neither DVC's cache nor a remote has it: {'; '.join(reasons)}",
                where=str(pointer),
                remedy="`dvc push` where it was made, or run the pipeline again",
            )
        raise UserError(
            "no DVC workspace is here, whose cache or remote could have it",
            where=str(pointer),
            remedy=f"start in the clone, or set {WORKSPACE} to its folder",
        )

    def _look(self, repo: Any) -> str | None:
        """Find all files; a reason if this repository does not have them."""
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.tree import Tree

        cache, info = repo.cache.local, HashInfo("md5", self.pointer.digest)
        if (reason := _fetch(repo, info)) is not None:
            return reason
        if info.isdir:
            entries = {
                "/".join(key): item.value for key, (_, item) in Tree.load(cache, info).iteritems()
            }
        else:
            entries = {self.pointer.path.rpartition("/")[2]: info.value}
        paths = {name: Path(cache.oid_to_path(digest)) for name, digest in entries.items()}
        if missing := [name for name, path in paths.items() if not path.is_file()]:
            return f"{len(missing)} of {len(paths)} files are missing, {missing[0]} among them"
        self.files, self._paths = entries, paths
        return None

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by relative path."""
        return {name: path.stat().st_size for name, path in self._paths.items()}

    def copy(self, name: str, target: Path) -> None:
        """Copy one file and check its digest.

        Raises:
            UserError: the cache holds other bytes than those that were pinned.
        """
        with open(self._paths[name], "rb") as source, open(target, "wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        with open(target, "rb") as copied:
            found = hashlib.file_digest(copied, "md5").hexdigest()
        if found != self.files[name]:
            target.unlink()
            raise UserError(
                f"{name} is damaged in DVC's cache (md5 {found}, pinned {self.files[name]})",
                where=str(self._paths[name]),
                remedy="delete this file, then `dvc pull`, or run the pipeline again",
            )


def workspaces(tracking_uri: str | None) -> list[Path]:
    """DVC workspaces that may have a content, the nearest first.

    The variable EFFICIENTLLAVA_WORKSPACE names the only one; else the one that the current folder
    lies in, then the one that holds MLflow's SQLite file.
    """
    if named := os.environ.get(WORKSPACE):
        return [expanded(named)]
    starts = [Path.cwd()]
    scheme, slashes, database = (tracking_uri or "").partition(":///")
    if scheme.startswith("sqlite") and slashes:
        starts.append(Path(database).resolve().parent)
    roots = (
        next((folder for folder in (start, *start.parents) if (folder / ".dvc").is_dir()), None)
        for start in starts
    )
    return list(dict.fromkeys(root for root in roots if root is not None))


@contextmanager
def _repository(root: Path) -> Iterator[Any]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        repo = Repo(str(root))
    except DvcException as error:
        raise UserError(f"cannot be opened as a DVC workspace ({error})", str(root)) from error
    with repo:
        yield repo


def _fetch(repo: Any, info: Any) -> str | None:
    """Bring what the cache lacks from a remote; the reason if that cannot be."""
    from dvc.config import ConfigError, NoRemoteError
    from dvc.exceptions import DvcException

    cache = repo.cache.local
    try:
        if not cache.exists(info.value):
            repo.cloud.pull([info])
        if cache.exists(info.value) and (missing := _missing(cache, info)):
            repo.cloud.pull(missing)
    except NoRemoteError:
        return "not in its cache, and it has no remote"
    except (ConfigError, DvcException, OSError) as error:
        return f"not in its cache, and its remote cannot be used: {without_users(str(error))}"
    return None if cache.exists(info.value) else "neither in its cache nor in its remote"


def _missing(cache: Any, info: Any) -> list[Any]:
    """The files of a folder that the cache lacks."""
    from dvc_data.hashfile.tree import Tree

    if not info.isdir:
        return []
    items = (item for _, (_, item) in Tree.load(cache, info).iteritems())
    return [item for item in items if not cache.exists(item.value)]


def fetch_into(address: str, folder: Path, tracking_uri: str | None) -> int:
    """Write all files of an address into a new folder, whole or not at all; how many there are.

    Raises:
        UserError: the folder exists, or as `Contents`.
    """
    if folder.exists():
        raise UserError("is there already", where=str(folder), remedy="name a new folder")
    require_place(folder, str(folder))
    contents = Contents(Pointer.parse(address), tracking_uri)
    with replacing(folder) as temporary:
        for name in contents.files:
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            contents.copy(name, target)
    return len(contents.files)
