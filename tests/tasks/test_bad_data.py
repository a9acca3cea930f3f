"""Data and models that cannot be used: exit code 2, the thing named, finished outputs untouched."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from efficientllava.files import folder_digest, load_tensors, read_json, save_tensors, write_json
from efficientllava.offload import file_layout
from tests.tasks.conftest import Here, Outcome, Workspace, clean_environment, unpack_images

CELL = ("--method", "efficientllava", "--ratio", "0.5")


def assert_told(outcome: Outcome, *parts: str) -> None:
    assert outcome.status == 2, outcome.error
    for part in parts:
        assert part in outcome.error, outcome.error
    assert "Traceback" not in outcome.error


@pytest.fixture
def given(ready: Workspace) -> Path:
    """A user's own checkpoint, named in params.yaml; the finished artifacts lie beside it."""
    folder = ready.folder / "given"
    shutil.copytree(ready.folder / "artifacts" / "model", folder)
    (folder / "digests.json").unlink()  # a user's own, of which nothing is recorded
    ready.set_parameters({"model": {"source": "./given"}})
    return folder


def test_own_checkpoint_is_taken_as_it_is(ready: Workspace, given: Path, here: Here) -> None:
    assert here(ready.folder, "tasks.model").status == 0
    taken = ready.folder / "artifacts" / "model"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (taken / name).read_bytes() == (given / name).read_bytes()
    assert read_json(taken / "training.json")["prunable_matrices"] == 14


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def unknown_family(folder: Path) -> None:
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "model_type": "bert"})


def not_finite(folder: Path) -> None:
    tensors = load_tensors(folder / "model.safetensors")
    name = next(name for name in tensors if "mlp.up_proj" in name)
    tensors[name] = tensors[name].clone()
    tensors[name][1, 2] = float("nan")
    save_tensors(folder / "model.safetensors", tensors)


