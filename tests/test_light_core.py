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
    "dask", "datasets", "deepsparse", "distributed", "dvc", "fastapi", "matplotlib", "mlflow",
    "onnx", "onnxruntime", "openai", "openvino", "pandas", "prefect", "sklearn", "sqlalchemy",
    "triton",
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
    """All but the report, the graphs that are exported, and the kernels in Triton."""
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
    assert set(lacking.values()) <= {"matplotlib", "onnx", "triton"}
    for module, package in lacking.items():
        folders = {"matplotlib": ".report.", "onnx": ".export.", "triton": ".kernels.triton."}
        assert folders[package] in module


PRUNE = """
import sys
from pathlib import Path
from efficientllava import calibration_data, load
from efficientllava.allocation.search import Search
from efficientllava.cli import commands
from efficientllava.database.build import build_database, open_database
from efficientllava.models.checkpoint import load_model, save_checkpoint
from efficientllava.models.families import adapter_for
from efficientllava.parameters import PruningParameters, SearchParameters
from efficientllava.pruning.sequential import prune_model

def prune(name, work):
    vlm = load(work / name)
    text = ["w1 w2 w3 w4 w5 w6 w7 w8 " * 9]
    data = calibration_data(vlm, text, segments=3, length=8, count=4)
    model = load_model(vlm.folder)
    adapter = adapter_for(model)
    pruning = PruningParameters()
    levels = [0.4, 0.5, 0.6]
    build_database(adapter, data, levels, pruning, work / "database", work / "unfinished", {})
    database = open_database(work / "database", levels)
    search = SearchParameters(candidates=2, rounds=1, survivors=1, workers=1, band=(-0.02, 0.02))
    found = Search(adapter, data, database, levels, 0.5, search, work / "search", {}).run()
    dense = load_model(vlm.folder)
    rows = prune_model(adapter_for(dense), data, "obs", found.policy, pruning)
    record = {"method": "efficientllava", "ratio": 0.5, "policy": found.policy, "matrices": rows}
    save_checkpoint(dense, vlm.folder, work / "pruned", {"pruning.json": record})
    commands(["verify", str(work / "pruned")], standalone_mode=False)
    commands(["ask", str(work / "pruned"), "-", "w1 w2"], standalone_mode=False)

assert "numba" not in sys.modules
for name in ("llava", "llama"):
    prune(name, Path(sys.argv[1]))
assert "numba" in sys.modules, "the column loop is compiled"
"""


def test_models_are_pruned_without_extras(tmp_path: Path) -> None:
    for name in ("llava", "llama"):
        save_checkpoint(*TINY[name].build(), tmp_path / name)
    assert python(WITHOUT_EXTRAS + PRUNE, str(tmp_path)).count("all weights finite") == 2
