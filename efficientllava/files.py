"""Files are written under a temporary name and renamed: a reader sees all of a file or none."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from safetensors import serialize_file

from efficientllava.errors import UserError, disk_error
from efficientllava.reading import load_tensors, open_regular, read_json, stored_numbers

__all__ = [
    "DIGESTS",
    "DamagedFile",
    "copy_folder",
    "file_digest",
    "folder_digest",
    "load_tensors",
    "read_json",
    "read_sealed",
    "recorded_digests",
    "replacing",
    "require_place",
    "require_sealed",
    "save_tensors",
    "seal",
    "stored_numbers",
    "value_digest",
    "write_json",
    "write_sealed",
    "write_text",
]

DIGESTS = "digests.json"
"""The file of a folder that holds the digests of the others."""
if TYPE_CHECKING:
    # half of the stages write JSON and pictures alone: torch takes two seconds
    import torch


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block succeeds.

    The block may create a file or a folder there. On any error the temporary is removed and
    the earlier content of `path` stays untouched.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    # a fixed name: the next process clears the leftovers of a killed one
    temporary = path.with_name(f".{path.name}.tmp")
    _make(path.parent, path)
    try:
        _remove(temporary)
        yield temporary
        _flush(temporary)
        if temporary.is_dir() and path.is_dir():
            # a folder cannot be renamed over a folder that holds files
            retired = path.with_name(f".{path.name}.old")
            _remove(retired)
            path.rename(retired)
            temporary.rename(path)
            shutil.rmtree(retired)
        else:
            temporary.replace(path)
    except BaseException as error:
        _remove(temporary)
        if not isinstance(error, UserError) and (told := disk_error(error, path)) is not None:
            raise told from error
        raise


def _flush(path: Path) -> None:
    """Bring files to the disk before they get their names: a power cut leaves none half written."""
    for file in (path, *path.rglob("*")):
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())


def _make(folder: Path, path: Path) -> None:
    """Make the folder of a path; whatever keeps the system from it, the user can mend."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"its folder cannot be made ({os.strerror(error.errno or 0)})"
        remedy = "name a place that you may write"
        told = disk_error(error, path) or UserError(problem, f"writing {path}", remedy)
        raise told from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_place(path: Path, where: str) -> None:
    """Check that a file or folder may be written at a path.

    The missing folders are made in a temporary folder beside their place, which is removed: file
    systems such as /proc report only then that they take none.

    Args:
        where: the name of the path in messages.

    Raises:
        UserError: it lies in a folder that may not be written, or below a file.
    """
    absolute = Path(path).absolute()
    try:
        with suppress(FileNotFoundError):
            os.lstat(absolute)
        there = next(each for each in (absolute, *absolute.parents) if each.is_dir())
        with TemporaryDirectory(prefix=".place-", dir=there) as temporary:
            if there != absolute:
                (Path(temporary) / absolute.relative_to(there)).mkdir(parents=True)
    except OSError as error:
        problem = f"cannot be written ({os.strerror(error.errno or 0)})"
        raise UserError(problem, where, "name a place that you may write") from error


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder's files to a new folder, whole or not at all.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    with replacing(target) as temporary:
        temporary.mkdir()
        for path in sorted(source.rglob("*")):
            copied = temporary / path.relative_to(source)
            if path.is_dir():
                copied.mkdir()
            else:
                shutil.copyfile(path, copied)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys: the same value gives the same bytes; NaN is an error."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, whole or not at all; a file without any takes no torch."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(Path(path)) as temporary:
        if not contiguous:
            serialize_file({}, str(temporary))
            return
        from safetensors.torch import save_file

        save_file(contiguous, temporary)


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, as hexadecimal digits.

    Raises:
        UserError: as `open_regular`.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, patterns: Sequence[str] = ("**/*",)) -> str:
    """sha256 over the relative names and contents of files of `folder`, all of them as a rule."""
    digest = hashlib.sha256()
    files = {path for pattern in patterns for path in Path(folder).glob(pattern)}
    for path in sorted(path for path in files if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


class DamagedFile(UserError):
    """A file is not as it was written: its digest is another than the one that was recorded."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        super().__init__(
            "is not the file that was written: its sha256 is another one",
            where=str(path),
            remedy="in a work folder remove it: it is made again; elsewhere copy it again from "
            f"where it is whole, or if you have changed it yourself, remove {DIGESTS} beside it",
        )

    def __reduce__(self) -> Any:
        return type(self), (self.path,)


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object with the digest of its other values under `digest`."""
    write_json(path, {**values, "digest": value_digest(values)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote, without the digest.

    Raises:
        UserError: as `read_json`; it is not as it was written.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise DamagedFile(path)
    recorded = values.pop("digest", None)
    if value_digest(values) != recorded:
        raise DamagedFile(path)
    return values


def recorded_digests(path: Path) -> dict[str, str]:
    """The digests by file under `files` in a JSON object of `write_sealed`.

    Raises:
        UserError: as `read_sealed`; it holds none, or a file that lies somewhere else.
    """
    files = read_sealed(path).get("files")
    if not isinstance(files, dict) or not all(
        isinstance(digest, str) and ".." not in Path(name).parts and not Path(name).is_absolute()
        for name, digest in files.items()
    ):
        raise UserError("`files` does not hold digests of files beside it", where=str(path))
    return files


def seal(folder: Path) -> None:
    """Record the digests of all files of a folder in its file `digests.json`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    names.pop(DIGESTS, None)
    write_sealed(folder / DIGESTS, {"files": {name: file_digest(names[name]) for name in names}})


def require_sealed(folder: Path, patterns: Sequence[str] = ("*",)) -> int:
    """Check files of a folder against its `digests.json`, where there is one.

    Args:
        patterns: of names relative to the folder; files that match none are not read.

    Returns:
        How many files were checked.

    Raises:
        UserError: a recorded file is missing or not as it was written.
    """
    if not (folder / DIGESTS).is_file():
        return 0
    recorded = recorded_digests(folder / DIGESTS)
    chosen = [name for name in recorded if any(fnmatch(name, pattern) for pattern in patterns)]
    for name in chosen:
        path = folder / name
        if not path.is_file():
            raise UserError("no such file, but it was written", where=str(path))
        if file_digest(path) != recorded[name]:
            raise DamagedFile(path)
    return len(chosen)


def value_digest(value: Any) -> str:
    """sha256 of a JSON-able value: the key under which unfinished work is kept."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
