"""The front door from Python: every family in five lines, one work folder for many calls."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import efficientllava.api
from efficientllava import Result, calibration_data, load, prune
from efficientllava.allocation.gain import gained_over_uniform
from efficientllava.cli import commands
from efficientllava.data.proxy import ProxyData
from efficientllava.database import build as database
from efficientllava.errors import UserError
from efficientllava.files import folder_digest
from efficientllava.models.checkpoint import save_checkpoint
from efficientllava.models.families import FAMILIES
from efficientllava.models.loading import VisionLanguageModel
from efficientllava.progress import Event
from efficientllava.pruning.settings import settings
from efficientllava.registry import METHODS
from tests.models.families import PICTURED, TINY
from tests.models.families.by_hand import ByHand

TEXT = [" ".join(f"w{number % 50}" for number in range(600))]
SMALL: dict[str, Any] = {"segments": 3, "length": 8, "count": 4}
FAST: dict[str, Any] = {
    "search": {"candidates": 3, "survivors": 1, "rounds": 2, "projector_steps": 1},
    "machine": {"workers": 1},
}
OF_DEFAULT: dict[str, Any] = {"search": {"projector_steps": 1}, "machine": {"workers": 1}}
"""As `FAST`, of the parameters that the default method reads."""
NAMES = [
    *(name for name, family in PICTURED.items() if not isinstance(family.processor(), ByHand)),
    "llama",
    "qwen3_moe",
]
"""Those whose processors torch's CPU wheels can run."""
EXPECTED = ("scored positions", "experts that fewer than")
"""What is said of little data."""
PLAIN = """
import json, sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
for folder, images in json.loads(sys.argv[1]):
    kind = AutoModelForImageTextToText if images else AutoModelForCausalLM
    weights = kind.from_pretrained(folder).state_dict()
    rows = json.loads((Path(folder) / "pruning.json").read_text())["matrices"]
    for row in rows:
        name, weight = row["name"], weights.get(row["name"] + ".weight")
        if weight is None:  # of an expert
            path, expert, part = name.rsplit(".", 2)
            weight = weights[f"{path}.{part}"][int(expert)]
        assert int((weight == 0).sum()) == row["zeros"], name
    print(folder, len(rows))
assert "efficientllava" not in sys.modules
"""


def checkpoint(name: str, folder: Path, seed: int = 0) -> Path:
    save_checkpoint(*TINY[name].build(seed), folder)
    return folder


def small_data(vlm: VisionLanguageModel) -> ProxyData:
    return calibration_data(vlm, text=TEXT, **SMALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("llava", tmp_path_factory.mktemp("api") / "model")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Result, Path]]:
    """The five lines for a family, run once: the result and the folder it was saved to."""
    made: dict[str, tuple[Result, Path]] = {}

    def make(name: str) -> tuple[Result, Path]:
        if name not in made:
            place = tmp_path_factory.mktemp(name)
            dense = folder_digest(checkpoint(name, place / "model"))
            vlm = load(place / "model")
            data = calibration_data(vlm, text=TEXT, **SMALL)
            result = prune(vlm, data, sparsity=0.5, work=place / "work", parameters=OF_DEFAULT)
            saved = result.save(place / "out")
            assert folder_digest(place / "model") == dense, "the model stays as it is"
            made[name] = result, saved
        return made[name]

    return make


