"""The export of a checkpoint: graphs, packed weights, parity, answers and speed, in one folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from transformers import GenerationConfig, PreTrainedModel

from efficientllava.errors import UserError
from efficientllava.export.decoding import Prompt, Reference
from efficientllava.export.graphs.writing import (
    FILES,
    IR_VERSION,
    OPSET,
    export_graphs,
    not_exportable,
)
from efficientllava.export.graphs.zeros import sparsity
from efficientllava.export.measure import DENSE, STEP, measure_graphs, not_available
from efficientllava.export.packed import measure_packed
from efficientllava.export.record import without_times
from efficientllava.export.reference import graph_reference
from efficientllava.export.runtimes import takes_graphs
from efficientllava.export.speed import (
    COVERAGE,
    clock_of,
    compare_with_best_dense,
    load_average,
    machine,
    warn_of_load,
    wide_intervals,
)
from efficientllava.files import replacing, write_json
from efficientllava.models.batches import special_tokens
from efficientllava.models.checkpoint import load_model, load_processor
from efficientllava.parameters import ExportParameters
from efficientllava.progress import Event, Progress, silent

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

    The folder appears whole or not at all and needs no checkpoint beside it: what the runtimes of
    graphs take (graphs, embeddings, processor files, generation settings), the packed checkpoint
    in `packed`, and export.json. Of a model that a runtime cannot take export.json says why. The
    folder has the same bytes whenever the same checkpoint is exported: times are returned only.

    Args:
        prompts: answered end to end and compared token by token; the first
            `parameters.answers` of them.
        style: see `load_processor`.

    Returns:
        What export.json holds, with the times and the machine (`export.record`).

    Raises:
        UserError: a checkpoint cannot be read, a prompt is longer than the prefill graph, none of
            the runtimes is installed, or a runtime's results differ from PyTorch's.
    """
    if not prompts:
        raise UserError("no question to compare answers on", where="export")
    export = _Export(checkpoint, dense_checkpoint, prompts[: parameters.answers], parameters, style)
    graphs = [name for name in parameters.runtimes if takes_graphs(name)]
    reason = _not_exportable(checkpoint, dense_checkpoint) if graphs else None
    done = _steps(progress, 3 * bool(graphs and reason is None) + len(parameters.runtimes))
    record = _settings(parameters)
    with replacing(folder) as temporary:
        temporary.mkdir()
        references = export.graphs(temporary, record, done) if graphs and reason is None else None
        for runtime in parameters.runtimes:
            if not takes_graphs(runtime):
                row = export.packed(temporary, record, references)
            elif references is None:
                row = not_available(runtime, str(reason))
            else:
                row = measure_graphs(runtime, temporary, references, parameters)
            _add(record, runtime, row, done)
        _require_one(record, reason)
        _compare(record)
        # the exported folder holds the pruned model alone
        shutil.rmtree(temporary / DENSE, ignore_errors=True)
        (temporary / STEP).unlink(missing_ok=True)
        write_json(temporary / "export.json", without_times(record))
    return record


class _Export:
    """The two checkpoints of an export and how they are asked."""

    def __init__(
        self,
        checkpoint: Path,
        dense: Path,
        prompts: Sequence[Prompt],
        parameters: ExportParameters,
        style: str | None,
    ) -> None:
        self.checkpoint, self.dense, self.prompts = checkpoint, dense, prompts
        self.parameters, self.style = parameters, style

    def graphs(self, folder: Path, record: dict[str, Any], done: Done) -> list[Reference]:
        """Write the graphs of both models, one model in memory at a time; PyTorch's answers."""
        parameters = self.parameters
        lengths = parameters.prompt_tokens, parameters.context
        model = load_model(self.checkpoint, torch.float32)
        processor = load_processor(self.checkpoint, self.style)
        references = [
            graph_reference(
                model, processor, prompt, parameters.new_tokens, parameters.prompt_tokens
            )
            for prompt in self.prompts
        ]
        record["answers"] = [_answer(reference, processor) for reference in references]
        done("PyTorch answers")
        export_graphs(model, folder, *lengths)
        _save_settings(model, processor, folder, parameters.new_tokens)
        record["sparsity"] = {
            name: sparsity(model, folder / f"{name}.onnx") for name in ("prefill", "decode")
        }
        sizes = {name: folder / name for name in FILES if (folder / name).is_file()}
        record["bytes"] |= {name: path.stat().st_size for name, path in sizes.items()}
        del model
        done("graphs")
        (folder / DENSE).mkdir()
        export_graphs(load_model(self.dense, torch.float32), folder / DENSE, *lengths)
        done("dense graphs")
        return references

    def packed(
        self, folder: Path, record: dict[str, Any], references: list[Reference] | None
    ) -> dict[str, Any]:
        """Pack the checkpoint and measure it."""
        row = measure_packed(
            self.checkpoint,
            self.dense,
            folder / "packed",
            self.prompts,
            self.parameters,
            self.style,
            references,
        )
        record["bytes"] |= row.pop("bytes", {})
        if not record["answers"] and "references" in row:
            processor = load_processor(self.checkpoint, self.style)
            record["answers"] = [_answer(each, processor) for each in row["references"]]
        row.pop("references", None)
        return row


