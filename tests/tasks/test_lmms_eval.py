"""lmms-eval as the engine: its evaluator on a task of local data; errors before any work.

`pytest -m "slow or not slow" tests/tasks/test_lmms_eval.py` with the package installed as
docs/evaluate.md says; without it only the message about that is tested.
"""

from __future__ import annotations

import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from efficientllava.benchmarks.engines.base import Measured, Subject
from efficientllava.errors import UserError
from efficientllava.files import read_json
from efficientllava.models.checkpoint import load_model, load_processor, save_checkpoint
from efficientllava.models.families import adapter_for
from efficientllava.parameters import EvaluationParameters
from efficientllava.progress import silent
from efficientllava.registry import ENGINES
from efficientllava.sparse.checkpoint import pack_checkpoint
from tests.export.conftest import tiny_model, tiny_processor
from tests.tasks.conftest import Here, Workspace
from tests.tasks.test_bad_data import assert_told

installed = pytest.mark.skipif(
    find_spec("lmms_eval") is None,
    reason="lmms-eval is not installed (docs/evaluate.md, lmms-eval)",
)
DENSE = ("tasks.evaluate", "--method", "dense", "--ratio", "0")
QUESTIONS, NEW = 10, 6
CHOICES_OF_ALL = ["w18", "w36", "w27 w6"]
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: {} ASSISTANT:"
)
SHAPES = """task: local_shapes
dataset_path: parquet
dataset_kwargs: {data_files: {test: questions.parquet}}
test_split: test
output_type: generate_until
doc_to_visual: image
doc_to_text: question
doc_to_target: answer
generation_kwargs: {max_new_tokens: 6, temperature: 0.7, do_sample: true, num_beams: 3}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
CHOICES = """task: local_choices
dataset_path: parquet
dataset_kwargs: {data_files: {test: questions.parquet}}
test_split: test
output_type: multiple_choice
doc_to_visual: image
doc_to_text: question
doc_to_target: label
doc_to_choice: choices
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
ROUNDS = "task: local_rounds\ndataset_path: parquet\noutput_type: generate_until_multi_round\n"


def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(3)
    return [
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8))
        for _ in range(QUESTIONS)
    ]


def texts() -> list[str]:
    return [f"w{n} w{2 * n + 1}" + " w7" * (n % 4) for n in range(QUESTIONS)]


@torch.no_grad()
def own_answers(model: Any, processor: Any) -> list[str]:
    """Each question alone, by the processor and `generate`: nothing of the engine."""
    answers = []
    for text, picture in zip(texts(), pictures(), strict=True):
        prompt = VICUNA.format(f"<image>\n{text}")
        inputs = processor(text=prompt, images=picture, return_tensors="pt")
        tokens = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=NEW)
        new = tokens[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.decode(new, skip_special_tokens=True).strip())
    return answers


@torch.no_grad()
def own_losses(model: Any, processor: Any, choices: list[str]) -> list[list[float]]:
    """The mean loss of each choice after each question, by the model's own `labels`."""
    losses = []
    for text, picture in zip(texts(), pictures(), strict=True):
        prompt = VICUNA.format(f"<image>\n{text}")
        row = []
        for choice in choices:
            inputs = processor(text=f"{prompt} {choice}", images=picture, return_tensors="pt")
            labels = torch.full_like(inputs["input_ids"], -100)
            count = len(choice.split())
            labels[0, -count:] = inputs["input_ids"][0, -count:]
            row.append(float(model(**inputs, labels=labels).loss))
        losses.append(row)
    return losses


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of which two fifths of the decoder are zeros, and the same packed."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = tiny_model()
    generator = torch.Generator().manual_seed(1)
    for matrix in adapter_for(model).matrices:
        matrix.weight.data.mul_(torch.rand(matrix.weight.shape, generator=generator) < 0.6)
    save_checkpoint(model, tiny_processor(), folder / "pruned")
    pack_checkpoint(folder / "pruned", folder / "packed")
    return {"pruned": folder / "pruned", "packed": folder / "packed"}


@pytest.fixture(scope="module")
def local_tasks(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Definitions of tasks and their data: of every second question the answer is the model's."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("tasks")
    model = load_model(checkpoints["pruned"])
    answers = own_answers(model, load_processor(checkpoints["pruned"]))
    assert len(set(answers)) > 3  # the pictures and texts matter
    columns = {
        "image": pictures(),
        "question": texts(),
        "answer": [answer if n % 2 else "nothing" for n, answer in enumerate(answers)],
        "choices": [CHOICES_OF_ALL] * QUESTIONS,
        "label": [n % 3 for n in range(QUESTIONS)],
    }
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    table.to_parquet(str(folder / "questions.parquet"))
    for name, text in (("shapes", SHAPES), ("choices", CHOICES), ("rounds", ROUNDS)):
        (folder / f"{name}.yaml").write_text(text)
    (folder / "all.yaml").write_text("group: local_all\ntask: [local_shapes, local_choices]\n")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """lmms-eval chooses the folder of its data once a process."""
    place = tmp_path_factory.getbasetemp() / "lmms_datasets"
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(place))


