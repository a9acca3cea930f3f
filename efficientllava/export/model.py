"""The export of a checkpoint: graphs, parity, answers and speed, in one folder."""

from __future__ import annotations

import importlib.util
import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import onnx
import torch
from transformers import GenerationConfig, PreTrainedModel

from efficientllava.errors import UserError
from efficientllava.export.assistant import GRAPHS, Assistant, Prompt
from efficientllava.export.graphs import IR_VERSION, OPSET, export_graphs, not_exportable
from efficientllava.export.parity import TOLERANCE, parity, require_parity, sparsity
from efficientllava.export.reference import Reference, reference_answer
from efficientllava.export.runtimes import open_graph, unavailable, version
from efficientllava.export.speed import (
    COVERAGE,
    compare_with_best_dense,
    load_average,
    machine,
    time_in_turns,
    warn_of_load,
)
from efficientllava.files import replacing, write_json
from efficientllava.models.checkpoint import load_model, load_processor
from efficientllava.parameters import ExportParameters
from efficientllava.progress import Event, Progress, silent
from efficientllava.registry import RUNTIMES

DENSE, STEP = "dense", ".step"
Done = Callable[..., None]
"""Reports a finished step: its name, and what was measured in it by keyword."""


def export_model(
    checkpoint: Path,
    dense_checkpoint: Path,
    prompts: Sequence[Prompt],
    folder: Path,
    parameters: ExportParameters,
    progress: Progress = silent,
    style: str | None = None,
) -> dict[str, Any]:
    """Export a checkpoint, hold it against PyTorch and time it against the dense model.

    The folder appears whole or not at all and needs no checkpoint beside it: graphs,
    embeddings, processor files, generation settings and export.json. Of a model that no graphs can
    be written of (`not_exportable`) it holds export.json alone, which says why for each runtime.

    Args:
        prompts: answered end to end and compared token by token; the first
            `parameters.answers` of them.
        style: see `load_processor`.

    Returns:
        What export.json holds.

    Raises:
        UserError: a checkpoint cannot be read or exported, a prompt is longer than the prefill
            graph, no runtime can be used here, or a runtime's results differ from PyTorch's.
    """
    if not prompts:
        raise UserError("no question to compare answers on", where="export")
    total = 3 + len(parameters.runtimes)
    steps = iter(range(1, total + 1))

    def done(name: str, **values: float | str) -> None:
        progress(Event("export", next(steps), total, {"step": name, **values}))

    for path in (checkpoint, dense_checkpoint):
        if (reason := not_exportable(path)) is not None:
            progress(Event("export", total, total, {"step": "not exported", "reason": reason}))
            return _record_reason(reason, folder, parameters)
    model, processor = load_model(checkpoint, torch.float32), load_processor(checkpoint, style)
    references = [
        reference_answer(model, processor, prompt, parameters.new_tokens, parameters.prompt_tokens)
        for prompt in prompts[: parameters.answers]
    ]
    done("PyTorch answers")
    with replacing(folder) as temporary:
        _write_graphs(model, dense_checkpoint, temporary, parameters, done)
        _save_settings(model, processor, temporary, parameters.new_tokens)
        record = _settings_and_sizes(model, temporary, parameters)
        record["answers"] = [_told(reference, processor) for reference in references]
        _measure(record, references, temporary, parameters, done)
        _compare(record)
        # the exported folder holds the pruned model alone
        shutil.rmtree(temporary / DENSE)
        (temporary / STEP).unlink(missing_ok=True)
        write_json(temporary / "export.json", record)
    return record


def _write_graphs(
    model: PreTrainedModel, dense: Path, folder: Path, parameters: ExportParameters, done: Done
) -> None:
    """The pruned model's graphs in the folder, the dense model's in its folder `dense`."""
    lengths = parameters.prompt_tokens, parameters.context
    folder.mkdir()
    export_graphs(model, folder, *lengths)
    done("graphs")
    (folder / DENSE).mkdir()
    export_graphs(load_model(dense, torch.float32), folder / DENSE, *lengths)
    done("dense graphs")


def _settings_and_sizes(
    model: PreTrainedModel, folder: Path, parameters: ExportParameters
) -> dict[str, Any]:
    """The part of export.json that no runtime is needed for."""
    files = [*(f"{name}.onnx" for name in GRAPHS), "embeddings.safetensors"]
    return {
        "prompt_tokens": parameters.prompt_tokens,
        "context": parameters.context,
        "threads": parameters.threads,
        "repetitions": parameters.repetitions,
        "machine": machine(),
        "opset": OPSET,
        "ir_version": IR_VERSION,
        "onnx": onnx.__version__,
        "sparsity": {
            name: sparsity(model, folder / f"{name}.onnx") for name in ("prefill", "decode")
        },
        "bytes": {name: (folder / name).stat().st_size for name in files},
        "parity": {"tolerance": TOLERANCE},
        "speedup_coverage": COVERAGE,
        "runtimes": {},
    }


