"""The report's folder, and that its page needs nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from efficientllava.files import folder_digest, read_json, write_json
from efficientllava.report.page import write_report
from tests.report.conftest import shown_times, timing

ROOT = Path(__file__).parents[2]
METHODS, RATIOS = ["sparsegpt", "efficientllava"], [0.5, 0.7]


class Seen(HTMLParser):
    """Attributes that load something, visible text, and balance of tags."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "source", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_page_needs_no_network_and_escapes(artifacts: Path, tmp_path: Path) -> None:
    write_report(artifacts, tmp_path / "report", METHODS, RATIOS, "search: <script>x</script>")
    source = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    times = shown_times(tmp_path / "report")
    page = Seen()
    page.feed(source + times)
    assert not page.open
    page.loads.remove("../report_timings/timings.js")
    page.loads.remove("../decision.js")
    # accuracy against latency, 3 x sparsity, policy, convergence; each light and dark
    assert len(page.loads) == 12
    for load in page.loads:
        kind, _, content = load.partition(";base64,")
        assert kind == "data:image/png"
        assert Image.open(io.BytesIO(base64.b64decode(content))).size[0] > 500
    assert not re.search(r"https?://|@import|url\(", source + times)
    text = " ".join(page.text)
    assert "search: <script>x</script>" in text and "a <fast> one" in text
    assert "<script>x" not in source
    assert "82.5 ± 0.6" in text


def test_page_shows_no_password(artifacts: Path, tmp_path: Path) -> None:
    parameters = "evaluation: {judge: {base_url: 'http://user:password@host/v1'}}"
    write_report(artifacts, tmp_path / "report", METHODS, RATIOS, parameters)
    source = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "password" not in source and "http://***@host/v1" in source


def test_templates_are_part_of_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    [pattern] = settings["setuptools"]["package-data"]["efficientllava.report"]
    report = ROOT / "efficientllava" / "report"
    files = [path for path in report.rglob("*") if path.suffix in (".html", ".css", ".js")]
    assert len(files) == 6 and set(files) == set(report.glob(pattern))


def test_same_records_give_the_same_bytes(artifacts: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_report(artifacts, tmp_path / name / "report", METHODS, RATIOS)
    assert folder_digest(tmp_path / "first") == folder_digest(tmp_path / "second")
    reported, timed = (tmp_path / "first" / name for name in ("report", "report_timings"))
    assert {path.name for path in reported.iterdir()} == {"table.md", "table.csv", "report.html"}
    assert {path.name for path in timed.iterdir()} == {
        "table.md",
        "table.csv",
        "accuracy_latency.png",
        "timings.js",
    }


def test_other_times_leave_the_report_as_it_is(artifacts: Path, tmp_path: Path) -> None:
    """Two clones time the same models differently, on machines that are called differently."""
    write_report(artifacts, tmp_path / "first" / "report", METHODS, RATIOS)
    for path in artifacts.glob("export_metrics/*.json"):
        record = read_json(path)
        record["runtimes"]["deepsparse"] = timing(dense=7.0, pruned=9.0)
        write_json(path, record | {"machine": {"cpu": "another"}, "warning": "busy"})
    write_report(artifacts, tmp_path / "second" / "report", METHODS, RATIOS)
    digests = {
        name: [folder_digest(tmp_path / clone / name) for clone in ("first", "second")]
        for name in ("report", "report_timings")
    }
    assert len({*digests["report"]}) == 1 and len({*digests["report_timings"]}) == 2


def test_report_without_any_speed(artifacts: Path, tmp_path: Path) -> None:
    """Before the exports have run there is a report all the same."""
    for path in artifacts.glob("export_metrics/*.json"):
        path.unlink()
    rows = write_report(artifacts, tmp_path / "report", METHODS, RATIOS)
    assert all(not row.latencies for row in rows)
    assert "DeepSparse" not in (tmp_path / "report" / "table.md").read_text(encoding="utf-8")


def test_report_of_a_model_that_is_not_exported(artifacts: Path, tmp_path: Path) -> None:
    """The table has dashes for its speed, the page says why."""
    reason = "models of type 'smolvlm' are not exported, only those of type 'llava'"
    row = {"available": False, "reason": reason}
    for path in artifacts.glob("export_metrics/*.json"):
        write_json(path, {"runtimes": {"deepsparse": row, "onnxruntime": row}})
    rows = write_report(artifacts, tmp_path / "report", METHODS, RATIOS)
    assert all(not row.latencies for row in rows)
    page = Seen()
    page.feed(shown_times(tmp_path / "report"))
    assert f"not measured: {reason}" in page.text
    assert "82.5 ± 0.6" in (tmp_path / "report" / "table.md").read_text(encoding="utf-8")


def test_speed_against_the_best_dense_runtime_is_tabled(artifacts: Path, tmp_path: Path) -> None:
    path = artifacts / "export_metrics" / "sparsegpt-0.5.json"
    record = read_json(path)
    row = record["runtimes"]["deepsparse"]
    row |= {
        "precision": "float32",
        "prefill_speedup_over_best_dense": 0.8,
        "prefill_speedup_over_best_dense_interval": {"low": 0.78, "high": 0.83},
        "prefill_best_dense": "onnxruntime",
        "decode_speedup_over_best_dense": 1.3,
        "decode_speedup_over_best_dense_interval": {"low": 0.9, "high": 1.9},
        "decode_best_dense": "sparse, dense_kernel",
    }
    write_json(path, record)
    write_report(artifacts, tmp_path / "report", METHODS, RATIOS)
    line = (
        "| sparsegpt 0.5 | DeepSparse | float32 | slower ×0.80 (0.78–0.83), against dense ONNX "
        "Runtime | no difference measured (0.90–1.90, wide), against our dense kernel |"
    )
    assert line in (tmp_path / "report_timings" / "table.md").read_text(encoding="utf-8")
    page = shown_times(tmp_path / "report")
    assert "slower ×0.80 (0.78–0.83), against dense ONNX Runtime" in page