def measured(checkpoint: Path, folder: Path, work: Path, **changes: Any) -> Measured:
    settings = EvaluationParameters(
        engine="lmms_eval",
        lmms_folder=str(folder),
        **{"lmms_tasks": ("local_shapes", "local_choices"), "batch_size": 4, **changes},
    )
    subject = Subject(
        "pruned-0.75",
        load_model(checkpoint),
        load_processor(checkpoint),
        checkpoint,
        Path("none"),
        work,
        settings,
        silent,
    )
    engine = ENGINES["lmms_eval"]
    engine.check(settings)
    found: Measured = engine.measure(subject)
    return found


@installed
def test_scores_are_those_of_our_own_generation(
    checkpoints: dict[str, Path], local_tasks: Path, tmp_path: Path
) -> None:
    """The evaluator's score, its error and its answers, beside ones computed without it."""
    found = measured(checkpoints["pruned"], local_tasks, tmp_path)
    model, processor = load_model(checkpoints["pruned"]), load_processor(checkpoints["pruned"])
    answers = own_answers(model, processor)
    assert [line["text"] for line in found.answers["local_shapes"]] == answers
    right = [float(n % 2) for n in range(QUESTIONS)]
    exact = found.record["lmms_eval"]["local_shapes"]["exact_match"]
    error = stdev(right) / math.sqrt(QUESTIONS)
    assert exact["value"] == 0.5 and exact["n"] == QUESTIONS and exact["better"] == "higher"
    assert exact["standard_error"] == pytest.approx(error)
    assert (found.record["accuracy"], found.record["n"]) == (0.5, QUESTIONS)
    assert found.record["standard_error"] == pytest.approx(error)
    losses = own_losses(model, processor, CHOICES_OF_ALL)
    chosen = [int(np.argmin(row)) == n % 3 for n, row in enumerate(losses)]
    assert 0 < sum(chosen) < QUESTIONS
    acc = found.record["lmms_eval"]["local_choices"]["acc"]
    assert acc["value"] == pytest.approx(sum(chosen) / QUESTIONS)
    assert json.loads(found.lines[1]) == {
        "id": "local_shapes/1",
        "text": answers[1],
        "target": answers[1],
    }


@installed
def test_a_packed_checkpoint_gives_the_same_answers_and_a_killed_run_goes_on(
    checkpoints: dict[str, Path], local_tasks: Path, tmp_path: Path
) -> None:
    settings = {"lmms_tasks": ("local_all",), "questions": 6}
    pruned = measured(checkpoints["pruned"], local_tasks, tmp_path, **settings)
    packed = measured(checkpoints["packed"], local_tasks, tmp_path, **settings)
    assert packed.answers == pruned.answers and packed.record == pruned.record
    assert packed.record["lmms_eval"]["local_choices"]["acc"]["n"] == 6
    journals = sorted((tmp_path / "answers").iterdir())
    kept = [file.read_bytes() for file in journals]
    assert len(kept) == 2 and kept[0].count(b"\n") == kept[1].count(b"\n") == 6
    again = measured(checkpoints["pruned"], local_tasks, tmp_path, **settings)
    assert again.record == pruned.record
    assert [file.read_bytes() for file in journals] == kept


@installed
@pytest.mark.parametrize("name", ["local_shape", "local_rounds", "local_broken", "local_far"])
def test_a_task_that_cannot_be_asked_is_told_before_a_model_is_loaded(
    name: str, local_tasks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = "a-key-nobody-may-see-1234"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    broken = "task: local_broken\ndataset_path: parquet\ndoc_to_text: !function needs.text\n"
    (tmp_path / "broken.yaml").write_text(broken)
    (tmp_path / "needs.py").write_text("import no_such_package_here\n")
    far = f"task: local_far\ndataset_path: parquet\ndoc_to_text: !function says.text\n# {key}\n"
    (tmp_path / "far.yaml").write_text(far)
    (tmp_path / "says.py").write_text(f"raise RuntimeError('no access with {key}')\n")
    for file in ("shapes.yaml", "rounds.yaml", "questions.parquet"):
        (tmp_path / file).symlink_to(local_tasks / file)
    expected = {
        "local_shape": "did you mean local_shapes",
        "local_rounds": "asks by generate_until_multi_round",
        "local_broken": "needs a package that is not installed: ModuleNotFoundError",
        "local_far": "RuntimeError: no access with ***",
    }
    from efficientllava.benchmarks.engines.lmms_eval import tasks

    # lmms-eval's own definitions are 1,985: seconds to read, and of no matter here
    read = tasks._manager
    monkeypatch.setattr(tasks, "_manager", lambda place, defaults: read(place, False))
    settings = EvaluationParameters(
        engine="lmms_eval", lmms_tasks=(name,), lmms_folder=str(tmp_path)
    )
    with pytest.raises(UserError) as raised:
        ENGINES["lmms_eval"].check_names(settings)
    assert expected[name] in str(raised.value) and key not in str(raised.value)


@installed
def test_data_that_cannot_be_loaded_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "gone.yaml").write_text(
        SHAPES.replace("local_shapes", "local_gone").replace("questions.parquet", "gone.parquet")
    )
    settings = EvaluationParameters(
        engine="lmms_eval", lmms_tasks=("local_gone",), lmms_folder=str(tmp_path)
    )
    with pytest.raises(UserError, match="data cannot be loaded: FileNotFoundError") as raised:
        ENGINES["lmms_eval"].check(settings)
    assert "local_gone" in raised.value.where and "HF_TOKEN" in raised.value.remedy