def _told(reference: Reference, processor: Any) -> dict[str, Any]:
    """A row of `answers` in export.json; each runtime adds its tokens."""
    text = processor.tokenizer.decode(reference.tokens, skip_special_tokens=True)
    return {
        "prompt": reference.prompt.text,
        "image": str(reference.prompt.image) if reference.prompt.image else None,
        "pytorch": reference.tokens,
        "text": text.strip(),
    }


def _measure(
    record: dict[str, Any],
    references: list[Reference],
    folder: Path,
    parameters: ExportParameters,
    done: Done,
) -> None:
    """Add each runtime's parity, tokens and times to the record.

    Raises:
        UserError: no runtime can be used here, or the results of one differ from PyTorch's.
    """
    for runtime in parameters.runtimes:
        measure = _measure_isolated if RUNTIMES[runtime].isolated else measure_runtime
        row = measure(runtime, folder, references, parameters)
        record["runtimes"][runtime] = row
        if not row["available"]:
            done(f"{runtime} cannot be used", reason=row["reason"])
            continue
        record["parity"][runtime] = row.pop("parity")
        for answer, tokens in zip(record["answers"], row.pop("tokens"), strict=True):
            answer[runtime] = tokens
        done(runtime, **record["parity"][runtime])
    if not any(row["available"] for row in record["runtimes"].values()):
        told = "; ".join(f"{name}: {row['reason']}" for name, row in record["runtimes"].items())
        raise UserError(
            f"none of the runtimes can be used here ({told})",
            where="params.yaml, export.runtimes",
            remedy="add onnxruntime, which runs everywhere",
        )


def _compare(record: dict[str, Any]) -> None:
    """Add to the record what needs all runtimes: agreement, the load, the best dense times."""
    measured = {name: row for name, row in record["runtimes"].items() if row["available"]}
    record["tokens_match"] = all(
        answer[runtime] == answer["pytorch"] for answer in record["answers"] for runtime in measured
    )
    load = max(row.pop("load_average") for row in measured.values())
    record["machine"] |= {"load_average_while_timing": load, "load_average_after": load_average()}
    if (warning := warn_of_load(load, record["machine"]["cores"])) is not None:
        record["warning"] = warning
    compare_with_best_dense(list(measured.values()))


def measure_runtime(
    runtime: str, folder: Path, references: list[Reference], parameters: ExportParameters
) -> dict[str, Any]:
    """Parity, answers and speed in one runtime.

    Args:
        folder: the exported graphs; the dense ones lie in its folder `dense`.

    Returns:
        {"available": False, "reason"} where the runtime cannot be imported; else the times, with
        "parity" and "tokens" (one list of ids per reference).

    Raises:
        UserError: results differ from PyTorch's.
    """
    if (reason := unavailable(runtime)) is not None:
        return {"available": False, "reason": reason}

    def begin(step: str) -> None:
        # what is told when the runtime takes the process down with it
        (folder / STEP).write_text(step, encoding="utf-8")

    begin("the comparison with PyTorch")
    assistant = Assistant(folder, runtime, parameters.threads)
    errors = parity(assistant, references)
    require_parity(runtime, errors, TOLERANCE)
    tokens = [
        assistant.generate(reference.prompt, parameters.new_tokens) for reference in references
    ]
    measured: dict[str, Any] = {"available": True, "version": version(runtime)}
    measured |= {"parity": errors, "tokens": tokens, "dense": {}, "pruned": {}}
    for name in GRAPHS:
        begin(f"timing {name}, dense and pruned")
        dense = open_graph(runtime, folder / DENSE / f"{name}.onnx", parameters.threads)
        graphs = {"dense": dense, "pruned": assistant.graphs[name]}
        time_in_turns(name, graphs, parameters.repetitions, measured)
    return measured


def _measure_isolated(
    runtime: str, folder: Path, references: list[Reference], parameters: ExportParameters
) -> dict[str, Any]:
    """`measure_runtime` in a process of its own; a crash there is recorded."""
    if importlib.util.find_spec(RUNTIMES[runtime].package) is None:
        return {"available": False, "reason": f"{runtime} is not installed"}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            task = pool.submit(measure_runtime, runtime, folder, references, parameters)
            return task.result()
        except BrokenProcessPool:
            step = folder / STEP
            when = step.read_text(encoding="utf-8") if step.is_file() else "its start"
            return {"available": False, "reason": f"{runtime} crashed during {when}"}


def _record_reason(reason: str, folder: Path, parameters: ExportParameters) -> dict[str, Any]:
    """export.json of a model that is not exported: every runtime unavailable, and why."""
    row = {"available": False, "reason": reason}
    record = {"runtimes": {runtime: dict(row) for runtime in parameters.runtimes}}
    with replacing(folder) as temporary:
        temporary.mkdir()
        write_json(temporary / "export.json", record)
    return record


def _save_settings(model: PreTrainedModel, processor: Any, folder: Path, new_tokens: int) -> None:
    """Everything beside the graphs that answering needs."""
    processor.save_pretrained(folder)
    model.config.save_pretrained(folder)
    ours = model.generation_config
    GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens,
        bos_token_id=ours.bos_token_id,
        eos_token_id=ours.eos_token_id,
        pad_token_id=ours.pad_token_id,
    ).save_pretrained(folder)
