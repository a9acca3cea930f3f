"""Two clones of the commit compute the smallest pipeline apart; are their outputs equal?

`python -m tools.clones` prints a table of artifacts/: files with the same bytes, and those with
others. An interrupted command goes on.
"""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from efficientllava.errors import UserError
from tools.chaos.workspace import ROOT, clone, commit_of, environment, outputs

PLACES = ("one", "another folder/of it's own name")
TIMED = ("export_metrics", "report_timings", "summary")
"""Outputs that hold times: the only ones that may differ."""


def compute(root: Path, folder: Path) -> dict[str, str]:
    """Run the smallest pipeline by DVC in a clone, as far as it has not run there.

    Returns:
        sha256 of every file of artifacts/, by its path.

    Raises:
        UserError: a stage failed.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        clone(root, folder)
    variables = {"DVC_NO_ANALYTICS": "true", "DVC_SITE_CACHE_DIR": str(folder / ".dvc/tmp/site")}
    command = [sys.executable, "-m", "dvc", "repro"]
    if subprocess.run(command, cwd=folder, env=environment(folder, variables)).returncode:
        raise UserError("a stage failed, see above", where=str(folder))
    return outputs(folder)


def table(one: Mapping[str, str], two: Mapping[str, str]) -> tuple[list[str], bool]:
    """The lines of the comparison, and whether only outputs with times differ."""
    rows: dict[str, list[str]] = defaultdict(list)
    totals: dict[str, int] = defaultdict(int)
    for path in sorted(one.keys() | two.keys()):
        output = path.partition("/")[0]
        totals[output] += 1
        if one.get(path) != two.get(path):
            rows[output].append(path.partition("/")[2] or path)
    lines = ["| output | files | equal | others |", "| --- | --- | --- | --- |"]
    for output, number in totals.items():
        others = rows[output]
        lines.append(f"| {output} | {number} | {number - len(others)} | {', '.join(others)} |")
    return lines, all(output in TIMED for output, others in rows.items() if others)


def main() -> int:
    """Compute both, one after the other; 1 where more than times differ, 2 where none ran."""
    try:
        commit, key = commit_of(ROOT)
        folder = ROOT / ".work" / "clones" / key
        found = [compute(ROOT, folder / place) for place in PLACES]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lines, equal = table(*found)
    print(f"commit {commit}\n\n" + "\n".join(lines))
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
