"""Reading questions in ScienceQA's official layout, and what is said about broken ones."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from PIL import Image

from efficientllava.data.prompts import answer_text, chat_prompt, join_answer, question_prompt
from efficientllava.data.questions import read_questions
from efficientllava.errors import UserError
from efficientllava.export.assistant import read_image

RECORD: dict[str, Any] = {
    "question": "What colour is the circle?",
    "choices": ["red", "blue"],
    "answer": 1,
    "hint": "Look.",
    "image": "image.png",
    "subject": "natural science",
    "grade": "grade2",
    "task": "closed choice",
    "topic": "pictures",
    "category": "Pictures",
    "skill": "colours",
    "lecture": "",
    "solution": "It is blue.",
    "split": "test",
}


def write(folder: Path, record: Any, image: bytes | None = None) -> Path:
    (folder / "problems.json").write_text(json.dumps({"7": record}))
    (folder / "pid_splits.json").write_text(json.dumps({"test": ["7"]}))
    place = folder / "images" / "test" / "7"
    place.mkdir(parents=True)
    if image is None:
        Image.new("L", (4, 3), 200).save(place / "image.png")
    else:
        (place / "image.png").write_bytes(image)
    return folder


def test_a_record_is_read(tmp_path: Path) -> None:
    (question,) = read_questions(write(tmp_path, RECORD), "test")
    assert question.choices == ("red", "blue") and question.answer == 1
    assert question.image == tmp_path / "images" / "test" / "7" / "image.png"
    image = question.open_image()
    assert image is not None and image.mode == "RGB" and image.size == (4, 3)
    assert question.grade_number == 2
    assert answer_text(question) == "blue"
    assert question_prompt(question) == (
        "<image>\nContext: Look. Options: red, blue. Question: What colour is the circle?"
    )


def packed(folder: Path) -> Path:
    """The folder's images as an archive in their place."""
    with ZipFile(folder / "images.zip", "w") as archive:
        for path in sorted((folder / "images").rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    shutil.rmtree(folder / "images")
    return folder


def test_images_may_lie_in_an_archive(tmp_path: Path) -> None:
    folder = write(tmp_path, RECORD)
    (loose,) = read_questions(folder, "test")
    expected = loose.open_image()
    (question,) = read_questions(packed(folder), "test")
    assert question.image == folder / "images.zip" / "images" / "test" / "7" / "image.png"
    image = question.open_image()
    assert image is not None and expected is not None
    assert image.tobytes() == expected.tobytes()
    # what `efficientllava ask` is given
    assert read_image(question.image).tobytes() == expected.tobytes()
    # another archive under the same name is another one
    with ZipFile(folder / "images.zip", "w") as archive:
        archive.writestr("images/test/7/image.png", b"no image")
    with pytest.raises(UserError, match=r"images\.zip/images/test/7/.*: broken image file"):
        question.open_image()


def test_a_folder_of_images_comes_before_an_archive(tmp_path: Path) -> None:
    folder = write(tmp_path, RECORD)
    with ZipFile(folder / "images.zip", "w"):
        pass
    (question,) = read_questions(folder, "test")
    assert question.image == folder / "images" / "test" / "7" / "image.png"


def test_an_archive_without_the_image_or_broken_is_told(tmp_path: Path) -> None:
    folder = packed(write(tmp_path, RECORD))
    with ZipFile(folder / "images.zip", "w") as archive:
        archive.writestr("images/test/8/image.png", b"")
    where = re.escape(str(folder / "images.zip" / "images" / "test" / "7" / "image.png"))
    with pytest.raises(UserError, match=f"{where}: image file missing"):
        read_questions(folder, "test")
    (folder / "images.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"broken image file \(in images.zip: "):
        read_questions(folder, "test")


def test_files_that_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As Windows programs save UTF-8."""
    plain = read_questions(write(tmp_path, RECORD), "test")
    for name in ("problems.json", "pid_splits.json"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_questions(tmp_path, "test") == plain


def test_a_question_without_picture_or_hint(tmp_path: Path) -> None:
    record = {**RECORD, "image": None, "hint": ""}
    (question,) = read_questions(write(tmp_path, record), "test")
    assert question.open_image() is None
    assert question_prompt(question) == "Options: red, blue. Question: What colour is the circle?"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": 2}, "answer 2 is out of range"),
        ({"answer": -1}, "answer -1 is out of range"),
        ({"answer": "1"}, "answer '1' is out of range"),
        ({"choices": ["red"]}, "at least two"),
        ({"choices": ["red", ""]}, "choice is empty"),
        ({"question": " "}, "question is empty"),
        ({"grade": "grade13"}, "grade 'grade13'"),
        ({"hint": 3}, "hint must be text"),
        ({"image": 5}, "image must be"),
        ({"image": "other.png"}, "other.png: image file missing"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match="question 7|other.png") as error:
        read_questions(write(tmp_path, {**RECORD, **change}), "test")
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["question", "choices", "answer", "hint", "image", "grade"])
def test_a_missing_field_is_named(tmp_path: Path, name: str) -> None:
    record = {key: value for key, value in RECORD.items() if key != name}
    with pytest.raises(UserError, match=f"question 7: lacks {name}"):
        read_questions(write(tmp_path, record), "test")


@pytest.mark.parametrize("size", [0, 20, 60])
def test_a_broken_image_is_named(tmp_path: Path, size: int) -> None:
    whole = tmp_path / "whole.png"
    Image.effect_noise((32, 32), 50).save(whole)
    folder = tmp_path / "questions"
    folder.mkdir()
    write(folder, RECORD, image=whole.read_bytes()[:size])
    with pytest.raises(UserError, match=r"test/7/image\.png: broken image file"):
        read_questions(folder, "test")


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_questions(tmp_path / "none", "test")
    with pytest.raises(UserError, match=r"problems\.json: no such file"):
        read_questions(tmp_path, "test")
    write(tmp_path, RECORD)
    with pytest.raises(UserError, match=r"pid_splits\.json: has no list of ids for split 'val'"):
        read_questions(tmp_path, "val")
    (tmp_path / "pid_splits.json").write_text('{"test": ["8"]}')
    with pytest.raises(UserError, match="question 8: no such question"):
        read_questions(tmp_path, "test")
    for content in (b"{", b'{"7": "\xff"}'):
        (tmp_path / "problems.json").write_bytes(content)
        with pytest.raises(UserError, match=r"problems\.json: not (UTF-8 text|valid JSON)"):
            read_questions(tmp_path, "test")


@pytest.mark.skipif("EFFICIENTLLAVA_DATA" not in os.environ, reason="needs EFFICIENTLLAVA_DATA")
def test_official_scienceqa_records(tmp_path: Path) -> None:
    data = Path(os.environ["EFFICIENTLLAVA_DATA"]) / "scienceqa"
    for name in ("problems", "pid_splits"):
        (tmp_path / f"{name}.json").symlink_to(data / f"{name}.150.json")
    (tmp_path / "images").symlink_to(data / "images")
    questions = read_questions(tmp_path, "test")
    assert len(questions) == 50
    assert questions[0].id == "4"
    assert sum(each.image is not None for each in questions) > 10


def test_an_image_larger_than_pillow_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(UserError, match="image too large"):
        read_questions(write(tmp_path, RECORD), "test")


class _Chat:
    """A processor with a chat template, as transformers' processors have one."""

    chat_template = "..."

    def __init__(self, end: str) -> None:
        self._end = end

    def apply_chat_template(self, turns: list, add_generation_prompt: bool, tokenize: bool) -> str:
        assert add_generation_prompt and not tokenize
        (turn,) = turns
        parts = ["<pic>" if part["type"] == "image" else part["text"] for part in turn["content"]]
        return f"[{turn['role']}]{'|'.join(parts)}[assistant]{self._end}"


def test_a_chat_template_of_the_processor_wraps_the_question(tmp_path: Path) -> None:
    (question,) = read_questions(write(tmp_path, RECORD), "test")
    plain = question_prompt(question).removeprefix("<image>\n")
    assert question_prompt(question, processor=_Chat("")) == f"[user]<pic>|{plain}[assistant]"
    assert chat_prompt(_Chat(""), "Why?", None) == "[user]Why?[assistant]"
    assert chat_prompt(object(), "Why?", "<i>") == "<i>\nWhy?"


def test_an_answer_follows_after_one_space_or_line() -> None:
    assert join_answer("ASSISTANT:", "red") == "ASSISTANT: red"
    assert join_answer("assistant\n", "red") == "assistant\nred"
