"""Stage `search`: the ratio of every matrix, as the method allots it.

In:  params search, sensitivity, obs, allocation; artifacts/model, artifacts/proxy
Out: artifacts/search/METHOD-RATIO/ (policy.json, history.jsonl, projector.safetensors,
     search.json (metrics), convergence.png, policy.png)
Methods that search build the database of OBS solutions in .work/database first, where other
methods and ratios find it. Finished blocks of the database and finished rounds of the search are
kept in .work: a killed run resumes, and more rounds are added to those that exist.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientllava.registry import METHODS
from tasks.runtime.stage import Stage, run_stage

if TYPE_CHECKING:
    from efficientllava.allocation.context import Allocation


def search(stage: Stage) -> None:
    """Find the ratios of one model and write them down."""
    _write(stage, METHODS[stage.method].allocate(stage.context()))


def _write(stage: Stage, allocation: Allocation) -> None:
    from efficientllava.files import replacing

    with replacing(stage.folder("search")) as folder:
        folder.mkdir()
        _write_files(stage, allocation, folder)


def _write_files(stage: Stage, allocation: Allocation, folder: Path) -> None:
    from efficientllava.files import save_tensors, write_json, write_text
    from efficientllava.report.plots import policy_plot

    title = f"{stage.method} at {stage.ratio:g}"
    policy_plot(
        allocation.policy,
        folder / "policy.png",
        stage.ratio,
        f"{title}: share of zeros per matrix",
    )
    _plot_history(allocation.history, folder / "convergence.png", title, allocation.kind)
    save_tensors(folder / "projector.safetensors", allocation.projector)
    lines = (json.dumps(row, sort_keys=True) + "\n" for row in allocation.history)
    write_text(folder / "history.jsonl", "".join(lines))
    write_json(folder / "search.json", dict(allocation.summary))
    record = {
        "method": stage.method,
        "ratio": stage.ratio,
        "levels": list(allocation.levels) or [stage.ratio],
        "allocation": allocation.kind,
        "mean_sparsity": allocation.summary["mean_sparsity"],
        "policy": dict(allocation.policy),
        "risk": None if allocation.risk is None else asdict(allocation.risk),
        "gain": None if allocation.gain is None else dict(allocation.gain),
    }
    write_json(folder / "policy.json", record)


def _plot_history(
    history: Sequence[Mapping[str, Any]], path: Path, title: str, allocation: str
) -> None:
    """The convergence of a search; of a policy without one, the statement of that."""
    from efficientllava.report.plots import convergence_plot
    from efficientllava.report.theme import LIGHT, figure

    if history:
        convergence_plot([dict(row) for row in history], path, title)
        return
    with figure(path, LIGHT, 6, 1.2) as made:
        made.text(0.02, 0.5, f"{title}: {allocation}, nothing was searched", color=LIGHT.soft)


if __name__ == "__main__":
    run_stage(search, per_model=True)
