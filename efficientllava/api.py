"""The front door: prune a model in one call, resume it after a kill, save the result.

from efficientllava import calibration_data, load, prune

vlm = load("llava-hf/llava-1.5-7b-hf", revision="...")
data = calibration_data(vlm, text="ptb.train.txt", pairs="folder")
result = prune(vlm, data, sparsity=0.5, work="work")
result.save("out")
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from efficientllava.allocation.context import Allocation, Context
from efficientllava.allocation.policy import check_band
from efficientllava.allocation.unfinished import code_digest
from efficientllava.calibration.data import calibration_data
from efficientllava.data.proxy import ProxyData, save_proxy
from efficientllava.errors import UserError
from efficientllava.files import read_json, replacing, value_digest, write_json
from efficientllava.models.loading import VisionLanguageModel
from efficientllava.parameters import Parameters, parse_parameters
from efficientllava.progress import Progress, silent
from efficientllava.pruning.finalize import finalize
from efficientllava.registry import METHODS

LAYOUT = 1
"""Of a work folder; raised when what lies in one changes its meaning."""


@dataclass(frozen=True)
class Result:
    """A pruned model.

    Attributes:
        folder: its checkpoint in the work folder.
        record: the content of its pruning.json.
        history: one row per candidate of the search; empty for methods that do not search.
        data: what it was pruned with, in words.
    """

    folder: Path
    record: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    data: str

    @property
    def policy(self) -> dict[str, float]:
        """The share of zeros of every prunable matrix, by name."""
        return dict(self.record["policy"])

    def save(self, folder: str | Path) -> Path:
        """Copy the checkpoint to a folder, from where plain transformers loads it.

        Raises:
            UserError: the folder holds something else, or cannot be written.
        """
        target = Path(folder).expanduser()
        if target.exists():
            if holds(target, self.record):
                return target
            raise UserError(
                "the folder exists already and holds something else",
                where=str(target),
                remedy="name another folder, or remove it",
            )
        with replacing(target) as temporary:
            shutil.copytree(self.folder, temporary)
        return target

    def rows(self) -> list[tuple[str, str]]:
        """What was done, as names and values: for a table."""
        record = self.record
        size = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        return [
            ("method", f"{record['method']} at {record['ratio']:g}"),
            ("zeros in the decoder's matrices", f"{record['achieved_sparsity']:.4%}"),
            ("proxy loss (nll), dense", f"{record['dense_nll']:.4f}"),
            ("proxy loss (nll), pruned", f"{record['proxy_nll']:.4f}"),
            ("KL to the dense model", f"{record['proxy_kl']:.4f}"),
            ("checkpoint", f"{size / 1e6:.1f} MB"),
            ("pruned with", self.data),
        ]

    def report(self) -> str:
        """What was done, as a Markdown table."""
        lines = [
            "| | |",
            "| --- | --- |",
            *(f"| {name} | {value} |" for name, value in self.rows()),
        ]
        return "\n".join(lines) + "\n"


def holds(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether a folder holds the pruned model of a record."""
    path = folder / "pruning.json"
    return path.is_file() and read_json(path) == record


