"""Checks that need no model: what cannot work is told before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efficientllava.allocation.policy import check_band
from efficientllava.errors import UserError
from efficientllava.parameters import Parameters
from efficientllava.pruning.methods import METHODS, method_named


def check_parameters(parameters: Parameters) -> None:
    """Check what the sections of params.yaml ask of each other and of the disk.

    Raises:
        UserError: naming the parameters that do not go together, or the input that is missing.
    """
    if "dense" in parameters.methods:
        raise UserError(
            "dense is always measured; name what it is compared with",
            where="params.yaml, methods",
        )
    _check_model(parameters)
    _check_proxy(parameters)
    _check_evaluation(parameters)
    for ratio in parameters.ratios:
        levels = parameters.levels(ratio)  # the database has all of them, whatever the method
        if any(METHODS[name].allocation == "search" for name in parameters.methods):
            check_band(levels, ratio, parameters.search.band)


def check_spelling(ratios: Sequence[Any]) -> None:
    """Check that ratios are spelt as the folders and stages of their models are.

    Args:
        ratios: as params.yaml has them; DVC makes names of them without reading them as numbers.

    Raises:
        UserError: one is text, or a number that is written otherwise in a name.
    """
    for ratio in ratios:
        if isinstance(ratio, bool | str):
            raise UserError(f"{ratio!r} is no number", where="params.yaml, ratios")
        if str(ratio) != f"{ratio:g}":
            raise UserError(
                f"ratio {ratio} would be called {ratio:g} in the names of folders",
                where="params.yaml, ratios",
                remedy=f"write {ratio:g}",
            )


def check_cell(parameters: Parameters, method: str, ratio: float) -> None:
    """Check the method and the ratio that a stage is started with.

    Raises:
        UserError: there is no such method, or no model can have this ratio.
    """
    method_named(method)
    if not 0.0 <= ratio <= 1.0:
        raise UserError(f"ratio {ratio} is not between 0 and 1", where="--ratio")
    zeros_of_group = parameters.pruning.zeros_of_group
    if method != "dense" and zeros_of_group is not None:
        zeros, group = zeros_of_group
        if abs(ratio * group - zeros) > 1e-6:
            raise UserError(
                f"ratio {ratio} contradicts pruning.pattern {parameters.pruning.pattern}, which is "
                f"{zeros} zeros in every group of {group}",
                where="--ratio",
                remedy=f"use {zeros / group:.10g}",
            )


def check_device(parameters: Parameters) -> None:
    """Check that the device of `machine.device` is there; torch is loaded only for a GPU.

    Raises:
        UserError: it is not, and what to do.
    """
    if parameters.machine.device != "cpu":
        from efficientllava.offload.devices import require_device

        require_device(parameters.machine.device)


def model_folder(parameters: Parameters) -> Path | None:
    """The folder of a user's own checkpoint; None for the embedded model and for a hub id."""
    source = parameters.model.source
    if source == "embedded":
        return None
    folder = Path(source).expanduser()
    looks_like_path = source.startswith((".", "/", "~")) or source.count("/") != 1
    return folder if folder.is_dir() or looks_like_path else None


def _check_model(parameters: Parameters) -> None:
    source, revision = parameters.model.source, parameters.model.revision
    if source == "embedded":
        return
    folder = model_folder(parameters)
    if folder is None and revision is None:
        raise UserError(
            f"{source} is no folder here, and a hub id needs its commit in model.revision",
            where="params.yaml, model.source",
            remedy="correct the path, or pin the revision: the same weights on every run",
        )
    if folder is not None and not folder.is_dir():
        raise UserError("no such model folder", where=f"params.yaml, model.source: {source}")


def _check_proxy(parameters: Parameters) -> None:
    proxy, search = parameters.proxy, parameters.search
    evolving = [
        name
        for name in parameters.methods
        if METHODS[name].allocation == "search"
        and METHODS[name].search_parameters(search).evolve_projector
    ]
    if evolving and proxy.pairs == 0:
        raise UserError(
            f"no image-text pairs, but {', '.join(evolving)} evolve the projector, which text "
            "alone does not pass through",
            where="params.yaml, proxy.pairs",
            remedy="set proxy.pairs above 0, or search.evolve_projector: false",
        )
    if proxy.pairs == 0 and "text_and_pairs" in (
        parameters.pruning.calibration,
        search.fitness_data,
    ):
        raise UserError(
            "no image-text pairs, but they are asked for by pruning.calibration or "
            "search.fitness_data: text_and_pairs",
            where="params.yaml, proxy.pairs",
            remedy="set proxy.pairs above 0, or both to `text`",
        )
    if proxy.pairs_source != "embedded" and not Path(proxy.pairs_source).expanduser().is_dir():
        raise UserError(
            "no such folder", where=f"params.yaml, proxy.pairs_source: {proxy.pairs_source}"
        )
    text = proxy.text
    if text.startswith((".", "/", "~")) and not Path(text).expanduser().exists():
        raise UserError("no such file or folder", where=f"params.yaml, proxy.text: {text}")


def _check_evaluation(parameters: Parameters) -> None:
    evaluation = parameters.evaluation
    for name in evaluation.named_benchmarks:
        source = evaluation.data[name]
        if source.startswith((".", "/", "~")) and not Path(source).expanduser().is_dir():
            raise UserError(
                "no such folder", where=f"params.yaml, evaluation.data.{name}: {source}"
            )
