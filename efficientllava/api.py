"""The front door: prune a model in one call, resume it after a kill, save the result.

from efficientllava import calibration_data, load, prune

vlm = load("llava-hf/llava-1.5-7b-hf", revision="...")
data = calibration_data(vlm, text="ptb.train.txt", pairs="folder")
result = prune(vlm, data, sparsity=0.5, work="work")
result.save("out")
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from efficientllava.allocation.context import Context
from efficientllava.allocation.gain import gained_over_uniform
from efficientllava.allocation.unfinished import code_digest
from efficientllava.calibration.data import calibration_data
from efficientllava.data.proxy import ProxyData, save_proxy
from efficientllava.errors import UserError, renaming
from efficientllava.files import (
    copy_folder,
    read_json,
    require_place,
    require_sealed,
    value_digest,
    write_json,
)
from efficientllava.models.checkpoint import check_tokenizer, skeleton
from efficientllava.models.families import adapter_for
from efficientllava.models.loading import VisionLanguageModel
from efficientllava.offload.devices import enough_memory
from efficientllava.parameters import Parameters
from efficientllava.progress import Event, Progress, silent
from efficientllava.pruning.finalize import finalize
from efficientllava.pruning.settings import SECTIONS, require_kind, settings
from efficientllava.pruning.structured.block_removal import removed_count
from efficientllava.reading import expanded
from efficientllava.registry import METHODS
from efficientllava.work_folder import locked

ARGUMENTS = {
    "params.yaml, ratios": "sparsity",
    "params.yaml, ": "parameters, ",
}
"""How errors name the arguments of `prune`: see `errors.renaming`."""


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        return f"<Result: {self.record['method']} at {self.record['ratio']} in {self.folder}>"

    @property
    def policy(self) -> dict[str, float]:
        """The share of zeros of every prunable matrix, by name."""
        return dict(self.record["policy"])

    def save(self, folder: str | Path) -> Path:
        """Copy the checkpoint to a folder, from where plain transformers loads it.

        Raises:
            UserError: as `require_output`; the folder holds something else; the model is not as it
                was written.
        """
        target = expanded(folder)
        require_output(target, self.folder.parents[1], str(target))
        if is_taken(target):
            if holds(target, self.record):
                _require_whole(target)
                return target
            problem = "the folder exists already and holds something else"
            raise UserError(problem, str(target), "name another folder, or remove it")
        if not self.folder.is_dir():
            raise UserError("is gone from the work folder", str(self.folder), "prune again")
        _require_whole(self.folder)
        copy_folder(self.folder, target)
        return target

    def rows(self) -> list[tuple[str, str]]:
        """The result as names and values, for a table."""
        record, gain = self.record, self.record.get("gain")
        size = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        gone = "removed from the decoder" if "structure" in record else "zeros in the decoder"
        return [
            ("method", f"{record['method']} at {record['ratio']}"),
            (gone, f"{record['achieved_sparsity']:.4%} of the weights"),
            *_notes(record),
            ("proxy loss (nll), dense", f"{record['dense_nll']:.4f}"),
            ("proxy loss (nll), pruned", f"{record['proxy_nll']:.4f}"),
            ("KL to the dense model", f"{record['proxy_kl']:.4f}"),
            *([("gained over uniform", gained_over_uniform(gain))] if gain else []),
            ("checkpoint", f"{size / 1e6:.1f} MB"),
            ("pruned with", self.data),
        ]

    def report(self) -> str:
        """The result as a Markdown table."""
        lines = [
            "| | |",
            "| --- | --- |",
            *(f"| {name} | {value} |" for name, value in self.rows()),
        ]
        return "\n".join(lines) + "\n"


def _notes(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A surprise about the zeros: many were there before, or the ratio rounds to none or to all."""
    if "structure" in record:
        return []
    weights, zeros, before = (
        sum(row[name] for row in record["matrices"]) for name in ("size", "zeros", "already_zero")
    )
    notes = []
    if before >= weights / 100:
        share = f"{before / weights:.2%} of the weights, which count as zeros"
        notes.append(("zeros before", share))
    if zeros in (0, weights):
        how = "no weight of any matrix" if zeros == 0 else "all weights of every matrix"
        notes.append(("note", f"{record['ratio']} rounds to {how}"))
    return notes