def foreign_tokenizer(folder: Path) -> None:
    tokenizer = read_json(folder / "tokenizer.json")
    last = max(tokenizer["model"]["vocab"].values())
    tokenizer["model"]["vocab"] |= {f"added{i}": last + 1 + i for i in range(2000)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def index_of_another_folder(folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir()
    (folder / "model.safetensors").rename(other / "model.safetensors")
    names = load_tensors(other / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../other/model.safetensors")}
    write_json(folder / "model.safetensors.index.json", index)


def linked_from_outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside")
    (folder / "model.safetensors").symlink_to(folder.parent / "outside")


def endless(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("/dev/zero")


def no_language_model(folder: Path) -> None:
    config = read_json(folder / "config.json")
    del config["text_config"]
    write_json(folder / "config.json", config)


@pytest.mark.parametrize(
    "damage, told",
    [
        (index_of_another_folder, ["index.json", "../other/model.safetensors"]),
        (linked_from_outside, ["model.safetensors", "leads out of the model folder"]),
        (endless, ["tokenizer.json", "no regular file"]),
        (no_language_model, ["config.json", "text_config"]),
        (cut, ["model.safetensors", "not a complete safetensors file"]),
        (only_pickle, ["pytorch_model.bin", "never loaded"]),
        (no_weights, ["no safetensors"]),
        (unknown_family, ["'bert'", "no decoder blocks known"]),
        (not_finite, ["mlp.up_proj", "NaN"]),
        (foreign_tokenizer, ["tokenizer does not fit"]),
        (no_config, ["config.json"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_unusable_checkpoints(
    ready: Workspace, given: Path, here: Here, damage: object, told: list[str]
) -> None:
    finished = folder_digest(ready.folder / "artifacts")
    damage(given)  # type: ignore[operator]
    assert_told(here(ready.folder, "tasks.model"), *told)
    assert folder_digest(ready.folder / "artifacts") == finished


def test_pruned_weights_of_another_file(
    ready: Workspace, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were blocks ever mapped from a file that transformers does not read, stage `prune` fails."""
    other = ready.folder / "other.safetensors"
    tensors = load_tensors(ready.folder / "artifacts" / "model" / "model.safetensors")
    save_tensors(other, {name: 0.5 * tensor for name, tensor in tensors.items()})
    cell = ("--method", "magnitude", "--ratio", "0.5")
    assert here(ready.folder, "tasks.search", *cell).status == 0
    assert here(ready.folder, "tasks.prune", *cell).status == 0
    read = file_layout.weight_files
    monkeypatch.setattr(
        file_layout,
        "weight_files",
        lambda folder: [other] if Path(folder).name == "model" else read(folder),
    )
    outcome = here(ready.folder, "tasks.prune", *cell)
    assert_told(outcome, "layers.0", "not the one that transformers reads from the dense model")


@pytest.mark.parametrize(
    "content, told",
    [
        (b"", "empty"),
        (b"\xff\xfe latin \xe9", "UTF-8"),
        (b"Far too little text.", "too short"),
    ],
    ids=["empty", "not UTF-8", "too short"],
)
def test_unusable_text(ready: Workspace, here: Here, content: bytes, told: str) -> None:
    (ready.folder / "mine.txt").write_bytes(content)
    ready.set_parameters({"proxy": {"text": "./mine.txt"}})
    finished = folder_digest(ready.folder / "artifacts")
    assert_told(here(ready.folder, "tasks.proxy"), told)
    assert folder_digest(ready.folder / "artifacts") == finished


def test_more_segments_than_the_text_holds(ready: Workspace, here: Here) -> None:
    (ready.folder / "mine.txt").write_text("some words that make a short text " * 40)
    ready.set_parameters({"proxy": {"text": "./mine.txt", "segments": 5000}})
    assert_told(here(ready.folder, "tasks.proxy"), "more segments than the text holds", "5000")


def test_more_pairs_than_questions(ready: Workspace, here: Here) -> None:
    ready.set_parameters({"proxy": {"pairs": 5000}})
    assert_told(here(ready.folder, "tasks.proxy"), "5000", "proxy.pairs")


def image_of(folder: Path, split: str) -> Path:
    """One of the questions' images, which lie in a folder from now on."""
    questions = unpack_images(folder / "artifacts")
    return next(iter(sorted((questions / "images" / split).rglob("*.png"))))


def test_image_missing(ready: Workspace, here: Here) -> None:
    image = image_of(ready.folder, "train")
    image.unlink()
    assert_told(here(ready.folder, "tasks.proxy"), image.parent.name, "missing")


def test_image_broken(ready: Workspace, here: Here) -> None:
    image = image_of(ready.folder, "test")
    image.write_bytes(image.read_bytes()[:40])
    outcome = here(ready.folder, "tasks.evaluate", "--method", "dense", "--ratio", "0")
    assert_told(outcome, image.parent.name, "broken")
    assert not (ready.folder / "artifacts" / "evaluation").exists()


def overflow(ready: Workspace) -> None:
    """Weights that are finite, but whose activations are not."""
    path = ready.folder / "artifacts" / "model" / "model.safetensors"
    tensors = {
        name: torch.full_like(tensor, 1e30) if "up_proj" in name or "gate_proj" in name else tensor
        for name, tensor in load_tensors(path).items()
    }
    save_tensors(path, tensors)
    path.with_name("digests.json").unlink()  # as if they had been so from the start


def test_damaged_weights_are_told_before_anything_is_computed(ready: Workspace, here: Here) -> None:
    path = ready.folder / "artifacts" / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    told = here(ready.folder, "tasks.search", *CELL)
    assert_told(told, f"{path.relative_to(ready.folder)}: is not the file", "find .dvc/cache")
    assert not (ready.folder / "artifacts" / "search").exists()


def test_activations_that_are_not_finite(ready: Workspace, here: Here) -> None:
    overflow(ready)
    assert_told(here(ready.folder, "tasks.search", *CELL), "NaN or inf", "layers.0")
    assert not (ready.folder / "artifacts" / "search").exists()


def test_hessian_that_is_not_positive_definite(ready: Workspace, here: Here) -> None:
    """Fewer tokens than columns and next to no damping."""
    proxy = {"segments": 1, "segment_length": 2, "pairs": 0}
    ready.set_parameters(
        {
            "proxy": proxy,
            "methods": ["no_evolution"],
            "obs": {"damping": 1e-30, "calibration": "text"},
            "search": {"fitness_data": "text"},
        }
    )
    shutil.rmtree(ready.folder / "artifacts" / "proxy")
    assert here(ready.folder, "tasks.proxy").status == 0
    outcome = here(ready.folder, "tasks.search", "--method", "no_evolution", "--ratio", "0.5")
    assert_told(outcome, "not positive definite", "layers.0", "2 ", "damping")


def test_disk_full(ready: Workspace) -> None:
    """A real full disk: a file system of 40 kB below .work, in a mount namespace of its own."""
    namespace = ["unshare", "--mount", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*namespace, "true"]).returncode:
        pytest.skip("no mount namespaces here: a full disk cannot be staged")
    finished = folder_digest(ready.folder / "artifacts")
    (ready.folder / ".work").mkdir()
    stage = shlex.join(ready.command("tasks.search", *CELL))
    done = subprocess.run(
        [*namespace, "bash", "-c", f"mount -t tmpfs -o size=40k tmpfs .work && exec {stage}"],
        cwd=ready.folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert_told(Outcome(done.returncode, done.stderr), "the disk is full", ".work")
    assert folder_digest(ready.folder / "artifacts") == finished
