"""Short-LVLM's compensations over seeds, `python -m bench.compensation` -> docs/compensation.md.

Blocks are removed as `short_lvlm` ranks them; what differs is only what the block before a removed
run gets for it. The models are those of `bench.results`, trained where they are missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from bench.cells import Seed, prepare, seeded
from bench.machine import machine
from efficientllava.files import read_json, value_digest, write_json, write_text
from efficientllava.parameters import Parameters, PruneParameters
from efficientllava.report.comparison import markdown_table
from efficientllava.report.statistics import Row, differences, mean, mean_of, told
from tasks.runtime.stage import guarded, read_parameters

COMPENSATIONS: tuple[str, ...] = get_args(PruneParameters.model_fields["compensation"].annotation)
FIELDS = (("text_loss", 3, 1.0), ("answer_nll", 3, 1.0), ("accuracy", 2, 100.0))


def main() -> None:
    """Compute the cells that are missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--removed", type=int, nargs="+", default=[1, 2, 3], help="blocks")
    parser.add_argument("--questions", type=int, default=1500)
    parser.add_argument("--work", default=".work/results")
    parser.add_argument("--docs", default="docs")
    arguments = parser.parse_args()
    parameters = read_parameters()
    evaluation = parameters.evaluation.model_copy(update={"questions": arguments.questions})
    parameters = parameters.model_copy(update={"evaluation": evaluation})
    models = value_digest(parameters.model.model_dump(mode="json"))[:12]
    checkpoints = Path(arguments.work) / f"models-{models}"
    digest = value_digest(parameters.model_dump(mode="json", exclude={"tracking", "export"}))
    cells = Path(arguments.work) / f"compensation-{digest[:12]}"
    rows: list[Row] = []
    for seed in arguments.seeds:
        prepare(parameters, seed, checkpoints, cells)
        rows.append(read_json(cells / f"seed{seed}-dense.json"))
        for removed in arguments.removed:
            rows += [
                _cell(parameters, seed, removed, compensation, checkpoints, cells)
                for compensation in COMPENSATIONS
            ]
    command = "python -m bench.compensation " + " ".join(sys.argv[1:])
    write_text(Path(arguments.docs) / "compensation.md", _page(rows, parameters, command.strip()))


def _cell(
    parameters: Parameters,
    seed: int,
    removed: int,
    compensation: str,
    checkpoints: Path,
    cells: Path,
) -> Row:
    file = cells / f"seed{seed}-{removed}-{compensation}.json"
    if not file.exists():
        ratio = removed / parameters.model.embedded.blocks
        prune = parameters.prune.model_copy(update={"compensation": compensation})
        bench = Seed(
            seeded(parameters.model_copy(update={"prune": prune}), seed), seed, checkpoints
        )
        row = bench.prune("short_lvlm", ratio, None, cells.parent / "work")
        write_json(file, row | {"removed": removed, "compensation": compensation})
        print(f"seed {seed}  {removed} removed  {compensation:10} accuracy {row['accuracy']:.4f}")
    return read_json(file)  # type: ignore[no-any-return]


def _page(rows: list[Row], parameters: Parameters, command: str) -> str:
    seeds = sorted({row["seed"] for row in rows})
    blocks = parameters.model.embedded.blocks
    dense = [row for row in rows if row["method"] == "dense"]
    body = [["0", "dense", *_cells(dense)]]
    paired = []
    for removed in sorted({row["removed"] for row in rows if "removed" in row}):
        by_name = {
            name: [
                row
                for row in rows
                if row.get("removed") == removed and row.get("compensation") == name
            ]
            for name in COMPENSATIONS
        }
        body += [[str(removed), name, *_cells(found)] for name, found in by_name.items()]
        for name in COMPENSATIONS:
            if name == "none":
                continue
            cells = [str(removed), name]
            for field, decimals, scale in FIELDS:
                gaps = differences(by_name[name], by_name["none"], field)
                better = sum(gap > 0 if field == "accuracy" else gap < 0 for gap in gaps)
                cells += [told(mean(gaps), decimals, scale, sign=True), f"{better} of {len(gaps)}"]
            paired.append(cells)
    headings = ["removed", "compensation", "held-out text loss", "answer loss", "accuracy %"]
    pairs = ["removed", "compensation", "text loss", "better", "answer loss", "better"]
    pairs += ["accuracy, points", "better"]
    host = "; ".join(f"{name} {value}" for name, value in machine().items())
    return "\n\n".join(
        [
            "# Short-LVLM: what compensates for removed blocks",
            f"Written by `{command}`; the embedded model ({blocks} blocks, width "
            f"{parameters.model.embedded.width}), seeds {seeds}, mean ± one standard error over "
            f"seeds; {host}. Blocks go as `short_lvlm` ranks them (never block 0, the last "
            "protected); compensations are folded into the `down_proj` before a removed run.",
            markdown_table(headings, body),
            "Against plain removal (`none`), paired by seed; negative losses and positive points "
            "are better.",
            markdown_table(pairs, paired),
        ]
    )


def _cells(rows: list[Row]) -> list[str]:
    return [told(mean_of(rows, field), decimals, scale) for field, decimals, scale in FIELDS]


if __name__ == "__main__":
    sys.exit(guarded(main))
