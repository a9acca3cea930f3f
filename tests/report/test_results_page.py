"""The page of results: made of a workspace's records, and of nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from efficientllava.files import read_json, write_json
from efficientllava.parameters import Parameters
from efficientllava.report.results_page import main, write_results_page


@pytest.fixture
def workspace(artifacts: Path) -> Path:
    """The records of conftest.py, with the parameters of a run on the real model."""
    parameters = Parameters(
        model={"source": "smollm2"},
        proxy={"text": "/data/ptb", "segments": 16, "pairs": 32},
        methods=["sparsegpt", "efficientllava"],
        ratios=[0.5, 0.7],
    )
    write_json(artifacts / "parameters.json", parameters.model_dump(mode="json"))
    scores = artifacts / "evaluation" / "dense" / "scores.json"
    record = read_json(scores) | {"perplexity": 90.017, "perplexity_error": 1.26}
    write_json(scores, record)
    return artifacts.parent


def test_the_page_holds_the_records_and_says_of_what(workspace: Path, tmp_path: Path) -> None:
    page = tmp_path / "out" / "results.md"
    write_results_page(workspace, page, "Commit abc.")
    text = page.read_text("utf-8")
    lead = text.splitlines()[2]
    assert "SmolLM2-135M-Instruct" in lead and "16 x 256 tokens of ptb" in lead
    assert "32 image-text pairs" in lead and "3000 questions" in lead and "Commit abc." in lead
    (dense,) = re.findall(r"^\| dense .*$", text, re.MULTILINE)[:1]
    assert "90.02 ± 1.26" in dense and "90.0 ± 0.6" in dense
    assert "![Share of zeros of every matrix by efficientllava" in text
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "proxy loss" in text and "| – |" in text  # a column goes only where it is empty


def test_a_folder_without_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path / "page.md")]) == 2
    assert "run `make real`" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()