def prune(
    vlm: VisionLanguageModel,
    data: ProxyData | None = None,
    method: str = "efficientllava",
    sparsity: float = 0.5,
    work: str | Path = "work",
    parameters: Mapping[str, Any] | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Result:
    """Prune a model; `vlm` stays as it is.

    What is unfinished lies in the work folder under a key of everything that decides its bytes: a
    killed call resumes when it is made again, a call with another sparsity uses the same database,
    other models, data and settings never meet.

    Args:
        vlm: from `load`.
        data: from `calibration_data`; the packaged text and pictures when None.
        method: a name of `registry.METHODS`.
        sparsity: the share of the decoder's prunable weights that become zero, in (0, 1).
        work: folder for unfinished work, databases and results.
        parameters: of the sections of params.yaml, those that differ from their defaults, e.g.
            `{"search": {"rounds": 5, "max_seconds": 600}, "pruning": {"pattern": "2:4"}}`.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: saying what is wrong, where, and what to do about it.
    """
    chosen = settings(vlm, method, sparsity, parameters, device)
    data = calibration_data(vlm) if data is None else data
    folder = Path(work).expanduser()
    with held(folder):
        context = context_of(vlm, data, sparsity, chosen, folder, progress)
        decisive = chosen.model_dump(mode="json", include={"pruning", "prune", "search"})
        key = value_digest(
            {
                **context.digests,
                **decisive,
                "method": method,
                "sparsity": sparsity,
                "threads": chosen.machine.threads,
                "device": device,
                "code": code_digest(),
            }
        )[:16]
        result = folder / "pruned" / key
        if not (result / "pruning.json").is_file():
            found = METHODS[method].allocate(context)
            write_json(folder / "pruned" / f"{key}.json", list(map(dict, found.history)))
            _finalize(method, context, found, result)
        history = tuple(read_json(folder / "pruned" / f"{key}.json"))
    return Result(result, read_json(result / "pruning.json"), history, data.description)


def _finalize(method: str, context: Context, found: Allocation, folder: Path) -> None:
    context = replace(context, work=context.work / "open")
    finalize(METHODS[method], context, found, folder)
    shutil.rmtree(context.work, ignore_errors=True)


def settings(
    vlm: VisionLanguageModel,
    method: str,
    sparsity: float,
    parameters: Mapping[str, Any] | None,
    device: str,
) -> Parameters:
    """All parameters of a call, checked against each other.

    Raises:
        UserError: naming what is unknown, out of bounds, or does not go together.
    """
    METHODS[method]
    if not 0.0 < sparsity < 1.0:
        raise UserError(
            f"sparsity {sparsity:g} is not between 0 and 1",
            where="sparsity",
            remedy="0.5 makes half of the decoder's weights zero",
        )
    values = {name: dict(section) for name, section in (parameters or {}).items()}
    values.setdefault("machine", {})["device"] = device
    chosen = parse_parameters(
        {**values, "methods": [method], "ratios": [sparsity]}, where="parameters"
    )
    if "database" in METHODS[method].needs:
        check_band(chosen.levels(sparsity), sparsity, chosen.search.band)
    return chosen


def context_of(
    vlm: VisionLanguageModel,
    data: ProxyData,
    sparsity: float,
    parameters: Parameters,
    work: Path,
    progress: Progress,
) -> Context:
    """What a method works with; the proxy data is written to the work folder."""
    proxy = work / "proxy" / data.digest[:16]
    if not (proxy / "manifest.json").is_file():
        save_proxy(proxy, data, {"description": data.description})
    return Context(vlm.folder, proxy, sparsity, parameters, work, progress)


@contextmanager
def held(work: Path) -> Iterator[None]:
    """Hold a work folder for this process; made where it does not exist.

    Raises:
        UserError: another process works in it, it was written by another version, it is something
            else, or it cannot be written.
    """
    marker = work / "layout.json"
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = open(work / "lock", "a", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"the work folder cannot be written ({os.strerror(error.errno or 0)})",
            where=str(work),
            remedy="name a folder that you may write, with --work or work=",
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another process is pruning in this work folder",
                where=str(work),
                remedy="wait for it or end it, or name another folder",
            ) from None
        if not marker.is_file():
            if any(path.name != "lock" for path in work.iterdir()):
                raise UserError(
                    "the folder holds something else than unfinished work of ours",
                    where=str(work),
                    remedy="name an empty or a new folder",
                )
            write_json(marker, {"layout": LAYOUT})
        elif (layout := read_json(marker).get("layout")) != LAYOUT:
            raise UserError(
                f"the work folder is of another version (layout {layout}, this is {LAYOUT})",
                where=str(work),
                remedy="name another folder, or remove this one",
            )
        yield
