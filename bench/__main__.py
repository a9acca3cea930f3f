"""One command for all benches: `python -m bench` lists them, `python -m bench NAME [options]`
runs one and `python -m bench NAME --help` shows its options."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

from efficientllava.errors import UserError, hint


def benches() -> dict[str, str]:
    """The first line about each module that has a `main`, by name: `obs`, `card.sparse`."""
    summaries, here = {}, Path(__file__).parent
    modules = [*here.glob("[!_]*.py"), *here.glob("*/__init__.py"), *here.glob("*/[!_]*.py")]
    for path in modules:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            parts = path.relative_to(here).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            summaries[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return dict(sorted(summaries.items()))


def run(arguments: list[str]) -> int:
    """Run the bench that is named first; list all of them without a name.

    Raises:
        UserError: there is no such bench.
    """
    known = benches()
    if not arguments or arguments[0] in ("-h", "--help"):
        print("python -m bench NAME [options]\n")
        print("\n".join(f"  {name:16}{line}" for name, line in known.items()))
        return 0
    name, *options = arguments
    if name not in known:
        raise UserError(
            f"no bench is called {name!r}", where="python -m bench", remedy=hint(name, known)
        )
    sys.argv = [f"python -m bench {name}", *options]
    return int(importlib.import_module(f"bench.{name}").main() or 0)


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
