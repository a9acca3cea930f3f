"""The export of a checkpoint: graphs, parity, answers and speed, in one folder."""

from __future__ import annotations

import importlib.util
import multiprocessing
import shutil
from collections.abc import Sequence
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
    interleaved,
    load_average,
    machine,
    milliseconds,
    milliseconds_interval,
    ratio_interval,
    ratio_quartiles,
    timing_inputs,
    warn_of_load,
)
from efficientllava.files import replacing, write_json
from efficientllava.models.checkpoint import load_model, load_processor
from efficientllava.parameters import ExportParameters
from efficientllava.progress import Event, Progress, silent

DENSE, STEP = "dense", ".step"
# DeepSparse ends the whole process on some shapes: it works in a process of its own
ISOLATED = {"deepsparse"}


def export_model(
    checkpoint: Path,
    dense_checkpoint: Path,
    prompts: Sequence[Prompt],
    folder: Path,
    parameters: ExportParameters,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Export a checkpoint, hold it against PyTorch and time it against the dense model.

    The folder appears whole or not at all and needs no checkpoint beside it: graphs,
    embeddings, processor files, generation settings and export.json. Of a model that no graphs can
    be written of (`not_exportable`) it holds export.json alone, which says why for each runtime.

    Args:
        prompts: answered end to end and compared token by token; the first
            `parameters.answers` of them.

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
    model, processor = load_model(checkpoint, torch.float32), load_processor(checkpoint)
    references = [
        reference_answer(model, processor, prompt, parameters.new_tokens, parameters.prompt_tokens)
        for prompt in prompts[: parameters.answers]
    ]
    done("PyTorch answers")
    with replacing(folder) as temporary:
        temporary.mkdir()
        export_graphs(model, temporary, parameters.prompt_tokens, parameters.context)
        _save_settings(model, processor, temporary, parameters.new_tokens)
        done("graphs")
        # deleted again below: the exported folder holds the pruned model alone
        dense = temporary / DENSE
        dense.mkdir()
        export_graphs(
            load_model(dense_checkpoint, torch.float32),
            dense,
            parameters.prompt_tokens,
            parameters.context,
        )
        done("dense graphs")
        record: dict[str, Any] = {
            "prompt_tokens": parameters.prompt_tokens,
            "context": parameters.context,
            "threads": parameters.threads,
            "repetitions": parameters.repetitions,
            "machine": machine(),
            "opset": OPSET,
            "ir_version": IR_VERSION,
            "onnx": onnx.__version__,
            "sparsity": {
                name: sparsity(model, temporary / f"{name}.onnx") for name in ("prefill", "decode")
            },
            "bytes": {
                **{f"{name}.onnx": _size(temporary / f"{name}.onnx") for name in GRAPHS},
                "embeddings.safetensors": _size(temporary / "embeddings.safetensors"),
            },
            "parity": {"tolerance": TOLERANCE},
            "speedup_coverage": COVERAGE,
            "runtimes": {},
        }
        answers: list[dict[str, Any]] = [
            {
                "prompt": reference.prompt.text,
                "image": str(reference.prompt.image) if reference.prompt.image else None,
                "pytorch": reference.tokens,
                "text": processor.tokenizer.decode(
                    reference.tokens, skip_special_tokens=True
                ).strip(),
            }
            for reference in references
        ]
        for runtime in parameters.runtimes:
            measure = _isolated if runtime in ISOLATED else measure_runtime
            row = measure(runtime, temporary, references, parameters)
            record["runtimes"][runtime] = row
            if not row["available"]:
                done(f"{runtime} cannot be used", reason=row["reason"])
                continue
            record["parity"][runtime] = row.pop("parity")
            for answer, tokens in zip(answers, row.pop("tokens"), strict=True):
                answer[runtime] = tokens
            done(runtime, **record["parity"][runtime])
        available = [name for name, row in record["runtimes"].items() if row["available"]]
        if not available:
            told = "; ".join(f"{name}: {row['reason']}" for name, row in record["runtimes"].items())
            raise UserError(
                f"none of the runtimes can be used here ({told})",
                where="params.yaml, export.runtimes",
                remedy="add onnxruntime, which runs everywhere",
            )
        load = max(record["runtimes"][name].pop("load_average") for name in available)
        record["machine"] |= {
            "load_average_while_timing": load,
            "load_average_after": load_average(),
        }
        if (warning := warn_of_load(load, record["machine"]["cores"])) is not None:
            record["warning"] = warning
        record["answers"] = answers
        record["tokens_match"] = all(
            row[runtime] == row["pytorch"] for row in answers for runtime in available
        )
        _compare_with_best_dense(record["runtimes"])
        shutil.rmtree(dense)
        (temporary / STEP).unlink(missing_ok=True)
        write_json(temporary / "export.json", record)
    return record


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
        _measure(name, assistant, folder / DENSE / f"{name}.onnx", parameters, measured)
    return measured


def _isolated(
    runtime: str, folder: Path, references: list[Reference], parameters: ExportParameters
) -> dict[str, Any]:
    """`measure_runtime` in a process of its own; a crash there is recorded, not suffered."""
    if importlib.util.find_spec(runtime) is None:
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


def _measure(
    name: str,
    assistant: Assistant,
    dense_path: Path,
    parameters: ExportParameters,
    measured: dict[str, Any],
) -> None:
    """Time one graph, dense and pruned in turns, and write what was found into `measured`."""
    pruned = assistant.graphs[name]
    dense = open_graph(assistant.runtime, dense_path, parameters.threads)
    graphs = {"dense": dense, "pruned": pruned}
    inputs = {variant: timing_inputs(name, graph) for variant, graph in graphs.items()}
    seconds = interleaved(graphs, inputs, parameters.repetitions)
    for variant, graph in graphs.items():
        row = measured[variant]
        row |= {f"{name}_{key}": value for key, value in milliseconds(seconds[variant]).items()}
        row[f"{name}_interval_ms"] = milliseconds_interval(seconds[variant])
        row[f"{name}_compile_seconds"] = round(graph.compile_seconds, 3)
        if graph.engine_share is not None:
            row[f"{name}_engine_share"] = graph.engine_share
            if name != "vision":
                # of the language model: the smaller of its two graphs
                row["engine_share"] = min(row.get("engine_share", 1.0), graph.engine_share)
    # above 1 the pruned graph is faster, below 1 slower
    measured[f"{name}_speedup"] = round(
        measured["dense"][f"{name}_ms"] / measured["pruned"][f"{name}_ms"], 4
    )
    measured[f"{name}_speedup_quartiles"] = ratio_quartiles(seconds["dense"], seconds["pruned"])
    measured[f"{name}_speedup_interval"] = ratio_interval(seconds["dense"], seconds["pruned"])
    measured["load_average"] = max(load_average(), measured.get("load_average", 0.0))


def _compare_with_best_dense(runtimes: dict[str, Any]) -> None:
    """The honest comparison: each pruned time against the fastest dense time in any runtime."""
    rows = [row for row in runtimes.values() if row["available"]]
    for name in GRAPHS:
        best = min(rows, key=lambda row: float(row["dense"][f"{name}_ms"]))
        for row in rows:
            key = f"{name}_speedup_over_best_dense"
            row[key] = round(best["dense"][f"{name}_ms"] / row["pruned"][f"{name}_ms"], 4)
            row[f"{key}_interval"] = (
                row[f"{name}_speedup_interval"] if row is best else _unpaired(name, best, row)
            )


def _unpaired(name: str, best: dict[str, Any], row: dict[str, Any]) -> dict[str, float] | None:
    """The interval of a ratio of medians that were not measured in turns."""
    dense, pruned = best["dense"][f"{name}_interval_ms"], row["pruned"][f"{name}_interval_ms"]
    if dense is None or pruned is None:
        return None
    return {"low": round(dense[0] / pruned[1], 4), "high": round(dense[1] / pruned[0], 4)}


def _size(path: Path) -> int:
    return path.stat().st_size
