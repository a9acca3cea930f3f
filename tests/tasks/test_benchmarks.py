"""The evaluate stage on the benchmarks of the catalogue: their scores and their errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from efficientllava.benchmarks.scoring import score_files
from efficientllava.data.proxy import load_proxy
from efficientllava.files import DIGESTS, read_json
from efficientllava.registry import BENCHMARKS
from efficientllava.report.comparison import _scores
from tests.tasks.conftest import Here, Workspace, unpack_images
from tests.tasks.test_bad_data import assert_told

DENSE = ("tasks.evaluate", "--method", "dense", "--ratio", "0")


def evaluation(**changes: Any) -> dict[str, Any]:
    data = {"scienceqa": "./artifacts/questions"}
    settings = {"benchmark": "scienceqa", "data": data, "new_tokens": 2, "batch_size": 5}
    return {"evaluation": {**settings, **changes}}


def test_scienceqa_of_official_layout_end_to_end(ready: Workspace, here: Here) -> None:
    ready.set_parameters(evaluation(questions=None))
    assert here(ready.folder, *DENSE).status == 0
    folder = ready.folder / "artifacts" / "evaluation" / "dense"
    record = read_json(folder / "scores.json")
    assert record["n"] == 12 and record["text_loss"] > 0
    assert set(record["breakdowns"]) == {"NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12"}
    assert _scores(folder / "scores.json")["score"].n == 12
    answers = folder / "answers" / "scienceqa.jsonl"
    assert answers.read_text() == (folder / "predictions.jsonl").read_text()
    first = json.loads(answers.read_text().splitlines()[0])
    assert list(first) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    questions = ready.folder / "artifacts" / "questions"
    scores = score_files(BENCHMARKS["scienceqa"], [answers], questions).scores
    assert scores["correct"] == record["correct"]
    before = answers.read_bytes()
    work = next((ready.folder / ".work" / "answers").iterdir())
    kept = work.read_bytes()
    assert here(ready.folder, *DENSE).status == 0
    assert answers.read_bytes() == before and work.read_bytes() == kept


def test_further_benchmarks_stand_beside_the_demo_one(ready: Workspace, here: Here) -> None:
    ready.set_parameters(evaluation(benchmark="demo", benchmarks=["scienceqa"], questions=4))
    assert here(ready.folder, *DENSE).status == 0
    record = read_json(ready.folder / "artifacts" / "evaluation" / "dense" / "scores.json")
    assert record["answer_nll"] > 0 and record["n"] == 4
    assert record["benchmarks"]["scienceqa"]["n"] == 4


def test_no_key_is_told_before_any_answer(
    ready: Workspace, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    ready.set_parameters(evaluation(benchmark="mmvet", data={"mmvet": "./artifacts"}))
    assert_told(here(ready.folder, *DENSE), "no API key", "OPENAI_API_KEY")
    assert not (ready.folder / ".work" / "answers").exists()


def test_benchmark_without_data(ready: Workspace, here: Here) -> None:
    ready.set_parameters(evaluation(data={}))
    assert_told(here(ready.folder, *DENSE), "scienceqa", "needs its folder")
    ready.set_parameters(evaluation(data={"scienceqa": "./nowhere"}))
    assert_told(here(ready.folder, *DENSE), "no such folder", "./nowhere")


def test_score_command(ready: Workspace, tmp_path: Path) -> None:
    questions = ready.folder / "artifacts" / "questions"
    ids = read_json(questions / "pid_splits.json")["test"]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"question_id": i, "text": "A"}) + "\n" for i in ids))
    command = ("efficientllava.cli", "score", "scienceqa", str(file), "--data", str(questions))
    outcome = ready.run(*command, "--output", "scores.json")
    assert outcome.status == 0 and "NAT" in outcome.output and "all" in outcome.output
    assert read_json(ready.folder / "scores.json")["n"] == len(ids)
    file.write_text(file.read_text()[:-4])
    outcome = ready.run(*command)
    assert_told(outcome, f"line {len(ids)}", "cut off")


def black_sides(artifacts: Path) -> None:
    """Pictures are white with black sides, which a centre crop cuts off; CLIP's mean and std."""
    for file in unpack_images(artifacts).rglob("*.png"):
        picture = Image.new("RGB", (96, 32))
        picture.paste((255, 255, 255), (16, 0, 80, 32))
        picture.save(file)
    settings = artifacts / "model" / "processor_config.json"
    values = read_json(settings)
    values["image_processor"] |= {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
    settings.write_text(json.dumps(values))
    (artifacts / "model" / DIGESTS).unlink()  # of the settings before


@pytest.mark.parametrize("style", ["llava_v1_5", "llava_sqa"])
def test_proxy_s_images_are_prepared_as_the_style_says(
    ready: Workspace, here: Here, style: str
) -> None:
    black_sides(ready.folder / "artifacts")
    ready.set_parameters({"evaluation": {"style": style}})
    assert here(ready.folder, "tasks.proxy").status == 0
    pairs = load_proxy(ready.folder / "artifacts" / "proxy").pairs
    assert pairs is not None
    only_white = bool((pairs.inputs["pixel_values"] > 1).all())
    assert only_white == (style == "llava_sqa")


def test_answers_are_given_anew_when_images_are_cropped(ready: Workspace, here: Here) -> None:
    """A changed style leaves VizWiz's prompts as they were, but not the images."""
    black_sides(ready.folder / "artifacts")
    picture = next((ready.folder / "artifacts" / "questions").rglob("*.png"))
    data = ready.folder / "vizwiz"
    (data / "val").mkdir(parents=True)
    (data / "val" / "0.png").write_bytes(picture.read_bytes())
    given = [{"answer": "white", "answer_confidence": "yes"}] * 10
    row = {"image": "0.png", "question": "What colour?", "answers": given}
    rest = {"answer_type": "other", "answerable": 1}
    (data / "val.json").write_text(json.dumps([{**row, **rest}]))
    asked = {"benchmark": "vizwiz", "data": {"vizwiz": "./vizwiz"}}
    kept = []
    for style in ("llava_v1_5", "llava_sqa"):
        ready.set_parameters(evaluation(**asked, style=style, questions=1))
        assert here(ready.folder, *DENSE).status == 0
        [work] = (ready.folder / ".work" / "answers").iterdir()
        kept.append(len(work.read_text().splitlines()))
    assert kept == [1, 2]


def test_export_prepares_images_as_the_style_says(
    ready: Workspace, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(
        "efficientllava.export.model.export_model",
        lambda *arguments: given.extend(arguments) or {"runtimes": {}},
    )
    monkeypatch.setattr("efficientllava.report.speedup.export_metrics", lambda record: {})
    ready.set_parameters({"evaluation": {"style": "llava_sqa"}})
    artifacts = ready.folder / "artifacts"
    shutil.copytree(artifacts / "model", artifacts / "pruned" / "magnitude-0.5")
    assert here(ready.folder, "tasks.export", "--method", "magnitude", "--ratio", "0.5").status == 0
    assert given[-1] == "llava_sqa"


def test_questions_without_an_image_are_told_before_work(ready: Workspace, here: Here) -> None:
    """A model that needs images stands in params.yaml: the first stage says it."""
    given = ready.folder / "given"
    given.mkdir()
    (given / "config.json").write_text('{"model_type": "paligemma"}')
    ready.set_parameters({"model": {"source": "./given"}, **evaluation()})
    outcome = here(ready.folder, "tasks.model")
    assert_told(outcome, "questions have no image (first: ", "scienceqa_img")
    data = {"scienceqa_img": "./artifacts/questions"}
    changes = evaluation(benchmark="scienceqa_img", data=data)
    ready.set_parameters({"model": {"source": "./given"}, **changes})
    assert "have no image" not in here(ready.folder, "tasks.model").error


def test_a_chat_template_wraps_every_question(ready: Workspace, here: Here) -> None:
    """One of the checkpoint's own by name, for proxy pairs and for answers; an unknown one."""
    model = ready.folder / "artifacts" / "model"
    (model / "additional_chat_templates").mkdir()
    template = (
        "{% for part in messages[0].content %}{% if part.type == 'image' %}<image>\n"
        "{% else %}Question: {{ part.text }}{% endif %}{% endfor %}"
    )
    (model / "additional_chat_templates" / "brief.jinja").write_text(template)
    ready.set_parameters({"proxy": {"pairs": 4}})
    assert here(ready.folder, "tasks.proxy").status == 0
    before = load_proxy(ready.folder / "artifacts" / "proxy").pairs
    changes = evaluation(benchmark="demo", chat_template="brief", questions=4)
    ready.set_parameters({"proxy": {"pairs": 4}, **changes})
    assert here(ready.folder, "tasks.proxy").status == 0
    after = load_proxy(ready.folder / "artifacts" / "proxy").pairs
    assert before is not None and after is not None
    assert after.inputs["input_ids"].shape[1] > before.inputs["input_ids"].shape[1]
    assert here(ready.folder, *DENSE).status == 0
    ready.set_parameters(evaluation(chat_template="long"))
    assert_told(here(ready.folder, *DENSE), "no chat template 'long'", "brief")