def _steps(progress: Progress, total: int) -> Done:
    steps = iter(range(1, total + 1))

    def done(name: str, **values: float | str) -> None:
        progress(Event("export", next(steps), total, {"step": name, **values}))

    return done


def _not_exportable(*checkpoints: Path) -> str | None:
    reasons = (not_exportable(checkpoint) for checkpoint in checkpoints)
    return next((reason for reason in reasons if reason is not None), None)


def _settings(parameters: ExportParameters) -> dict[str, Any]:
    """The part of export.json that no model is needed for."""
    return {
        "prompt_tokens": parameters.prompt_tokens,
        "context": parameters.context,
        "threads": parameters.threads,
        "repetitions": parameters.repetitions,
        "clock": clock_of(parameters.threads),
        "machine": machine(),
        "opset": OPSET,
        "ir_version": IR_VERSION,
        "onnx": onnx.__version__,
        "bytes": {},
        "parity": {},
        "tolerance": {},
        "speedup_coverage": COVERAGE,
        "answers": [],
        "runtimes": {},
    }


def _answer(reference: Reference, processor: Any) -> dict[str, Any]:
    """A row of `answers` in export.json; each runtime adds its tokens."""
    text = processor.tokenizer.decode(reference.tokens, skip_special_tokens=True)
    return {
        "prompt": reference.prompt.text,
        "image": str(reference.prompt.image) if reference.prompt.image else None,
        "pytorch": reference.tokens,
        "text": text.strip(),
    }


def _add(record: dict[str, Any], runtime: str, row: dict[str, Any], done: Done) -> None:
    """Add what was measured in a runtime to the record."""
    record["runtimes"][runtime] = row
    if not row["available"]:
        done(f"{runtime} cannot be used", reason=row["reason"])
        return
    record["parity"][runtime] = row.pop("parity")
    record["tolerance"][runtime] = row.pop("tolerance")
    tokens, expected = row.pop("tokens"), row.pop("expected", None)
    expected = expected or [answer["pytorch"] for answer in record["answers"]]
    row["tokens_match"] = tokens == expected
    for answer, ours in zip(record["answers"], tokens, strict=True):
        answer[runtime] = ours
    done(runtime, **record["parity"][runtime])


def _require_one(record: dict[str, Any], not_exported: str | None) -> None:
    """Refuse an export without any number, unless the model itself is the reason.

    Raises:
        UserError: no runtime can be used here.
    """
    rows = record["runtimes"]
    if not_exported is not None or any(row["available"] for row in rows.values()):
        return
    if all(row.get("of_model") for row in rows.values()):
        return
    told = "; ".join(f"{name}: {row['reason']}" for name, row in rows.items())
    raise UserError(
        f"none of the runtimes can be used here ({told})",
        where="params.yaml, export.runtimes",
        remedy="add onnxruntime, which runs everywhere",
    )


def _compare(record: dict[str, Any]) -> None:
    """Add to the record what needs all runtimes: agreement, the load, the best dense times."""
    measured = {name: row for name, row in record["runtimes"].items() if row["available"]}
    if not measured:
        return
    # 16-bit numbers may choose another of two equally good tokens than float32
    record["tokens_match"] = all(
        row["tokens_match"]
        for name, row in measured.items()
        if not takes_graphs(name) or row["precision"] == "float32"
    )
    load = max(row.pop("load_average") for row in measured.values())
    record["machine"] |= {"load_average_while_timing": load, "load_average_after": load_average()}
    warnings = [warn_of_load(load, record["machine"]["cores"]), wide_intervals(measured)]
    if told := [warning for warning in warnings if warning is not None]:
        record["warning"] = "; ".join(told)
    compare_with_best_dense(measured)


def _save_settings(model: PreTrainedModel, processor: Any, folder: Path, new_tokens: int) -> None:
    """Everything beside the graphs that answering needs."""
    processor.save_pretrained(folder)
    model.config.save_pretrained(folder)
    GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, **special_tokens(model)
    ).save_pretrained(folder)
