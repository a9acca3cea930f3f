"""The stages on Qwen2.5-VL, whose graphs are not written: sparse runtime and report."""

from __future__ import annotations

from efficientllava.files import read_json
from efficientllava.models.checkpoint import save_checkpoint
from tests.models.families import TINY
from tests.report.conftest import shown_times
from tests.tasks.conftest import Here, Workspace

STAGES = ("model", "proxy", "search", "prune", "evaluate", "export")


def test_a_family_without_graphs_reaches_the_report(ready: Workspace, here: Here) -> None:
    save_checkpoint(*TINY["qwen2_5_vl"].build(), ready.folder / "given")
    ready.set_parameters({"model": {"source": "./given"}, "methods": ["magnitude"]})
    cell = ("--method", "magnitude", "--ratio", "0.5")
    told = ""
    for stage in STAGES:
        outcome = here(ready.folder, f"tasks.{stage}", *(cell if STAGES.index(stage) > 1 else ()))
        assert outcome.status == 0, (stage, outcome.error)
        told += outcome.error
    assert "not measured in onnxruntime: models of type 'qwen2_5_vl' are not exported" in told
    outcome = here(ready.folder, "tasks.evaluate", "--method", "dense", "--ratio", "0")
    assert outcome.status == 0, outcome.error
    artifacts = ready.folder / "artifacts"
    record = read_json(artifacts / "export" / "magnitude-0.5" / "export.json")
    assert record["runtimes"]["onnxruntime"]["available"] is False
    assert record["runtimes"]["sparse"]["available"] and record["tokens_match"]
    words = read_json(artifacts / "export_metrics" / "magnitude-0.5.json")
    told = words["runtimes"]["sparse"]["decode_speedup_told"]
    assert told.startswith(("faster ×", "slower ×", "no difference measured"))

    (ready.folder / "experiments").mkdir(exist_ok=True)
    outcome = here(ready.folder, "tasks.report")
    assert outcome.status == 0, outcome.error
    page = shown_times(artifacts / "report")
    assert "Sparse decode ms" in page and "models of type" in page
    assert told in (artifacts / "report_timings" / "table.md").read_text(encoding="utf-8")
    summary = read_json(artifacts / "summary" / "magnitude.json")
    assert 49 < summary["zeros_percent"] < 51 and summary["decode_ms"] > 0
