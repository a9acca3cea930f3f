"""A runtime of another package, that of docs/architecture.md: it runs, is tabled and is named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from efficientllava.errors import UserError
from efficientllava.export.assistant import Assistant, answer
from efficientllava.export.decoding import Prompt
from efficientllava.export.model import export_model
from efficientllava.files import write_json
from efficientllava.parsing import parse_parameters
from efficientllava.registry import RUNTIMES
from efficientllava.report.page import write_report
from efficientllava.report.parameters_page import parameters_page
from efficientllava.report.speedup import export_metrics
from efficientllava.report.terminal import rich_table
from tests.export.conftest import PARAMETERS
from tests.report.conftest import shown_times

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of packages, as an installer leaves it: a module and its entry point."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    [code] = [block for block in blocks if "(Runtime)" in block]
    entry = re.search(r'\[project\.entry-points\."(\S+)"\]\n(abacus) = "(\S+)"', PAGE)
    assert entry is not None
    group, name, target = entry.groups()
    folder = tmp_path / "site"
    information = folder / "abacus-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").write_text("")
    (folder / "my_package" / "runtime.py").write_text(code, encoding="utf-8")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: abacus\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(site))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


@pytest.mark.usefixtures("installed")
def test_it_runs_and_is_tabled(
    checkpoints: dict[str, Path], prompts: list[Prompt], tmp_path: Path
) -> None:
    assert list(RUNTIMES) == ["sparse", "deepsparse", "onnxruntime", "openvino", "abacus"]
    values = {"export": {"runtimes": ["onnxruntime", "abacus"]}}
    runtimes = parse_parameters(values).export.runtimes
    artifacts = tmp_path / "artifacts"
    folder = artifacts / "export" / "sparsegpt-0.5"
    quick = PARAMETERS.model_copy(update={"runtimes": runtimes, "repetitions": 3})
    arguments = (checkpoints["pruned"], checkpoints["dense"], prompts[:1], folder, quick)
    record = export_model(*arguments)
    row = record["runtimes"]["abacus"]
    assert row["available"] and row["pruned"]["decode_ms"] > 0 and record["tokens_match"]
    assert 0 < max(record["parity"]["abacus"].values()) < 5e-5
    assistant = Assistant(folder, "abacus")
    assert answer(folder, prompts[0].image, prompts[0].text, "abacus") == assistant.text(
        record["answers"][0]["pytorch"]
    )

    write_json(artifacts / "pruned_metrics" / "sparsegpt-0.5.json", {"achieved_sparsity": 0.5})
    write_json(artifacts / "export_metrics" / "sparsegpt-0.5.json", export_metrics(record))
    rows = write_report(artifacts, tmp_path / "report", ["sparsegpt"], [0.5])
    headings = (
        (tmp_path / "report_timings" / "table.md").read_text(encoding="utf-8").splitlines()[0]
    )
    assert headings.endswith("| ONNX Runtime decode ms | Abacus prefill ms | Abacus decode ms |")
    page = shown_times(tmp_path / "report")
    assert "<th>Abacus decode ms</th>" in page
    assert [column.header for column in rich_table(rows).columns][-1].startswith("Abacus\n")
    assert "`onnxruntime`, `openvino`, `abacus`" in parameters_page()


@pytest.mark.usefixtures("installed")
def test_a_misspelt_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError) as error:
        parse_parameters({"export": {"runtimes": ["onnxruntime", "abacuss"]}})
    assert str(error.value).startswith(
        "params.yaml: export.runtimes.1: unknown runtime 'abacuss' (did you mean abacus?)"
    )


def test_without_its_package_it_is_unknown() -> None:
    with pytest.raises(UserError, match=r"unknown runtime 'abacus' \(known: sparse, deepsparse"):
        parse_parameters({"export": {"runtimes": ["abacus"]}})


@pytest.mark.parametrize("name, status", [("abacus", 0), ("abacuss", 2)])
def test_the_command_knows_it(site: Path, tmp_path: Path, name: str, status: int) -> None:
    text = f"methods: [magnitude]\nratios: [0.5]\nexport: {{runtimes: [{name}]}}\n"
    (tmp_path / "params.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "tasks.parameters"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    assert ("did you mean abacus?" in done.stderr) == (status == 2)
    assert "Traceback" not in done.stderr
