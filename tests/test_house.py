"""The rules of the house, read from the syntax tree of every file: see docs/architecture.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "efficientllava"
ROOMS: dict[str, set[str]] = {
    "data": set(),
    "models": {"data"},
    "pruning": {"models", "data"},
    "search": {"pruning", "models", "data"},
    "benchmarks": {"models", "data"},
    "export": {"models", "data"},
    "report": set(),
    "embedded": {"models", "data", "benchmarks"},
}
"""What each package of the library may import beside itself and the plain modules below.

The embedded model is made, not loaded: its modules stand above the benchmark that measures it.
"""
GROUND = {"errors", "files", "progress", "parameters", "__init__"}
"""Modules beside the packages that all of them stand on; they import no package."""
ENTRANCES = {"cli"}
"""The console script: starts tasks, and is imported by nothing."""
ORCHESTRATORS = {"prefect", "dvc", "mlflow", "tasks", "flows"}
MOST_LINES = 330
LONGER = {
    "efficientllava/parameters.py": 540,  # one declarative list
    "efficientllava/allocation/search.py": 420,
}
"""Files that are longer, and by how much at most: to shrink, not to grow."""

FILES = sorted(
    path
    for room in ("efficientllava", "tasks", "flows", "bench")
    for path in (ROOT / room).rglob("*.py")
)
IN_LIBRARY = [path for path in FILES if LIBRARY in path.parents]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported anywhere in the file, `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only: a line shows its room"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str:
    """The package of a library module, or the name of a module beside the packages."""
    if module.startswith("efficientllava.demo.model"):
        return "embedded"
    return module.split(".")[1] if "." in module else "__init__"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def rooms_imported(path: Path) -> set[str]:
    names = imports_of(tree_of(path))
    return {room_of(name) for name in names if name.split(".")[0] == "efficientllava"}


def calls_of(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", IN_LIBRARY, ids=name_of)
def test_library_knows_no_orchestrator(path: Path) -> None:
    if room_of(module_of(path)) in ENTRANCES:
        return
    above = {name.split(".")[0] for name in imports_of(tree_of(path))} & ORCHESTRATORS
    assert not above, f"{name_of(path)} imports {above}; arrows point down only"


@pytest.mark.parametrize("path", IN_LIBRARY, ids=name_of)
def test_packages_import_only_what_lies_below(path: Path) -> None:
    room = room_of(module_of(path))
    if room in ENTRANCES:
        return
    assert room in ROOMS or room in GROUND, f"a new room {room}: give it its place in ROOMS"
    allowed = GROUND | {"__version__"} | (ROOMS[room] | {room} if room in ROOMS else set())
    beyond = rooms_imported(path) - allowed
    assert not beyond, f"{name_of(path)} imports {beyond}"


@pytest.mark.parametrize("path", [p for p in FILES if p.parent == ROOT / "tasks"], ids=name_of)
def test_tasks_know_no_flow_and_no_tracking(path: Path) -> None:
    above = {name.split(".")[0] for name in imports_of(tree_of(path))}
    assert not above & {"flows", "prefect", "mlflow"}, name_of(path)


def test_rooms_have_no_circle() -> None:
    """What ROOMS allows is itself a hierarchy."""
    height: dict[str, int] = {}
    while len(height) < len(ROOMS):
        ready = [room for room in ROOMS if room not in height and ROOMS[room] <= height.keys()]
        assert ready, f"a circle among {ROOMS.keys() - height.keys()}"
        height.update(dict.fromkeys(ready, len(height)))


def test_files_have_no_circle() -> None:
    """Not even inside a package, and not hidden in a function."""
    modules = {module_of(path): path for path in FILES}
    arrows = {}
    for module, path in modules.items():
        targets = {
            name if name in modules else name.rpartition(".")[0]
            for name in imports_of(tree_of(path))
        }
        arrows[module] = (targets & modules.keys()) - {module}
    finished: set[str] = set()
    while len(finished) < len(modules):
        ready = [m for m in modules if m not in finished and arrows[m] <= finished]
        assert ready, f"a circle among {sorted(modules.keys() - finished)}"
        finished.update(ready)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_unpickles_or_runs_remote_code(path: Path) -> None:
    tree = tree_of(path)
    for name in imports_of(tree):
        assert name.split(".")[0] not in {"pickle", "dill", "cloudpickle", "joblib", "torchvision"}
    for name, call in calls_of(tree):
        assert name not in {"torch.load", "torch.save", "eval", "exec"}, (name, call.lineno)
        for keyword in call.keywords:
            trusted = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg == "trust_remote_code":
                assert trusted, f"line {call.lineno}: trust_remote_code"
            if keyword.arg == "allow_pickle":
                assert trusted, f"line {call.lineno}: allow_pickle"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_small_and_import_by_name(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= LONGER.get(name_of(path), MOST_LINES)
    assert not any(name.endswith(".*") for name in imports_of(tree_of(path)))
    assert not any(word in path.stem for word in ("utils", "helper", "manager", "misc"))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_names_have_docstrings(path: Path) -> None:
    tree = tree_of(path)
    if path.stem != "__init__" or tree.body:
        assert ast.get_docstring(tree), f"{name_of(path)} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"class {node.name}"
            members = node.body
        elif isinstance(node, ast.Module):
            members = node.body
        else:
            continue
        for member in members:
            if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                told = {ast.unparse(d).split("(")[0] for d in member.decorator_list}
                if member.name != "forward" and not told & {"override", "model_validator"}:
                    assert ast.get_docstring(member), f"{member.name}, line {member.lineno}"
