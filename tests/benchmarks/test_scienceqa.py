"""Extraction, prompts and scores of ScienceQA on records written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from efficientllava.benchmarks.base import full_prompt, read_records
from efficientllava.benchmarks.predictions import read_predictions
from efficientllava.benchmarks.scienceqa.prompts import qcm_lea
from efficientllava.benchmarks.scienceqa.reading import read_problems
from efficientllava.benchmarks.scienceqa.scores import chosen_index, stated_letter
from efficientllava.benchmarks.scoring import score_files
from efficientllava.cli import commands
from efficientllava.data.questions import parse_question
from efficientllava.errors import UserError
from efficientllava.registry import BENCHMARKS

ScienceQA = BENCHMARKS["scienceqa"]


def record(**changes: Any) -> dict[str, Any]:
    return {
        "question": "Which is  round?",
        "choices": ["ball", "box"],
        "answer": 0,
        "hint": "",
        "image": None,
        "grade": "grade2",
        "subject": "natural science",
        "lecture": "Look.",
        "solution": "A ball rolls.",
        "split": "test",
        **changes,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    problems = {
        "1": record(),
        "2": record(hint="See it. ", image="image.png", subject="social science"),
        "3": record(grade="grade9", answer=1, subject="language science", hint="Read."),
        "4": record(split="val"),
    }
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    splits = {"test": ["1", "2", "3"], "val": ["4"]}
    (tmp_path / "pid_splits.json").write_text(json.dumps(splits))
    return tmp_path


def test_predictions_of_the_demo_questions(folder: Path) -> None:
    """As the stage `evaluate` writes them: the index of the likeliest choice."""
    rows = [
        {"answer": 0, "answer_nll": 0.5, "id": name, "predicted": predicted}
        for name, predicted in (("1", 0), ("2", 1), ("3", 1))
    ]
    file = folder / "predictions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = score_files(ScienceQA, [file], folder).scores
    assert scores["correct"] == 2 and scores["n"] == 3
    file.write_text(json.dumps(rows[0] | {"predicted": "A"}))
    with pytest.raises(UserError, match=r"line 1: predicted must be the index of a choice"):
        read_predictions(file)
    file.write_text('{"text": "A"}')
    with pytest.raises(UserError, match=r"lacks question_id or image\n  -> see the formats"):
        read_predictions(file)


def test_the_command_looks_at_its_outputs_first(folder: Path) -> None:
    run = ["score", "scienceqa", str(folder / "unread.json"), "--data", str(folder)]
    for option, place, problem in (
        ("--output", "/proc/a/b.json", "cannot be written"),
        ("--output", str(folder), "is a folder"),
        ("--judgements", str(folder / "problems.json" / "a"), "cannot be written"),
    ):
        told = CliRunner().invoke(commands, [*run, option, place]).exception
        assert isinstance(told, UserError), told
        assert f"{option} {place}: {problem}" in str(told) and "-> name a" in str(told)
    assert CliRunner().invoke(commands, [*run, "--timeout", "nan"]).exit_code == 2


@pytest.mark.parametrize(
    "text, letter",
    [
        ("A", "A"),
        ("E", "E"),
        ("F", "FAILED"),
        ("a", "FAILED"),
        (" A", "FAILED"),
        ("A.", "FAILED"),
        ("A. ", "A"),
        ("B. box", "B"),
        ("F. box", "FAILED"),
        ("B.box", "FAILED"),
        ("", "FAILED"),
        ("The answer is B.", "B"),
        ("The answer is B", "FAILED"),
        ("The answer is B\n", "FAILED"),
        ("The answer is Box", "B"),
        ("the answer is B.", "FAILED"),
        ("The answer is A. The answer is A.", "FAILED"),
        ("C. The answer is A.", "C"),
        ("The answer is Z.", "Z"),
        ("Assistant: LECTURE: x\nSOLUTION: y\n The answer is B.", "B"),
    ],
)
def test_letter(text: str, letter: str) -> None:
    assert stated_letter(text) == letter


def test_letter_beyond_the_choices_is_wrong() -> None:
    assert chosen_index("C", 2) == -1
    assert chosen_index("C", 3) == 2
    assert chosen_index("The answer is Z.", 5) == -1


def test_full_prompts_to_the_character(folder: Path) -> None:
    one, two, _ = read_records(ScienceQA, folder)
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. "
    )
    last = "\nAnswer with the option's letter from the given choices directly. ASSISTANT:"
    assert full_prompt(ScienceQA, one) == (f"{system}USER: Which is round?\nA. ball\nB. box{last}")
    assert full_prompt(ScienceQA, two) == (
        f"{system}USER: <image>\nContext: See it. \nWhich is round?\nA. ball\nB. box{last}"
    )
    sqa = [
        full_prompt(ScienceQA, each, "llava_sqa")
        for each in read_problems(folder, "test", "llava_sqa")
    ]
    human = system.replace("user", "human")
    assert sqa[0] == (
        f"{human}USER: Which is round?\nContext: N/A\nOptions: (A) ball (B) box ASSISTANT:"
    )
    assert sqa[1] == (
        f"{human}USER: <image>\nWhich is round?\nContext: See it.\nOptions: (A) ball (B) box"
        " ASSISTANT:"
    )


def test_layout_takes_out_every_leading_word() -> None:
    odd = record(question="Question: what?", hint="A Question: here", image="image.png")
    question = parse_question("1", odd, Path("."), "test", "here")
    assert qcm_lea(question) == "what?\nContext: A here\nOptions: (A) ball (B) box\n<image>"


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_missing_answers_count_as_wrong_and_are_told(folder: Path, tmp_path: Path) -> None:
    file = lines(
        tmp_path / "a.jsonl",
        {"question_id": "1", "text": "A"},
        {"question_id": "2", "text": "C"},
    )
    scores = score_files(ScienceQA, [file], folder).scores
    assert (scores["correct"], scores["n"], scores["missing"]) == (1, 3, 1)
    assert scores["accuracy"] == pytest.approx(1 / 3)
    counts = {name: (part["accuracy"], part["n"]) for name, part in scores["breakdowns"].items()}
    assert counts == {
        "NAT": (1.0, 1),
        "SOC": (0.0, 1),
        "LAN": (0.0, 1),
        "TXT": (0.0, 2),
        "IMG": (0.0, 1),
        "NO": (1.0, 1),
        "G1-6": (0.5, 2),
        "G7-12": (0.0, 1),
    }
    assert any("1 questions without an answer" in note and "3" in note for note in scores["notes"])


@pytest.mark.parametrize(
    "rows, told",
    [
        ([{"question_id": "1", "text": "A"}] * 2, "question 1 is answered twice"),
        ([{"question_id": "77", "text": "A"}], "77"),
        ([{"question_id": "1"}], "text"),
        ([{"text": "A"}], "question_id"),
    ],
)
def test_predictions_that_cannot_be_used(
    folder: Path, tmp_path: Path, rows: list[dict[str, Any]], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        score_files(ScienceQA, [lines(tmp_path / "a.jsonl", *rows)], folder)


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.jsonl", '{"question_id": "1", "text": "A"}\n{"question_id": "2", "text": "B"}\n'),
        ("one.json", '{"question_id": "1", "text": "A"}\n'),
        ("r.json", '{"results": {"1": 0, "2": 1}, "outputs": {"1": "A", "2": "B"}}'),
        ("v.json", '[{"image": "1", "answer": "ball"}]'),
        ("m.json", '{"v1_0": "a ball"}'),
        ("g.json", '{"v1_0": {"model": "m", "content": "a ball", "score": [1]}}'),
    ],
)
def test_predictions_that_begin_with_a_byte_order_mark(
    name: str, text: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(text)
    plain = read_predictions(file)
    file.write_text(text, encoding="utf-8-sig")
    assert read_predictions(file) == plain


def test_truncated_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"question_id": "1", "text": "A"}\n\n{"question_id": "2", "te')
    with pytest.raises(UserError, match="line 3"):
        read_predictions(file)


def test_result_file_must_be_whole(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps({"results": {"1": 0, "2": 5}}))
    with pytest.raises(UserError, match="1 questions without an answer: 3"):
        score_files(ScienceQA, [file], folder)
    file.write_text(json.dumps({"results": {"1": 0, "2": 5, "3": -1}}))
    assert score_files(ScienceQA, [file], folder).scores["correct"] == 1
    file.write_text('{"results": {"1": 0, "1": 1, "2": 5, "3": -1}}')
    with pytest.raises(UserError, match="'1' twice in one object"):
        score_files(ScienceQA, [file], folder)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"answer": 2}, "answer 2 is out of range"),
        ({"choices": []}, "choices"),
        ({"choices": list("abcdef")}, "at most 5"),
    ],
)
def test_records_that_cannot_be_used(folder: Path, change: dict[str, Any], told: str) -> None:
    (folder / "problems.json").write_text(json.dumps({"1": record(**change)}))
    (folder / "pid_splits.json").write_text(json.dumps({"test": ["1"]}))
    with pytest.raises(UserError, match=told) as raised:
        read_problems(folder)
    assert "question 1" in raised.value.where


def test_record_that_lacks_a_field(folder: Path) -> None:
    broken = record()
    del broken["choices"]
    (folder / "problems.json").write_text(json.dumps({"1": broken}))
    (folder / "pid_splits.json").write_text(json.dumps({"test": ["1"]}))
    with pytest.raises(UserError, match="lacks choices"):
        read_problems(folder)


def test_image_that_is_missing_or_broken(folder: Path) -> None:
    two = read_problems(folder)[1]
    with pytest.raises(UserError, match="image file of question 2 missing"):
        two.open_image()
    assert isinstance(two.image, Path)
    two.image.parent.mkdir(parents=True)
    two.image.write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match="broken image"):
        two.open_image()


def test_parquet_rows(folder: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [{**record(hint="x"), "image": None}, {**record(answer=1), "image": None}]
    (tmp_path / "hub").mkdir()
    Dataset.from_list(rows).to_parquet(str(tmp_path / "hub" / "test-00000-of-00001.parquet"))
    problems = read_problems(tmp_path / "hub")
    assert [(each.id, each.answer, each.has_hint) for each in problems] == [
        ("0", 0, True),
        ("1", 1, False),
    ]
    assert problems[0].text == "Context: x\nWhich is round?\nA. ball\nB. box"
