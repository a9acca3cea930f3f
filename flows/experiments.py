"""Tables and figures over seeds on the configured model: `python -m flows.experiments table1`.

An experiment is the pipeline run in workspaces of its own (.work/experiments/NAME), one per seed
and setting; its table, CSV and plot go to experiments/NAME, from where the `report` stage takes
them. Every model is logged to MLflow by the pipeline, the means over seeds by this flow. Killed,
it resumes.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, Failed, State

from efficientllava.models.source import BUILT
from efficientllava.parameters import Parameters
from efficientllava.registry import METHODS
from efficientllava.report.comparison import read_rows
from efficientllava.report.experiments.statistics import Measured, Setting, accuracy_of, models_of
from efficientllava.report.experiments.tables import write_experiment
from flows.command import run_to_end
from flows.form import seeded
from flows.pipeline import pipeline
from flows.runner.recording import RECORDING, end_process
from flows.server.workspaces import changed, make_workspace
from flows.tracking.tracking import log_experiment
from tasks.runtime.stage import ARTIFACTS, WORK, read_parameters, read_values

RESULTS = Path("experiments")
EVALUATED, EXPORTED = ("evaluate", "evaluate_dense"), ("evaluate", "evaluate_dense", "export")


@dataclass(frozen=True)
class Experiment:
    """One table or figure.

    Attributes:
        methods, ratios: the models that are compared; dense is always among them.
        until: the stages (without their cells) that are needed, with all they depend on.
        varied: the values of the parameters that vary beside the seed, by dotted name.
    """

    name: str
    title: str
    methods: tuple[str, ...]
    ratios: tuple[float, ...]
    until: tuple[str, ...] = EVALUATED
    varied: Callable[[Parameters], Mapping[str, Sequence[int | str]]] = lambda parameters: {}

    def settings(self, parameters: Parameters) -> list[Setting]:
        """Every combination of the varied parameters' values, by dotted name."""
        varied = self.varied(parameters)
        return [tuple(zip(varied, values, strict=True)) for values in product(*varied.values())]


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "table1",
            "Table 1: automatic pruning and its generalisation",
            ("sparsegpt", "auto_without_generalization", "efficientllava"),
            (0.5,),
        ),
        Experiment(
            "table2",
            "Table 2: evolution of the search space",
            ("no_evolution", "evolution_without_upper_bound", "efficientllava"),
            (0.5,),
        ),
        Experiment(
            "table3",
            "Table 3: accuracy by subject, context and grade",
            ("llm_pruner", "sparsegpt", "efficientllava"),
            (0.3, 0.4, 0.5),
        ),
        Experiment(
            "table4",
            "Table 4: further benchmarks",
            ("llm_pruner", "sparsegpt", "efficientllava"),
            (0.3, 0.4, 0.5),
        ),
        Experiment(
            "figure1",
            "Figure 1: accuracy against latency",
            ("llm_pruner", "sparsegpt", "efficientllava"),
            (0.3, 0.4, 0.5),
            EXPORTED,
        ),
        Experiment(
            "figure3",
            "Figure 3: proxy samples n and their length s",
            ("efficientllava",),
            (0.4,),
            varied=lambda parameters: {
                "proxy.segments": parameters.experiments.segments,
                "proxy.segment_length": parameters.experiments.segment_lengths,
            },
        ),
        Experiment(
            "methods",
            "Every method at three ratios",
            tuple(METHODS),
            (0.3, 0.5, 0.7),
            EXPORTED,
        ),
        Experiment(
            "searches",
            "The search on its own objective",
            tuple(name for name, method in METHODS.items() if "database" in method.needs),
            (0.3, 0.5, 0.7),
        ),
        Experiment(
            "calibration",
            "Calibration on text alone, and on text and image-text pairs",
            ("magnitude", "sparsegpt", "efficientllava"),
            (0.3, 0.5, 0.7),
            varied=lambda parameters: {"obs.calibration": ("text", "text_and_pairs")},
        ),
        Experiment(
            "compensation",
            "Short-LVLM: what compensates for removed blocks",
            ("short_lvlm",),
            (0.17, 0.33, 0.5),
            varied=lambda parameters: {"finalize.compensation": ("scp", "replaceme", "none")},
        ),
    )
}


