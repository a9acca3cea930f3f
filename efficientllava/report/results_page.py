"""docs/real.md from a workspace: `python -m efficientllava.report.results_page .work/real FILE`.

The page and the picture beside it (FILE's name with .png) are made of the records that the stages
left: run it again after every run.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efficientllava.errors import UserError
from efficientllava.files import read_json, write_text
from efficientllava.report.comparison import Row, breakdown_cells, cells, markdown_table, read_rows
from efficientllava.report.plots import policy_plot

MODELS = {
    "demo": "the demo model, a tiny LLaVA that trains itself",
    "smollm2": "a LLaVA around SmolLM2-135M-Instruct of the package index",
}
TEXTS = {"demo": "prose of the Python standard library"}


def write_results_page(workspace: Path, page: Path, measured: str = "") -> list[Row]:
    """Write the page, and the ratios of a searching method as a picture beside it.

    Args:
        workspace: a folder in which the pipeline has run.
        page: the Markdown file.
        measured: a sentence about the commit, the machine and the time.

    Returns:
        The rows of the table.

    Raises:
        UserError: the workspace holds no records.
    """
    artifacts = Path(workspace) / "artifacts"
    if not (artifacts / "parameters.json").is_file():
        raise UserError(
            "the pipeline has not run there",
            where=str(workspace),
            remedy="run `make real` (workspace .work/real) or `make demo` (workspace .) first",
        )
    parameters = read_json(artifacts / "parameters.json")
    rows = read_rows(artifacts, parameters["methods"], parameters["ratios"])
    searched = _searched(artifacts, rows)
    parts = [f"# Results of one run\n\n{_lead(parameters, rows)} {measured}".rstrip() + "\n"]
    parts.append(markdown_table(*_used(*cells(rows))))
    if (breakdowns := breakdown_cells(rows))[1]:
        parts.append(f"## Accuracy by subject, context and grade\n\n{markdown_table(*breakdowns)}")
    if searched is not None:
        row, policy = searched
        picture = page.with_suffix(".png")
        page.parent.mkdir(parents=True, exist_ok=True)
        policy_plot(policy, picture, row.ratio)
        told = f"Share of zeros of every matrix by {row.name}, block by type"
        parts.append(f"## Where the zeros are\n\n![{told}]({picture.name})\n\n{told}.\n")
    write_text(page, "\n".join(parts))
    return rows


def _lead(parameters: Mapping[str, Any], rows: Sequence[Row]) -> str:
    source, proxy, evaluation = (
        parameters["model"]["source"], parameters["proxy"], parameters["evaluation"],
    )  # fmt: skip
    held_out = Path(evaluation["text"] or proxy["text"]).name
    questions = next((row.score.n for row in rows if row.score is not None), 0)
    ratios = ", ".join(f"{ratio:g}" for ratio in parameters["ratios"])
    return (
        f"Measured on {MODELS.get(source, source)}; target ratios {ratios}. Calibration: "
        f"{proxy['segments']} x {proxy['segment_length']} tokens of "
        f"{TEXTS.get(proxy['text'], Path(proxy['text']).name)} and {proxy['pairs']} image-text "
        f"pairs. Text loss and perplexity per token: {evaluation['text_segments']} x "
        f"{proxy['segment_length']} held-out tokens of {TEXTS.get(held_out, held_out)} at most. "
        f"Accuracy: {questions} questions of the benchmark `{evaluation['benchmark']}`. ± is one "
        "standard error, over segments or questions."
    )


def _used(headings: list[str], body: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Columns in which at least one model has a value."""
    used = [place for place in range(len(headings)) if any(row[place] != "–" for row in body)]
    return [headings[place] for place in used], [[row[place] for place in used] for row in body]


def _searched(artifacts: Path, rows: Sequence[Row]) -> tuple[Row, dict[str, float]] | None:
    """The last model whose ratios differ from matrix to matrix, and these ratios."""
    for row in reversed(rows):
        file = artifacts / "search" / f"{row.method}-{row.ratio:g}" / "policy.json"
        if file.is_file():
            policy = read_json(file)["policy"]
            if len(set(policy.values())) > 1:
                return row, policy
    return None


def main(arguments: Sequence[str]) -> int:
    """Exit status 0, or 2 with a message."""
    if len(arguments) not in (2, 3):
        print("usage: python -m efficientllava.report.results_page WORKSPACE FILE [SENTENCE]")
        return 2
    try:
        write_results_page(Path(arguments[0]), Path(arguments[1]), *arguments[2:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
