"""Calibration data from every kind of source, and every way in which one can be unusable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from efficientllava.calibration.data import calibration_data
from efficientllava.data.proxy import IGNORED, ProxyData, build_pairs, load_proxy, save_proxy
from efficientllava.data.questions import read_questions
from efficientllava.errors import UserError
from efficientllava.models.checkpoint import save_checkpoint
from efficientllava.models.loading import VisionLanguageModel, load
from tests.models.families import TINY

WORDS = " ".join(f"w{number % 50}" for number in range(600))
SMALL: dict[str, Any] = {"segments": 3, "length": 8, "count": 4}


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl", "llama"])
def any_vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    save_checkpoint(*TINY[request.param].build(), folder)
    return load(folder)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> VisionLanguageModel:
    folder = tmp_path_factory.mktemp("llava") / "model"
    save_checkpoint(*TINY["llava"].build(), folder)
    return load(folder)


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (16 + number, 20, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    """Five pairs: images as PIL and as paths."""
    made: list[dict[str, Any]] = []
    for number in range(5):
        image: Any = picture(number)
        if number % 2:
            image.save(tmp_path / f"{number}.png")
            image = str(tmp_path / f"{number}.png")
        made.append({"image": image, "question": f"w{number}", "answer": f"w{number + 10}"})
    return made


def answers(vlm: VisionLanguageModel, data: ProxyData) -> set[str]:
    assert data.pairs is not None
    decode = vlm.processor.tokenizer.decode
    return {decode(row[row != IGNORED]) for row in data.pairs.labels}


def same(one: ProxyData, other: ProxyData) -> bool:
    assert one.pairs is not None and other.pairs is not None
    left, right = one.pairs.inputs, other.pairs.inputs
    equal = left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
    return equal and torch.equal(one.segments, other.segments)


def test_packaged_data(any_vlm: VisionLanguageModel) -> None:
    """With neither text nor pairs: the same each time, and described as what it is."""
    data, again = calibration_data(any_vlm, **SMALL), calibration_data(any_vlm, **SMALL)
    assert data.segments.shape == (3, 8) and data.digest == again.digest != ""
    assert "3 segments of 8 tokens from packaged text" in data.description
    if not any_vlm.family.takes_images:
        assert data.pairs is None
        assert data.description.endswith("no pairs: the model takes no images")
        return
    assert data.pairs is not None and len(data.pairs) == 4 and same(data, again)
    told = "4 image-text pairs from packaged pictures (drawn scenes and maps)"
    assert data.description.endswith(told)
    other = calibration_data(any_vlm, **SMALL, seed=1)
    assert other.digest != data.digest and not same(other, data)
    assert (data.pairs.labels != IGNORED).any(dim=1).all(), "every pair has an answer"


def test_count_of_pairs(vlm: VisionLanguageModel, rows: list[dict[str, Any]]) -> None:
    none = calibration_data(vlm, segments=2, length=8, count=0)
    assert none.pairs is None and none.description.endswith("no pairs, as asked")
    data = calibration_data(vlm, [WORDS], rows, segments=2, length=8)
    assert data.pairs is not None and len(data.pairs) == len(rows), "all, where there are few"
    with pytest.raises(UserError, match="too few image-text pairs: 6 are asked for, there are 5"):
        calibration_data(vlm, [WORDS], rows, segments=2, length=8, count=6)
    with pytest.raises(UserError, match="too few image-text pairs: there are none"):
        calibration_data(vlm, [WORDS], [], segments=2, length=8)


def test_sources_of_text_agree(vlm: VisionLanguageModel, tmp_path: Path) -> None:
    """A list and a dataset of the same texts; a folder as the pipeline reads it."""
    texts = [WORDS, "", f"  {WORDS}\n"]
    listed = calibration_data(vlm, texts, **SMALL)
    for column in ("text", "sentence"):
        table = datasets.Dataset.from_dict({"id": [1, 2, 3], column: texts})
        found = calibration_data(vlm, table, **SMALL)
        assert found.digest == listed.digest
        assert f"column `{column}` of a dataset of 3 rows" in found.description
    (tmp_path / "ptb.train.txt").write_text(WORDS)
    inside = calibration_data(vlm, tmp_path, **SMALL)
    assert torch.equal(inside.segments, calibration_data(vlm, [WORDS], **SMALL).segments)
    file = calibration_data(vlm, str(tmp_path / "ptb.train.txt"), **SMALL)
    assert str(tmp_path / "ptb.train.txt") in file.description


def test_sources_of_pairs_agree(vlm: VisionLanguageModel, rows: list[dict[str, Any]]) -> None:
    """A list, a dataset with decoded images, and one with images that are left as bytes."""
    listed = calibration_data(vlm, [WORDS], rows, **SMALL)
    assert answers(vlm, listed) <= {f"w{number}" for number in range(10, 15)}
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    assert same(calibration_data(vlm, [WORDS], table, **SMALL), listed)
    raw = table.cast_column("image", datasets.Image(decode=False))
    assert same(calibration_data(vlm, [WORDS], raw, **SMALL), listed)


def science_qa(folder: Path) -> Path:
    """Three questions with a picture and one without, in the official layout."""
    problems = {}
    for number in range(4):
        place = folder / "images" / "train" / str(number)
        place.mkdir(parents=True)
        picture(number).save(place / "image.png")
        problems[str(number)] = {
            "question": "w1", "choices": ["w2", "w3"], "answer": number % 2, "hint": "",
            "image": None if number == 3 else "image.png", "subject": "natural science",
            "grade": "grade1",
        }  # fmt: skip
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"train": list(problems)}))
    return folder


def test_science_qa_as_the_pipeline_reads_it(vlm: VisionLanguageModel, tmp_path: Path) -> None:
    folder = science_qa(tmp_path)
    data = calibration_data(vlm, [WORDS], folder, segments=2, length=8, seed=3)
    expected = build_pairs(read_questions(folder, "train"), vlm.processor, 3, 3)
    assert data.pairs is not None and torch.equal(data.pairs.labels, expected.labels)
    assert data.description.endswith(f"3 image-text pairs from {folder}")


def test_data_goes_through_files(any_vlm: VisionLanguageModel, tmp_path: Path) -> None:
    data = calibration_data(any_vlm, **SMALL)
    save_proxy(tmp_path, data, {"description": data.description})
    stored = load_proxy(tmp_path)
    assert torch.equal(stored.segments, data.segments)
    assert data.pairs is None or same(stored, data)


def changed(rows: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in {**row, **values}.items() if v is not ...} for row in rows]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": "nowhere.png"}, r"pairs\[\d\], nowhere.png: image file missing"),
        ({"image": 7}, r"pairs\[\d\]: image is int, neither a path nor a PIL image"),
        ({"image": b"no image"}, r"pairs\[\d\]: broken image file"),
        ({"image": None}, r"pairs\[\d\]: image is NoneType"),
        ({"question": " "}, r"pairs\[\d\]: question is empty or no text"),
        ({"answer": 1}, r"pairs\[\d\]: answer is empty or no text"),
        ({"answer": ..., "label": "w1"}, r"lacks answer \(found: image, question, label\)"),
    ],
)
def test_bad_pairs_are_named(
    values: dict[str, Any], message: str, vlm: VisionLanguageModel, rows: list[dict[str, Any]]
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        calibration_data(vlm, [WORDS], changed(rows, **values), **SMALL)
    assert "calibration_data, pairs" in caught.value.where


def test_bad_sources_are_named(
    vlm: VisionLanguageModel, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    table = datasets.Dataset.from_dict({"words": ["w1"]})
    for source, message in (
        ("/nowhere/ptb.train.txt", "no such text file or folder"),
        (WORDS, "no such text file or folder"),
        (["w1", 2], "item 1 is int, no string"),
        (7, "int is no text"),
        (table, r"no column `text` or `sentence` \(found: words\)"),
        (datasets.DatasetDict(train=table), "DatasetDict is several splits"),
        (["w1 w2 w3"], "the text is too short: it has 3 tokens, a segment needs 8"),
        ([], "the text is empty"),
    ):
        with pytest.raises(UserError, match=message):
            calibration_data(vlm, source, **SMALL)
    for source, message in (
        (tmp_path / "nowhere", "no such folder of questions"),
        (tmp_path, r"problems\.json: no such file"),
        (table, r"lacks image, question, answer \(found: words\)"),
        (table.to_iterable_dataset(), "is a stream without a length"),
        (7, "int holds no pairs"),
        (["w1"], "str is no mapping of image, question, answer"),
    ):
        with pytest.raises(UserError, match=message):
            calibration_data(vlm, [WORDS], source, segments=3, length=8)
    for sizes, message in (
        ({"segments": 0}, "segments is 0, at least 1 is needed"),
        ({"length": 1}, "length is 1, at least 2 is needed"),
        ({"count": -1}, "count is -1"),
        ({"segments": "a"}, "segments is str, no whole number"),
        ({"length": 2.5}, "length is float, no whole number"),
    ):
        with pytest.raises(UserError, match=message):
            calibration_data(vlm, [WORDS], rows, **{**SMALL, **sizes})


def test_pairs_for_a_text_only_model_are_refused(
    any_vlm: VisionLanguageModel, rows: list[dict[str, Any]]
) -> None:
    if not any_vlm.family.takes_images:
        with pytest.raises(UserError, match="the model takes no images"):
            calibration_data(any_vlm, [WORDS], rows, **SMALL)