@pytest.mark.parametrize("name", NAMES)
def test_five_lines(
    name: str,
    pruned: Callable[[str], tuple[Result, Path]],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    result, saved = pruned(name)
    captured = capfd.readouterr()
    # where another test imported Prefect, its handler prints warnings, which are looked at below
    lines = [line for line in captured.err.splitlines() if " | WARNING | " not in line]
    assert captured.out == "" and not lines, "nothing on the screen that nobody asked for"
    # transformers says which faster kernels are missing, once
    own = [record for record in caplog.records if record.name.startswith("efficientllava")]
    told = [record.getMessage() for record in own if record.levelname != "DEBUG"]
    little = [any(words in message for words in EXPECTED) for message in told]
    assert all(little), "only that the data is little"
    rows = result.record["matrices"]
    assert result.policy == {row["name"]: row["level"] for row in rows}
    assert all(row["zeros"] >= int(row["level"] * row["size"]) for row in rows)
    assert result.history[0]["origin"] == "uniform" and len(result.history) > 2
    assert result.save(saved) == saved, "saved once more, it is there"
    assert (
        repr(result).startswith("<Result: efficientllava_plus at 0.5 in ")
        and len(repr(result)) < 300
    )
    report = result.report()
    assert "| method | efficientllava_plus at 0.5 |" in report
    assert "| gained over uniform | KL lower by " in report and "3 segments of 8 tokens" in report
    commands(["verify", str(saved)], standalone_mode=False)
    assert f"{len(rows)} matrices with the zeros of their policy" in capfd.readouterr().out


def test_saved_models_load_in_plain_transformers(
    pruned: Callable[[str], tuple[Result, Path]],
) -> None:
    """In another process, which does not know this library, with the recorded zeros."""
    folders = [(str(pruned(name)[1]), name in PICTURED) for name in NAMES]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, json.dumps(folders)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(NAMES)


def test_model_in_memory_is_unchanged(tmp_path: Path) -> None:
    model, processor = TINY["llava"].build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    vlm = load((model, processor))
    data = small_data(vlm)
    first = prune(vlm, data, sparsity=0.5, work=tmp_path, parameters=FAST)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    events: list[Event] = []
    again = load(TINY["llava"].build())
    second = prune(again, data, work=tmp_path, parameters=FAST, progress=events.append)
    assert second.folder == first.folder and not events, "the same model, from memory once more"


def test_calls_share_a_database(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No level of a matrix is solved twice for the database, whatever ratio and method ask."""
    built: list[list[float]] = []
    build = database.build_database

    def counted(adapter: Any, proxy: Any, levels: list[float], *others: Any) -> Any:
        built.append(list(levels))
        return build(adapter, proxy, levels, *others)

    monkeypatch.setattr(database, "build_database", counted)
    vlm = load(folder)
    data = small_data(vlm)
    events: list[Event] = []
    for method, sparsity, new in (
        ("efficientllava", 0.5, [0.4, 0.45, 0.5, 0.55, 0.6]),
        ("efficientllava", 0.6, [0.65, 0.7]),
        ("no_evolution", 0.5, []),
        ("magnitude", 0.5, []),
        ("efficientllava", 0.5, None),
    ):
        events.clear()
        built.clear()
        result = prune(vlm, data, method, sparsity, tmp_path, FAST, progress=events.append)
        assert result.record["method"] == method and result.record["ratio"] == sparsity
        assert built == ([new] if new else [])
        blocks = sum(event.name == "database" for event in events)
        assert blocks == (2 if new else 0)
        assert bool(events) == (new is not None), "what is finished is only read"


def test_others_never_share_unfinished_rounds(folder: Path, tmp_path: Path) -> None:
    """Another model, other data, other settings: the bytes of a work folder of their own."""
    other = load(checkpoint("llava", tmp_path / "other", seed=1))
    vlm = load(folder)
    seed = {"search": {**FAST["search"], "seed": 1}}
    calls: list[tuple[VisionLanguageModel, ProxyData, dict[str, Any]]] = [
        (vlm, small_data(vlm), FAST),
        (other, small_data(other), FAST),
        (vlm, calibration_data(vlm, text=TEXT, **SMALL, seed=1), FAST),
        (vlm, small_data(vlm), seed),
    ]
    shared = [prune(*call[:2], work=tmp_path / "work", parameters=call[2]) for call in calls]
    assert len({result.folder for result in shared}) == 4
    for number, (call, result) in enumerate(zip(calls, shared, strict=True)):
        if number:
            alone = prune(*call[:2], work=tmp_path / f"{number}", parameters=call[2])
            assert folder_digest(alone.folder) == folder_digest(result.folder)
            assert alone.history == result.history


def test_work_inside_the_model_folder(tmp_path: Path) -> None:
    """What is written there does not change what the model is: the second call finds the first."""
    place = checkpoint("llama", tmp_path / "model")
    vlm = load(place)
    data = small_data(vlm)
    first = prune(vlm, data, "magnitude", work=place / "work")
    assert prune(load(place), data, "magnitude", work=place / "work").folder == first.folder


def test_structured_methods(folder: Path, tmp_path: Path) -> None:
    vlm = load(folder)
    data = small_data(vlm)
    for method in (name for name, each in METHODS.items() if each.structured):
        keep = {"finalize": {"keep_last_block": False}}
        result = prune(vlm, data, method, 0.5, tmp_path / "work", keep)
        saved = result.save(tmp_path / method)
        assert "| removed from the decoder | " in result.report()
        commands(["verify", str(saved)], standalone_mode=False)


def test_progress_names_the_work(folder: Path, tmp_path: Path) -> None:
    vlm, events = load(folder), list[Event]()
    prune(vlm, small_data(vlm), "owl", work=tmp_path, progress=events.append)
    named = dict.fromkeys(event.name for event in events)
    assert list(named) == [
        "allocation", "dense targets", "final pruning", "measuring", "saving", "checking",
    ]  # fmt: skip
    assert all(event.done <= event.total for event in events)


def test_every_text_only_family_is_pruned(tmp_path: Path) -> None:
    for name in (name for name, family in FAMILIES.items() if not family.takes_images):
        vlm = load(checkpoint(name, tmp_path / name))
        result = prune(vlm, small_data(vlm), "sparsegpt", work=tmp_path / "work")
        assert result.record["achieved_sparsity"] == pytest.approx(0.5, abs=0.01)
        assert "takes no images" in result.report()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "sparsity 0": ({"sparsity": 0}, "sparsity: 0 is not between 0 and 1"),
    "sparsity 1": ({"sparsity": 1.0}, "not between 0 and 1"),
    "sparsity nan": ({"sparsity": float("nan")}, "nan is not between"),
    "sparsity inf": ({"sparsity": float("inf")}, "inf is not between"),
    "sparsity in words": ({"sparsity": "half"}, "half is not between"),
    "method": ({"method": "efficientlava"}, "did you mean efficientllava?"),
    "no method": ({"method": None}, "unknown method 'None'"),
    "device": ({"device": "tpu"}, "device: tpu: is no device"),
    "two devices": (
        {"device": "cpu", "parameters": {"machine": {"device": "cuda"}}},
        "two devices",
    ),
    "section": ({"parameters": {"serch": {}}}, "unknown section serch (did you mean search?)"),
    "unused section": ({"parameters": {"proxy": {"pairs": 0}}}, "unknown section proxy"),
    "no section": ({"parameters": {"search": 5}}, "parameters, search: int is not"),
    "no parameters": ({"parameters": [1]}, "parameters: list is not"),
    "parameter": ({"parameters": {"search": {"round": 5}}}, "did you mean rounds?"),
    "no model": ({"vlm": "llava"}, "vlm: str is not"),
    "no work folder": ({"work": 5}, "5: no path: it is int"),
    "no data": ({"data": "ptb.train.txt"}, "data: str is not"),
    "no memory": ({"parameters": {"machine": {"device_memory": 1e-6}}}, "missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls(folder: Path, tmp_path: Path, case: str) -> None:
    changes, message = BAD[case]
    vlm = load(folder)
    call = {"vlm": vlm, "data": small_data(vlm), "work": tmp_path / "work", "parameters": FAST}
    with pytest.raises(UserError) as told:
        prune(**{**call, **changes})
    assert message in str(told.value).splitlines()[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_device_is_told_at_once(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^device: cuda:3: "):
        prune(load(folder), work=tmp_path / "work", device="cuda:3")
    assert not (tmp_path / "work").exists()


def test_data_of_another_model(folder: Path, tmp_path: Path) -> None:
    vlm, text_only = load(folder), load(checkpoint("llama", tmp_path / "llama"))
    with pytest.raises(UserError, match="data: holds image-text pairs, but the model takes no"):
        prune(text_only, small_data(vlm), work=tmp_path / "work")
    without = calibration_data(vlm, text=TEXT, **SMALL | {"count": 0})
    with pytest.raises(UserError, match="holds no image-text pairs"):
        prune(vlm, without, work=tmp_path / "work")
    foreign = ProxyData(torch.tensor([[3, 9999]]), None, "0" * 64, "foreign")
    with pytest.raises(UserError, match="holds token 9999"):
        prune(vlm, foreign, "magnitude", work=tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_device_out_of_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = load(folder)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(efficientllava.api, "finalize", full)
    with pytest.raises(UserError, match="the memory does not suffice; finished work is kept"):
        prune(vlm, small_data(vlm), "magnitude", work=tmp_path / "work")


def test_what_an_allocation_gained_is_one_line() -> None:
    gain = {
        "difference": -0.025, "error": 0.001, "uniform_kl": 0.1, "kl": 0.075, "positions": 4096,
        "compared": 7, "uniform_ratios": 1, "zeros": 0.5, "uniform_zeros": 0.5,
    }  # fmt: skip
    told = (
        "KL lower by 0.0250 ± 0.0010 (0.1000 to 0.0750) before the final pruning, on the 4,096 "
        "positions that chose the ratios"
    )
    assert gained_over_uniform(gain) == told
    assert gained_over_uniform(gain | {"difference": 0.0}).startswith(
        "nothing: no ratios were better"
    )
    assert gained_over_uniform(gain | {"compared": 1}).startswith("not measured")
    assert "so the nearest" in gained_over_uniform(gain | {"uniform_ratios": 2})
    assert gained_over_uniform(gain | {"uniform_zeros": 0.52}).endswith(
        "50.00% zeros, uniform 52.00%: some were there before"
    )
    small = gain | {"difference": -2e-6, "kl": 3e-6}
    del small["error"]
    assert "lower by 2e-06 (error unknown: one sample)" in gained_over_uniform(small)


@pytest.mark.parametrize("saved", [False, True])
def test_a_damaged_model_is_not_delivered(saved: bool, folder: Path, tmp_path: Path) -> None:
    vlm = load(folder)
    result = prune(vlm, small_data(vlm), "magnitude", work=tmp_path / "work")
    damaged = result.save(tmp_path / "out") if saved else result.folder
    (damaged / "model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=r"model\.safetensors: is not the file that was written"):
        result.save(tmp_path / "out")
    assert (tmp_path / "out").exists() == saved


def test_data_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    other = load(checkpoint("qwen2_5_vl", tmp_path / "other"))
    with pytest.raises(UserError, match="data: was drawn for a model with another tokenizer"):
        prune(load(folder), small_data(other), work=tmp_path / "work")


def test_parameters_that_a_method_does_not_read_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings("efficientllava", 0.5, {"search": {"rounds": 5}})
    settings("efficientllava_plus", 0.5, {"search": {"max_seconds": 5}})
    assert not caplog.text
    settings("efficientllava_plus", 0.5, {"search": {"rounds": 5}})
    assert "it does not read search.rounds" in caplog.text


def test_ratios_share_the_level_of_no_zeros(folder: Path, tmp_path: Path) -> None:
    """0.3 - 6 * 0.05 rounds to -0.0, 0.2 - 4 * 0.05 to 0.0."""
    vlm = load(folder)
    data = small_data(vlm)
    for sparsity in (0.2, 0.3):
        result = prune(vlm, data, "output_error", sparsity, tmp_path / "work")
        assert result.record["achieved_sparsity"] == pytest.approx(sparsity, abs=1e-3)


def test_save_destroys_nothing(folder: Path, tmp_path: Path) -> None:
    vlm = load(folder)
    result = prune(vlm, small_data(vlm), "magnitude", work=tmp_path / "work")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    with pytest.raises(UserError, match="exists already and holds something else"):
        result.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "..."
    (tmp_path / "empty").mkdir()
    assert (result.save(tmp_path / "empty") / "pruning.json").is_file()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="a symbolic link to a place that does not exist"):
        result.save(tmp_path / "link")
    with pytest.raises(UserError, match=r"thesis\.tex: is a file"):
        result.save(tmp_path / "mine" / "thesis.tex")
    for place in (tmp_path, tmp_path / "work" / "database"):
        with pytest.raises(UserError, match="lies in the work folder"):
            result.save(place)
    with pytest.raises(UserError, match="no path: it is NoneType"):
        result.save(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\)"):
        result.save(tmp_path / "mine" / "thesis.tex" / "out" / "deeper")
    shutil.rmtree(tmp_path / "work")
    with pytest.raises(UserError, match="is gone from the work folder"):
        result.save(tmp_path / "late")
    assert not (tmp_path / "late").exists()