def workspaces(
    experiment: Experiment, parameters: Parameters, root: Path
) -> Iterator[tuple[int, Setting, Path]]:
    """Make the experiment's workspaces, one after the other: (seed, setting, folder)."""
    tracking = parameters.tracking
    for seed in parameters.experiments.seeds:
        for setting in experiment.settings(parameters):
            changes: dict[str, Any] = {
                "methods": list(experiment.methods),
                "ratios": list(experiment.ratios),
                "tracking.experiment": f"{tracking.experiment}/{experiment.name}",
                "tracking.registered_model": f"{tracking.registered_model}-experiments",
                **seeded(parameters, seed),
                **dict(setting),
            }
            label = "-".join([f"seed{seed}", *(str(value) for _, value in setting)])
            folder = root / WORK / "experiments" / experiment.name / label
            make_workspace(root, folder, changed(read_values(root / "params.yaml"), changes))
            yield seed, setting, folder


@flow(name="experiment", flow_run_name="{name}", persist_result=False)
def run_experiment(name: str) -> State[Any]:
    """Run the pipeline for every seed and setting, and write the table over all of them."""
    return RECORDING.record_end(RECORDING.until_stopped(lambda: _run_experiment(name)))


def _run_experiment(name: str) -> State[Any]:
    root = Path.cwd()
    experiment, parameters = EXPERIMENTS[name], read_parameters(root / "params.yaml")
    measured: list[Measured] = []
    for seed, setting, folder in workspaces(experiment, parameters, root):
        description = ", ".join([f"seed {seed}", *(f"{key} {value}" for key, value in setting)])
        with chdir(folder):
            state = RECORDING.run(_pipeline_of, f"{name}, {description}", experiment.until)
        if RECORDING.stopped is not None:
            raise RECORDING.stopped
        if not state.is_completed():
            failure = state.result(raise_on_failure=False)
            return Failed(message=f"{description}: {failure}", data=failure)
        rows = read_rows(folder / ARTIFACTS, experiment.methods, experiment.ratios)
        measured += [Measured(seed, row, setting) for row in rows]
    folder = root / RESULTS / name
    benchmark = parameters.evaluation.compared
    write_experiment(folder, name, experiment.title, _lead(name, parameters), measured, benchmark)
    means = {
        f"{statistic}/{method}-{ratio:g}": value
        for (method, ratio), rows in models_of(measured).items()
        if (accuracy := accuracy_of(rows)) is not None
        for statistic, value in (("accuracy", accuracy.value), ("error", accuracy.error))
        if value is not None
    }
    log_experiment(parameters.tracking, root, name, means, folder)
    table = (folder / "table.md").read_text("utf-8")
    RECORDING.tell(create_markdown_artifact, table, key=f"experiment-{name}")
    return Completed(message=f"{folder / 'table.md'}")


def _pipeline_of(name: str, until: Sequence[str]) -> State[Any]:
    """The pipeline as a flow run of its own, or as part of this one where no server takes it."""
    if RECORDING.gone.is_set():
        return pipeline.fn(until=list(until))
    return pipeline.with_options(flow_run_name=name)(until=list(until), return_state=True)


def _lead(name: str, parameters: Parameters) -> str:
    source = parameters.model.source
    demo = parameters.model.demo
    model = (
        f"the demo model (width {demo.width}, {demo.blocks} blocks, trained anew for every seed)"
        if source == "demo"
        else f"the LLaVA around {source} of the package index"
        if source in BUILT
        else f"{source} at revision {parameters.model.revision}"
    )
    search, seeds = parameters.search, parameters.experiments.seeds
    over = (
        "± is one standard error over seeds"
        if len(seeds) > 1
        else "one seed: ± is the standard error over questions"
    )
    return (
        f"Measured by `make {name}` on {model}; seeds {', '.join(map(str, seeds))} ({over}); "
        f"{search.rounds} rounds of {search.candidates} candidates. The paper's numbers stand in "
        "columns of their own; they are of another model and not comparable in level."
    )


def main() -> int:
    """Run one experiment and show its table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=list(EXPERIMENTS))
    name = parser.parse_args().name

    def show(parameters: Parameters) -> None:
        print((RESULTS / name / "table.md").read_text(encoding="utf-8"))
        print(f"written: {shlex.quote(str(RESULTS / name))}/{{table.md, table.csv, plot.png}}")
        print("`make demo` takes it into artifacts/report/report.html")

    return run_to_end(f"experiment {name}", lambda: run_experiment(name, return_state=True), show)


if __name__ == "__main__":
    end_process(main())
