"""The published figures from the official prediction files, which are not ours to republish."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from efficientllava.benchmarks.scienceqa.prompts import cqm_a
from efficientllava.benchmarks.scienceqa.reading import read_problems
from efficientllava.benchmarks.scoring import score_files
from efficientllava.benchmarks.vizwiz.reading import question_text, read_photos
from efficientllava.registry import BENCHMARKS

ROOT = os.environ.get("EFFICIENTLLAVA_DATA")
DATA = Path(ROOT or ".")
pytestmark = pytest.mark.skipif(
    ROOT is None, reason="EFFICIENTLLAVA_DATA names no folder with the benchmarks' files"
)


def score(name: str, file: str, folder: str) -> dict:
    return score_files(BENCHMARKS[name], [DATA / folder / file], DATA / folder).scores


def test_scienceqa_of_llava_sqa() -> None:
    file = "results/test_sqa_llava_lcs_558k_sqa_12e_vicuna_v1_3_13b.json"
    scores = score("scienceqa", file, "scienceqa")
    assert (scores["correct"], scores["n"]) == (3863, 4241)
    assert f"{100 * scores['accuracy']:.2f}" == "91.09"
    assert f"{100 * scores['breakdowns']['IMG']['accuracy']:.2f}" == "88.30"
    counts = {name: part["n"] for name, part in scores["breakdowns"].items()}
    assert counts == {"TXT": 2046, "IMG": 2017, "NO": 1435}


def test_scienceqa_of_gpt3_without_guessing() -> None:
    file = "results/gpt3_final_test_QCM-ALE_2_seed_3.json"
    scores = score("scienceqa", file, "scienceqa")
    assert scores["correct"] == 3061 and f"{100 * scores['accuracy']:.2f}" == "72.18"
    assert scores["unparsed"] == 249
    assert any("75.17" in note for note in scores["notes"])


def test_scienceqa_layout_equals_the_question_file() -> None:
    asked = json.loads((DATA / "scienceqa/llava_test_CQM-A.json").read_text())
    texts = {each["id"]: each["conversations"][0]["value"] for each in asked}
    full = [each for each in read_problems(DATA / "scienceqa") if each.question is not None]
    assert len(full) >= 50
    for each in full:
        assert each.question is not None and cqm_a(each.question) == texts[each.id]


def test_mmvet() -> None:
    scores = score("mmvet", "results/llava-v1.5-7b_gpt-4-grade-1runs.json", "mmvet")
    official = scores["official"]
    expected = {"rec": 37.0, "ocr": 21.0, "know": 17.6, "gen": 20.4, "spat": 24.9, "math": 7.7}
    assert {name: official[name] for name in expected} == expected
    assert official["total"] == 31.2 and official["runs"] == [31.2]
    assert sum(name.startswith("only_") for name in official) == 16
    assert scores["judge"] == {"models": ["gpt-4"]}


def test_llava_bench() -> None:
    scores = score("llava_bench", "reviews/llava-v1.5-7b-eval1.jsonl", "llavabench")
    expected = {"all": 64.7, "complex": 77.6, "conv": 59.3, "detail": 47.7}
    assert {name: scores["official"][name] for name in expected} == expected


def test_vizwiz_constant(tmp_path: Path) -> None:
    photos = read_photos(DATA / "vizwiz")
    file = tmp_path / "constant.json"
    file.write_text(json.dumps([{"image": p.name, "answer": "unanswerable"} for p in photos]))
    scores = score_files(BENCHMARKS["vizwiz"], [file], DATA / "vizwiz").scores
    assert f"{100 * scores['accuracy']:.4f}" == "33.1021"


def test_vizwiz_prompts_of_the_test_split() -> None:
    rows = [json.loads(line) for line in open(DATA / "vizwiz/llava_test.jsonl")]
    annotated = json.loads((DATA / "vizwiz/test.json").read_text())
    assert len(rows) == 8000
    for row, record in zip(rows, annotated, strict=True):
        assert question_text(record["question"]) == row["text"]
    assert [p.text for p in read_photos(DATA / "vizwiz", "test")] == [r["text"] for r in rows]
