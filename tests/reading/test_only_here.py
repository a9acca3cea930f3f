"""Files from outside are opened in `efficientllava.reading` alone: read from the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path
    for top in ("efficientllava", "tasks", "flows")
    for path in (ROOT / top).rglob("*.py")
    if "reading" not in path.relative_to(ROOT).parts
)
OPENING = {
    "open", "os.open", "io.open", "json.load", "tomllib.load", "yaml.load", "Image.open",
    "safe_open", "load_file", "np.load", "np.loadtxt", "numpy.load", "ZipFile", "zipfile.ZipFile",
    "csv.reader", "pandas.read_csv", "pandas.read_parquet",
}  # fmt: skip
METHODS = {"read_text", "read_bytes", "open"}
OWN_STATE = "a file of this run, in its own work folder"
ARTIFACTS = "what an earlier stage wrote"
MACHINE = "the operating system's own files"
CODE = "this package's, or Python's, own code"
ALLOWED = {
    "efficientllava/allocation/unfinished.py": CODE,
    "efficientllava/commands/doctor.py": MACHINE,
    "efficientllava/data/images.py": "an archive of images, behind the checks of `image_bytes`",
    "efficientllava/data/text.py": CODE,
    "efficientllava/demo/pretrained/wheel.py": "a wheel of a known digest",
    "efficientllava/demo/questions/pictures.py": "scikit-learn's digits",
    "efficientllava/export/measure.py": OWN_STATE,
    "efficientllava/export/speed.py": MACHINE,
    "efficientllava/files.py": "a copy that it wrote itself, to flush it",
    "efficientllava/report/decision/paired.py": ARTIFACTS,
    "efficientllava/report/html.py": "a plot that it drew itself",
    "efficientllava/report/page.py": ARTIFACTS,
    "efficientllava/serving/pictures.py": "bytes of a request, in fewer formats and pixels",
    "efficientllava/sparse/cpu/compile.py": "compiled kernels, each beside the digest of its code",
    "efficientllava/versions/contents.py": "files of DVC's cache, copied beside their digests",
    "flows/experiments.py": ARTIFACTS,
    "flows/runner/dvc_files.py": "DVC's lock file",
    "flows/runner/host.py": OWN_STATE,
    "flows/runner/locks.py": "DVC's lock files",
    "flows/runner/process.py": OWN_STATE,
    "flows/runner/stage_host.py": "a pipe to its own child",
    "flows/server/server.py": OWN_STATE,
    "flows/tracking/record.py": ARTIFACTS,
    "flows/tracking/store.py": "a folder, to flush it",
    "flows/ui.py": OWN_STATE,
    "tasks/runtime/cost.py": OWN_STATE,
}
"""Modules that open a file which is none from outside, and which."""


def opened(path: Path) -> Iterator[tuple[int, str]]:
    """Line and call of everything that opens a file for reading."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        modes = {each.value for each in given if isinstance(each, ast.Constant)}
        writing = modes & {"w", "wb", "a", "a+", "ab", "x", "xb"} or "O_WRONLY" in ast.unparse(node)
        ours = name.startswith("reading.")
        if (name in OPENING or method in METHODS) and not writing and not ours:
            yield node.lineno, name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_opens_files(path: Path) -> None:
    found = list(opened(path))
    if str(path.relative_to(ROOT)) not in ALLOWED:
        assert not found, "read it through efficientllava.reading"


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_allowed_is_needed(name: str) -> None:
    assert list(opened(ROOT / name))
