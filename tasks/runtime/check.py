"""Checks that need no model, made before any work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efficientllava.allocation.search.policy import check_band
from efficientllava.errors import UserError
from efficientllava.models.source import BUILT, NEEDS_IMAGES, local_folder, require_source
from efficientllava.parameters import Parameters
from efficientllava.reading import expanded, read_model_config
from efficientllava.registry import BENCHMARKS, METHODS


def check_parameters(parameters: Parameters) -> None:
    """Check what the sections of params.yaml ask of each other and of the disk.

    Raises:
        UserError: naming the parameters that do not go together, or the input that is missing.
    """
    _check_model(parameters)
    _check_proxy(parameters)
    _check_evaluation(parameters)
    for ratio in parameters.ratios:
        for method in (METHODS[name] for name in parameters.methods):
            if "database" in method.needs:
                check_band(method.levels(parameters, ratio), ratio, parameters.search.band)


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
    if method != "dense":
        METHODS[method]
    if not 0.0 <= ratio <= 1.0:
        raise UserError(f"ratio {ratio} is not between 0 and 1", where="--ratio")
    misfit = None if method == "dense" else parameters.obs.misfit(ratio, method)
    if misfit is not None:
        raise UserError(misfit[0], where="--ratio", remedy=f"use {misfit[1]}")


def check_device(parameters: Parameters) -> None:
    """Check that the device of `machine.device` is there; torch is loaded only for a GPU.

    Raises:
        UserError: it is not, and what to do.
    """
    if parameters.machine.device != "cpu":
        from efficientllava.offload.devices import require_device

        require_device(parameters.machine.device)


def model_folder(parameters: Parameters) -> Path | None:
    """The folder of a user's own checkpoint; None for one that is built here and for a hub id."""
    source = parameters.model.source
    if source in BUILT:
        return None
    return local_folder(source)


def _check_model(parameters: Parameters) -> None:
    model = parameters.model
    if model.source not in BUILT:
        _require_path("model.source", model.source)
        require_source(model.source, model.revision, "params.yaml, model.source", "model.revision")


def _require_path(name: str, source: str) -> None:
    """Check that ~ can be expanded: a message then names the parameter."""
    try:
        expanded(source)
    except UserError as error:
        raise UserError(error.what, f"params.yaml, {name}: {source}") from error


def _check_proxy(parameters: Parameters) -> None:
    proxy, search = parameters.proxy, parameters.search
    evolving = [name for name in parameters.methods if METHODS[name].evolves_projector(search)]
    if evolving and proxy.pairs == 0:
        raise UserError(
            f"no image-text pairs, but {', '.join(evolving)} evolve the projector, which text "
            "alone does not pass through",
            where="params.yaml, proxy.pairs",
            remedy="set proxy.pairs above 0, or search.evolve_projector: false",
        )
    if proxy.pairs == 0 and "text_and_pairs" in (
        parameters.obs.calibration,
        search.fitness_data,
    ):
        raise UserError(
            "no image-text pairs, but they are asked for by obs.calibration or "
            "search.fitness_data: text_and_pairs",
            where="params.yaml, proxy.pairs",
            remedy="set proxy.pairs above 0, or both to `text`",
        )
    _require_path("proxy.pairs_source", proxy.pairs_source)
    if proxy.pairs_source != "demo" and not expanded(proxy.pairs_source).is_dir():
        raise UserError(
            "no such folder", where=f"params.yaml, proxy.pairs_source: {proxy.pairs_source}"
        )
    for name, text in (("proxy.text", proxy.text), ("evaluation.text", parameters.evaluation.text)):
        _require_path(name, text or "")
        if text and text.startswith((".", "/", "~")) and not expanded(text).exists():
            raise UserError("no such file or folder", where=f"params.yaml, {name}: {text}")


def _check_evaluation(parameters: Parameters) -> None:
    evaluation = parameters.evaluation
    for name in evaluation.named_benchmarks:
        source = evaluation.data[name]
        _require_path(f"evaluation.data.{name}", source)
        if source.startswith((".", "/", "~")) and not expanded(source).is_dir():
            raise UserError(
                "no such folder", where=f"params.yaml, evaluation.data.{name}: {source}"
            )
    folder = model_folder(parameters)
    config = None if folder is None else folder / "config.json"
    if config is not None and config.exists() and evaluation.named_benchmarks:
        check_questions(parameters, read_model_config(config.parent), local=True)


def check_questions(parameters: Parameters, config: Any, local: bool) -> None:
    """Check that a model that needs images is asked no questions without one.

    Args:
        config: the content of the model's config.json.
        local: look only at benchmarks whose files are here.

    Raises:
        UserError: a benchmark has such questions.
    """
    evaluation = parameters.evaluation
    if not isinstance(config, dict) or config.get("model_type") not in NEEDS_IMAGES:
        return
    from efficientllava.benchmarks.base import require_images

    for name in evaluation.named_benchmarks:
        source, benchmark = evaluation.data[name], BENCHMARKS[name]
        if local and not expanded(source).is_dir():
            continue
        style = evaluation.style if evaluation.style in benchmark.styles else None
        split = evaluation.splits.get(name)
        require_images(benchmark, source, split, style, evaluation.questions)