def require_output(folder: Path, work: Path, where: str) -> None:
    """Check that a pruned model may be saved in a folder.

    Args:
        where: the name of the folder in messages.

    Raises:
        UserError: it cannot be written, is a file, or lies in the work folder or around it.
    """
    require_place(folder, where)
    if folder.is_symlink() and not folder.exists():
        problem = "is a symbolic link to a place that does not exist"
        raise UserError(problem, where, "name another folder, or remove it")
    here, unfinished = folder.resolve(), work.resolve()
    if here.is_relative_to(unfinished) or unfinished.is_relative_to(here):
        raise UserError(
            f"lies in the work folder {work}, or holds it", where, "name another folder"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError("is a file", where, "name a folder, which need not exist")


def is_taken(folder: Path) -> bool:
    """Whether an output folder is there and not empty."""
    return folder.exists() and any(folder.iterdir())


def _require_whole(folder: Path) -> None:
    """Check all files of a pruned model.

    Raises:
        UserError: one is missing or not as it was written.
    """
    try:
        require_sealed(folder)
    except UserError as error:
        raise UserError(error.what, error.where, f"remove {folder} and prune again") from error


def holds(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether a folder holds the pruned model of a record."""
    path = folder / "pruning.json"
    return path.is_file() and read_json(path) == record


def prune(
    vlm: VisionLanguageModel,
    data: ProxyData | None = None,
    method: str = "efficientllava_plus",
    sparsity: float = 0.5,
    work: str | Path = "work",
    parameters: Mapping[str, Any] | None = None,
    device: str | None = None,
    progress: Progress = silent,
) -> Result:
    """Prune a model; `vlm` stays as it is.

    Unfinished work lies in the work folder under a key of everything that decides its bytes. The
    same call resumes after a kill; a call with another sparsity reuses the database; other models,
    data and settings have other keys.

    Args:
        vlm: from `load`.
        data: from `calibration_data`; the packaged text and pictures when None.
        method: a name of `registry.METHODS`.
        sparsity: the share of the decoder's prunable weights that become zero, in (0, 1).
        work: folder for unfinished work, databases and results.
        parameters: of the sections of params.yaml, those that differ from their defaults, e.g.
            `{"sensitivity": {"corrections": 1}, "obs": {"pattern": "2:4"}}`.
        device: "cpu", "cuda" or "cuda:N"; that of `parameters`, or the CPU, when None.
        progress: called with every step (`efficientllava.progress.Event`).

    Raises:
        UserError: with what is wrong, where, and a remedy.
    """
    with renaming(ARGUMENTS):
        return _prune(
            vlm, data, method, settings(method, sparsity, parameters, device), work, progress
        )


def _prune(
    vlm: VisionLanguageModel,
    data: ProxyData | None,
    method: str,
    chosen: Parameters,
    work: str | Path,
    progress: Progress,
) -> Result:
    sparsity = chosen.ratios[0]
    require_kind(vlm, VisionLanguageModel, "vlm", "give what `load` returns")
    data = calibration_data(vlm) if data is None else data
    require_data(vlm, data, method, chosen)
    if not vlm.family.takes_images:  # no projector
        search = chosen.search.model_copy(update={"evolve_projector": False})
        chosen = chosen.model_copy(update={"search": search})
    folder = expanded(work)
    with locked(folder), enough_memory(chosen.machine.device):
        named = _Named(
            progress, "database" if "database" in METHODS[method].needs else "allocation"
        )
        context = context_of(vlm, data, sparsity, chosen, folder, named)
        key = _key(method, context)
        result = folder / "pruned" / key
        if not (result / "pruning.json").is_file():
            vlm.check_images()
            allocation = METHODS[method].allocate(context)
            write_json(folder / "pruned" / f"{key}.json", list(map(dict, allocation.history)))
            named.work = "final pruning"
            finalize(METHODS[method], context, allocation, result)
            shutil.rmtree(folder / "reloaded", ignore_errors=True)
        history = tuple(read_json(folder / "pruned" / f"{key}.json"))
    return Result(result, read_json(result / "pruning.json"), history, data.description)


def _key(method: str, context: Context) -> str:
    """A digest of everything that decides the bytes of a pruned model."""
    parameters = context.parameters
    decisive = {
        **context.digests,
        **parameters.model_dump(mode="json", include=set(SECTIONS) - {"machine"}),
        "method": method,
        "sparsity": context.ratio,
        "threads": parameters.machine.threads,
        "device": parameters.machine.device,
        "code": code_digest(),
    }
    return value_digest(decisive)[:16]


@dataclass
class _Named:
    """Calls decoder blocks, for whoever watches, by the work that is done on them."""

    progress: Progress
    work: str

    def __call__(self, event: Event) -> None:
        self.progress(replace(event, name=self.work) if event.name == "block" else event)


def require_data(
    vlm: VisionLanguageModel, data: ProxyData, method: str, parameters: Parameters
) -> None:
    """Check, without reading weights, that a model, its tokenizer and the data go together.

    Raises:
        UserError: they do not, the method lacks image-text pairs, or would remove too many blocks.
    """
    require_kind(data, ProxyData, "data", "give what `calibration_data` returns")
    images, remedy = vlm.family.takes_images, "draw it for this model: calibration_data(vlm, ...)"
    if data.pairs is not None and not images:
        raise UserError("holds image-text pairs, but the model takes no images", "data", remedy)
    if data.reads not in ("", vlm.reads):
        problem = "was drawn for a model with another tokenizer or image processor"
        raise UserError(problem, "data", remedy)
    if data.pairs is None and images and METHODS[method].evolves_projector(parameters.search):
        raise UserError(
            "holds no image-text pairs, without which the vision projector cannot evolve",
            where="data",
            remedy="give pairs, or set search.evolve_projector to false",
        )
    model = skeleton(vlm.folder)
    check_tokenizer(vlm.processor, model, vlm.description)
    if getattr(METHODS[method], "removal", "").startswith("blocks_"):
        keep_last = parameters.finalize.keep_last_block
        removed_count(parameters.ratios[0], len(adapter_for(model).blocks), keep_last)
    rows = model.get_input_embeddings().num_embeddings
    inputs = [data.segments, *([] if data.pairs is None else [data.pairs.inputs["input_ids"]])]
    largest = max(int(tokens.max()) for tokens in inputs)
    if largest >= rows:
        raise UserError(f"holds token {largest}; the model has {rows} embeddings", "data", remedy)


def context_of(
    vlm: VisionLanguageModel,
    data: ProxyData,
    sparsity: float,
    parameters: Parameters,
    work: Path,
    progress: Progress,
) -> Context:
    """The inputs of a method; the proxy data is written to the work folder."""
    proxy = work / "proxy" / data.digest[:16]
    if not (proxy / "manifest.json").is_file():
        save_proxy(proxy, data, {"description": data.description})
    return Context(vlm.folder, proxy, sparsity, parameters, work, progress)
