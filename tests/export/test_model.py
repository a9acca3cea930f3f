"""The export as a whole: what it records, and what it refuses without touching what stands."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from efficientllava.errors import UserError
from efficientllava.export.assistant import answer, usable_runtime
from efficientllava.export.decoding import Prompt
from efficientllava.export.model import export_model
from efficientllava.export.parity import parity, require_parity
from efficientllava.export.record import without_times
from efficientllava.export.reference import graph_reference
from efficientllava.export.runtimes import remedy, unavailable
from efficientllava.export.speed import WARM_UP, interleaved, milliseconds, ratio_quartiles
from efficientllava.files import folder_digest
from efficientllava.models.checkpoint import load_model, load_processor, save_checkpoint
from efficientllava.models.families import adapter_for
from efficientllava.parameters import ExportParameters
from efficientllava.progress import Event
from tests.export.conftest import (
    NEW_TOKENS,
    PARAMETERS,
    PROMPT_TOKENS,
    Assistants,
    each_runtime,
    tiny_model,
    tiny_processor,
)
from tests.models.families import TINY

GRAPHS = ("vision", "prefill", "decode")


def test_the_record_tells_what_was_measured(
    measured: tuple[Path, dict[str, Any]], checkpoints: dict[str, Path], prompts: list[Prompt]
) -> None:
    folder, record = measured
    assert json.loads((folder / "export.json").read_text()) == without_times(record)
    assert record["threads"] == 1 and record["machine"]["cores"] >= 1
    assert record["tokens_match"] and len(record["answers"]) == len(prompts)
    matrices = adapter_for(load_model(checkpoints["pruned"])).matrices
    zeros = sum(int((matrix.weight == 0).sum()) for matrix in matrices)
    size = sum(matrix.size for matrix in matrices)
    assert record["sparsity"] == {"prefill": zeros / size, "decode": zeros / size}
    for runtime in PARAMETERS.runtimes:
        row = record["runtimes"][runtime]
        if unavailable(runtime) is not None:
            assert row["available"] is False and row["reason"]
            continue
        errors = record["parity"][runtime]
        assert set(errors) == {"features", "prefill_logits", "decode_logits"}
        # float32 in another order of summation is never exactly the same, and never far off
        assert 0 < max(errors.values()) < 5e-5
        for name in GRAPHS:
            dense, pruned = row["dense"][f"{name}_ms"], row["pruned"][f"{name}_ms"]
            assert dense > 0 and pruned > 0
            # milliseconds are rounded to a microsecond
            assert row[f"{name}_speedup"] == pytest.approx(dense / pruned, rel=0.05)
            lower, upper = row["pruned"][f"{name}_quartiles_ms"]
            assert lower <= pruned <= upper
        assert ("engine_share" in row["pruned"]) == (runtime == "deepsparse")
        if runtime == "deepsparse":
            assert 0.5 < row["pruned"]["engine_share"] <= 1.0
    best = min(
        row["dense"]["prefill_ms"] for row in record["runtimes"].values() if row["available"]
    )
    row = record["runtimes"]["onnxruntime"]
    assert row["prefill_speedup_over_best_dense"] == pytest.approx(
        best / row["pruned"]["prefill_ms"], rel=0.05
    )


def test_the_folder_has_the_same_bytes_again(
    exported: Path, checkpoints: dict[str, Path], prompts: list[Prompt], tmp_path: Path
) -> None:
    """Another run has other times, which the record has and the folder has not."""
    again = PARAMETERS.model_copy(update={"repetitions": 2})
    arguments = (checkpoints["pruned"], checkpoints["dense"], prompts)
    record = export_model(*arguments, tmp_path / "export", again)
    assert folder_digest(tmp_path / "export") == folder_digest(exported)
    row = record["runtimes"]["onnxruntime"]
    assert row["pruned"]["decode_ms"] > 0 and record["machine"]["cores"] >= 1


def test_the_folder_holds_the_pruned_model_alone(exported: Path) -> None:
    names = {path.name for path in exported.rglob("*")}
    assert {f"{name}.onnx" for name in GRAPHS} <= names
    assert {"embeddings.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert not any(path.is_dir() for path in exported.iterdir())
    assert not list(exported.parent.glob(".*tmp"))


@each_runtime
def test_parity_sees_another_model(
    assistants: Assistants, checkpoints: dict[str, Path], prompts: list[Prompt], runtime: str
) -> None:
    """Held against the dense model the pruned graphs must fail, features alone must not."""
    dense, processor = load_model(checkpoints["dense"]), load_processor(checkpoints["dense"])
    references = [
        graph_reference(dense, processor, prompt, NEW_TOKENS, PROMPT_TOKENS) for prompt in prompts
    ]
    errors = parity(assistants(runtime).model, references)
    assert errors["features"] < 5e-5
    assert errors["prefill_logits"] > 0.1 and errors["decode_logits"] > 0.1
    with pytest.raises(UserError, match="prefill_logits by .*, decode_logits by"):
        require_parity(runtime, errors, 1e-3)
    with pytest.raises(UserError, match="features by nan"):
        require_parity(runtime, {"features": float("nan")}, 1e-3)
    require_parity(runtime, {"features": 1e-3}, 1e-3)


def test_a_failure_leaves_the_finished_export(
    exported: Path,
    checkpoints: dict[str, Path],
    prompts: list[Prompt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    quick = PARAMETERS.model_copy(update={"runtimes": ("onnxruntime",)})
    arguments = (checkpoints["pruned"], checkpoints["dense"])
    long = Prompt(" ".join(["w1"] * (PROMPT_TOKENS + 1)), None)
    with pytest.raises(UserError, match="the prefill graph takes"):
        export_model(*arguments, [long], folder, quick)
    monkeypatch.setattr("efficientllava.export.parity.TOLERANCE", 0.0)
    with pytest.raises(UserError, match="the exported model differs from PyTorch: .*logits by"):
        export_model(*arguments, prompts, folder, quick)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_crash_of_deepsparse_is_recorded(
    prompts: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.8.0 ends its process on some graphs where there is AVX-512; here another package does."""
    package = tmp_path / "packages" / "deepsparse"
    package.mkdir(parents=True)
    engine = "import os\n\ndef Engine(*_, **__):\n    os.abort()\n"
    (package / "__init__.py").write_text(engine, encoding="utf-8")
    monkeypatch.syspath_prepend(package.parent)  # the process that measures looks there first
    save_checkpoint(tiny_model(kv_heads=2), tiny_processor(), tmp_path / "grouped")
    grouped, folder = tmp_path / "grouped", tmp_path / "export"
    short = ExportParameters(
        runtimes=PARAMETERS.runtimes, prompt_tokens=12, context=32, new_tokens=2, repetitions=3
    )
    record = export_model(grouped, grouped, prompts[2:3], folder, short)
    assert record["runtimes"]["deepsparse"] == {
        "available": False,
        "reason": "deepsparse crashed during the comparison with PyTorch",
        "remedy": remedy("deepsparse"),
    }
    assert record["runtimes"]["onnxruntime"]["available"] and record["tokens_match"]
    assert usable_runtime(folder) == "onnxruntime"
    assert not (folder / ".step").exists()


