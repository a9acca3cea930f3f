"""VizWiz's records, submissions and the predictions that are refused; images of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from efficientllava.benchmarks.base import full_prompt
from efficientllava.benchmarks.records import Record
from efficientllava.benchmarks.scoring import score_files
from efficientllava.benchmarks.vizwiz.reading import read_photos
from efficientllava.benchmarks.vizwiz.scores import submission
from efficientllava.errors import UserError
from efficientllava.registry import BENCHMARKS

VizWiz = BENCHMARKS["vizwiz"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def entry(number: int, *answers: str) -> dict[str, Any]:
        return {
            "image": f"VizWiz_val_{number}.jpg",
            "question": "What Is THIS? Thanks",
            "answers": [{"answer": each, "answer_confidence": "yes"} for each in answers],
            "answer_type": "other",
        }

    values = [entry(7, *["A dog."] * 3, *"bcdefgh"), entry(9, *["unanswerable"] * 10)]
    (tmp_path / "val.json").write_text(json.dumps(values))
    (tmp_path / "test.json").write_text(
        json.dumps([{"image": "VizWiz_test_0.jpg", "question": "what?"}])
    )
    return tmp_path


def lines(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompt_to_the_character(folder: Path) -> None:
    prompt = full_prompt(VizWiz, read_photos(folder)[0])
    assert prompt == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: <image>\n"
        "What is this? thanks\nWhen the provided information is insufficient, respond with "
        "'Unanswerable'.\nAnswer the question using a single word or phrase. ASSISTANT:"
    )
    odd = Record("1", " odd  text ", b"")
    asked = full_prompt(BENCHMARKS["mmvet"], odd)
    assert asked.endswith("USER: <image>\n odd  text  ASSISTANT:")


def test_scores_by_number_or_by_image(folder: Path) -> None:
    numbered = lines(
        folder, {"question_id": 0, "text": "The Dog"}, {"question_id": 1, "text": "no"}
    )
    scores = score_files(VizWiz, [numbered], folder).scores
    assert scores["accuracy"] == pytest.approx(0.45)
    assert scores["standard_error"] == pytest.approx(0.45)  # of 0.9 and 0
    assert scores["breakdowns"]["other"]["n"] == 2
    upload = folder / "upload.json"
    photos = read_photos(folder)
    upload.write_text(json.dumps(submission(photos, {"0": "The Dog", "1": "no"})))
    assert json.loads(upload.read_text())[0] == {"image": "VizWiz_val_7.jpg", "answer": "dog"}
    assert score_files(VizWiz, [upload], folder).scores == scores


@pytest.mark.parametrize(
    "rows, told",
    [
        ([{"question_id": 0, "text": "x"}], "1 questions without an answer: 1"),
        ([{"question_id": n, "text": "x"} for n in (0, 1, 0)], "question 0 is answered twice"),
        ([{"question_id": n, "text": "x"} for n in (0, 1, 5)], "does not have: 5"),
    ],
)
def test_predictions_that_are_refused(folder: Path, rows: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(UserError, match=told):
        score_files(VizWiz, [lines(folder, *rows)], folder)


def test_hidden_answers_are_told(folder: Path) -> None:
    file = lines(folder, {"question_id": 0, "text": "x"})
    with pytest.raises(UserError, match="not public"):
        score_files(VizWiz, [file], folder, "test")


def test_nine_answers_are_refused(folder: Path) -> None:
    values = json.loads((folder / "val.json").read_text())
    values[1]["answers"].pop()
    (folder / "val.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="entry 2: answers must be a list of 10"):
        read_photos(folder)


@pytest.mark.parametrize("mode", ["P", "LA", "L", "RGBA", "1", "CMYK"])
def test_images_of_every_mode(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    Image.new(mode, (1, 1)).save(file)
    opened = Record("1", "", file).open_image()
    assert opened is not None and (opened.mode, opened.size) == ("RGB", (1, 1))
    same = Record("1", "", file.read_bytes()).open_image()
    assert same is not None and same.tobytes() == opened.tobytes()


def test_image_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="too large"):
        Record("1", "", tmp_path / "x.png").open_image()
