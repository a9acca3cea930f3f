"""One command for all benches: `python -m bench` lists them, `python -m bench NAME [options]`
runs one and `python -m bench NAME --help` shows its options."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from pathlib import Path

from efficientllava.errors import UserError


def benches() -> dict[str, str]:
    """The first line about each module or package here that has a `main`, by name."""
    found = {}
    here = Path(__file__).parent
    folders = {path.parent.name: path for path in here.glob("[!_]*/__init__.py")}
    modules = {path.stem: path for path in here.glob("[!_]*.py")} | folders
    for name, path in sorted(modules.items()):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def run(arguments: list[str]) -> int:
    """Run the bench that is named first; list all of them without a name.

    Raises:
        UserError: there is no such bench.
    """
    known = benches()
    if not arguments or arguments[0] in ("-h", "--help"):
        print("python -m bench NAME [options]\n")
        print("\n".join(f"  {name:14}{line}" for name, line in known.items()))
        return 0
    name, *options = arguments
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise UserError(
            f"no bench is called {name!r}",
            where="python -m bench",
            remedy=f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}",
        )
    sys.argv = [f"python -m bench {name}", *options]
    return int(importlib.import_module(f"bench.{name}").main() or 0)


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