def test_a_missing_runtime_is_recorded_and_told(
    checkpoints: dict[str, Path],
    prompts: list[Prompt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "deepsparse", None)
    events: list[Event] = []
    arguments: tuple[Any, ...] = (checkpoints["pruned"], checkpoints["dense"], prompts[:1])
    record = export_model(*arguments, tmp_path / "export", PARAMETERS, events.append)
    missing = record["runtimes"]["deepsparse"]
    assert missing == {
        "available": False,
        "reason": "deepsparse is not installed",
        "remedy": remedy("deepsparse"),
    }
    assert "pip install 'efficientllava[deepsparse]'" in missing["remedy"]
    assert record["runtimes"]["onnxruntime"]["available"] and record["tokens_match"]
    assert [event.done for event in events] == list(range(1, events[0].total + 1))
    assert any("deepsparse" in str(event.values["step"]) for event in events)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"none of the runtimes can be used here \(deepsparse:"):
        export_model(*arguments, tmp_path / "other", PARAMETERS)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("family", ["llava_next", "paligemma", "smolvlm"])
def test_another_family_is_recorded_as_not_exported(
    family: str, prompts: list[Prompt], tmp_path: Path
) -> None:
    model, processor = TINY[family].build()
    save_checkpoint(model, processor, tmp_path / "other")
    events: list[Event] = []
    arguments: tuple[Any, ...] = (tmp_path / "other", tmp_path / "other", prompts)
    record = export_model(*arguments, tmp_path / "export", PARAMETERS, events.append)
    _check_not_exported(record, tmp_path / "export", f"models of type '{family}' are not exported")
    assert events[-1].done == events[-1].total


def _check_not_exported(record: dict[str, Any], folder: Path, reason: str) -> None:
    assert set(record["runtimes"]) == set(PARAMETERS.runtimes)
    for row in record["runtimes"].values():
        assert row["available"] is False and reason in row["reason"]
    assert json.loads((folder / "export.json").read_text()) == without_times(record)
    assert [path.name for path in folder.iterdir()] == ["export.json"]
    for runtime in (None, "onnxruntime"):
        with pytest.raises(UserError, match="the model was not exported") as error:
            answer(folder, None, "w1", runtime)
        assert reason in str(error.value)


def test_dense_and_pruned_run_in_turns() -> None:
    log: list[str] = []
    calls = {name: functools.partial(log.append, name) for name in "ab"}
    runs = interleaved(calls, 4)
    assert log[-8:] == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert len(log) == 2 * (WARM_UP + 4)
    assert {name: len(times) for name, times in runs.items()} == {"a": 4, "b": 4}
    assert milliseconds([0.001, 0.002, 0.003, 0.004, 0.1]) == {
        "ms": 3.0,
        "quartiles_ms": [1.5, 52.0],
        "fastest_ms": 1.0,
    }
    # pairs 1/2, 1, 3/2, 2, 5/2
    assert ratio_quartiles([1.0, 2.0, 3.0, 4.0, 5.0], [2.0] * 5) == [0.75, 2.25]