@installed
def test_pictures_stand_where_a_text_names_them() -> None:
    from efficientllava.benchmarks.engines.lmms_eval.model import _placed

    def read(*parts: str) -> list[str]:
        named = [{"type": "image"} if p == "#" else {"type": "text", "text": p} for p in parts]
        return [part.get("text", "#") for part in _placed(named)]

    assert read("#", "#", "one <image> two <image>?") == ["one ", "#", " two ", "#", "?"]
    assert read("#", "<image>\nWhy?") == ["#", "\nWhy?"]
    assert read("#", "Why?") == ["#", "Why?"] and read("Why?") == ["Why?"]
    assert read("#", "#", "only <image> of them") == ["#", "#", "only  of them"]  # as it was


@installed
def test_stage_and_report(ready: Workspace, here: Here, local_tasks: Path) -> None:
    """scores.json, answers, table and summary of a run of the stage."""
    changes = {
        "engine": "lmms_eval",
        "lmms_tasks": ["local_choices", "local_shapes"],
        "lmms_folder": str(local_tasks),
        "questions": 5,
    }
    ready.set_parameters({"evaluation": changes})
    outcome = here(ready.folder, *DENSE)
    assert outcome.status == 0, outcome.error
    folder = ready.folder / "artifacts" / "evaluation" / "dense"
    record = read_json(folder / "scores.json")
    assert record["n"] == 5 and record["text_loss"] > 0
    assert len((folder / "answers" / "local_shapes.jsonl").read_text().splitlines()) == 5
    acc = record["lmms_eval"]["local_choices"]["acc"]
    assert record["accuracy"] == acc["value"] and 0 < acc["standard_error"] != acc["value"]
    outcome = here(ready.folder, "tasks.report")
    assert outcome.status == 0, outcome.error
    report = ready.folder / "artifacts" / "report"
    for file in ("table.md", "table.csv", "report.html"):
        text = (report / file).read_text(encoding="utf-8")
        assert "local_choices.acc" in text and "local_shapes.exact_match" in text, file
    numbers = read_json(ready.folder / "artifacts" / "summary" / "dense.json")
    assert numbers["local_choices.acc"] == pytest.approx(acc["value"], abs=1e-4)
    error = numbers["local_choices.acc_se"]
    assert error == pytest.approx(acc["standard_error"], abs=1e-4)
    assert f"{acc['value']:.4g} ± {acc['standard_error']:.2g}" in (report / "table.md").read_text()


def test_without_the_package_the_first_stage_says_how_to_install_it(
    workspace: Workspace, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    workspace.set_parameters({"evaluation": {"engine": "lmms_eval", "lmms_tasks": ["pope"]}})
    for stage in (("tasks.parameters",), DENSE):
        assert_told(
            here(workspace.folder, *stage),
            "the package lmms-eval is not installed",
            "pip install 'efficientllava[lmms]'",
            "pip install --no-deps lmms-eval==",
        )
    assert not (workspace.folder / "artifacts" / "parameters.json").exists()


def test_parameters_that_do_not_go_together(workspace: Workspace, here: Here) -> None:
    for changes, told in [
        ({"engine": "lmms-eval"}, "did you mean lmms_eval"),
        ({"engine": "lmms_eval"}, "needs lmms_tasks"),
        ({"lmms_tasks": ["pope"]}, "engine: lmms_eval"),
        ({"engine": "lmms_eval", "lmms_tasks": ["pope", "pope"]}, "name one twice"),
        (
            {"engine": "lmms_eval", "lmms_tasks": ["pope"], "benchmark": "vizwiz"},
            "leave benchmark at demo",
        ),
    ]:
        workspace.set_parameters({"evaluation": changes})
        assert_told(here(workspace.folder, "tasks.parameters"), told)
