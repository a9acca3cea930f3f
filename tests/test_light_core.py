"""What `import efficientllava` loads, and what runs with the light core's packages alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import efficientllava
from efficientllava.models.checkpoint import save_checkpoint
from tests.models.families import TINY

EXTRAS = (
    "dask", "datasets", "deepsparse", "distributed", "dvc", "fastapi", "lmms_eval", "matplotlib",
    "mlflow", "onnx", "onnxruntime", "openai", "openvino", "pandas", "prefect", "sklearn",
    "sqlalchemy", "triton",
)  # fmt: skip
"""Packages of the extras, as they are imported."""

WITHOUT_EXTRAS = f"""
import sys
from importlib.machinery import PathFinder

class Light(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in {EXTRAS} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Light
"""
"""For these packages, an installation that does not have them."""


def python(code: str, *arguments: str) -> str:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    loaded = python("import sys, efficientllava; print(*sorted(sys.modules))").split()
    assert not {"torch", "transformers", "numba", "numpy", "scipy", "PIL", "rich"} & set(loaded)
    for module in ("efficientllava.cli", "efficientllava.parameters", "tasks.runtime.check"):
        loaded = python(f"import sys, {module}; print(*sorted(sys.modules))").split()
        assert not {"torch", "transformers", "numba"} & set(loaded), module


def test_public_names() -> None:
    assert set(dir(efficientllava)) >= {"load", "calibration_data", "prune", "Result"}
    assert efficientllava.load.__module__ == "efficientllava.models.loading"
    assert efficientllava.calibration_data.__module__ == "efficientllava.calibration.data"
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        efficientllava.lode  # noqa: B018


def test_modules_need_no_extra() -> None:
    """All but report, exported graphs, server, lmms-eval's models, MLflow's plug-ins, Triton."""
    code = """
import importlib, pkgutil
import efficientllava
for module in pkgutil.walk_packages(efficientllava.__path__, "efficientllava."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(module.name, error.name)
"""
    lacking = dict(line.split() for line in python(WITHOUT_EXTRAS + code).splitlines())
    folders = {
        "matplotlib": ".report.",
        "onnx": ".export.",
        "fastapi": ".serving.",
        "lmms_eval": ".lmms_eval.",
        "mlflow": ".versions.",
        "triton": ".triton.",
    }
    assert set(lacking.values()) <= set(folders)
    for module, package in lacking.items():
        assert folders[package] in module


PRUNE = """
import sys
from pathlib import Path
from efficientllava import calibration_data, load, prune
from efficientllava.cli import commands

SMALL = {
    "search": {"candidates": 2, "rounds": 1, "survivors": 1, "band": [-0.02, 0.02],
               "projector_steps": 1, "projector_batch": 2},
    "machine": {"workers": 1},
    "obs": {"kernel": "compiled"},
}

def prune_one(name, work):
    vlm = load(work / name)
    text = ["w1 w2 w3 w4 w5 w6 w7 w8 " * 9]
    data = calibration_data(vlm, text, segments=3, length=8, count=4)
    result = prune(vlm, data, work=work / f"work-{name}", parameters=SMALL)
    result.save(work / f"pruned-{name}")
    commands(["verify", str(work / f"pruned-{name}")], standalone_mode=False)
    commands(["ask", str(work / f"pruned-{name}"), "-", "w1 w2"], standalone_mode=False)

assert "numba" not in sys.modules
for name in ("llava", "llama"):
    prune_one(name, Path(sys.argv[1]))
assert "numba" in sys.modules, "the column loop is compiled"
"""


def test_models_are_pruned_without_extras(tmp_path: Path) -> None:
    for name in ("llava", "llama"):
        save_checkpoint(*TINY[name].build(), tmp_path / name)
    assert python(WITHOUT_EXTRAS + PRUNE, str(tmp_path)).count("all weights finite") == 2
