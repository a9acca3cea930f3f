"""The whole pipeline: `python -m flows.pipeline` in the clone.

Reads the stages from dvc.yaml, runs what has changed, logs every pruned model to MLflow and
prints the comparison. Exit status: 0; 2 for an error that the user can fix; 1 otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import allow_failure, flow, get_run_logger, tags, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TagsContext
from prefect.states import Completed, Failed, State
from prefect.utilities.urls import url_for

from efficientllava.errors import UserError
from efficientllava.parameters import Parameters
from flows.command import run_to_end
from flows.decision import keep_comparison, keep_decision
from flows.ending import show_comparison
from flows.form import (
    Form,
    Method,
    Ratio,
    Seed,
    folder_of,
    record_of,
    summary,
    tags_of,
    workspace,
)
from flows.plan import parse_form, print_plan
from flows.runner.console import say_failures_once
from flows.runner.dvc_files import mend
from flows.runner.graph import Changes, Node, read_graph
from flows.runner.host import StageHost
from flows.runner.live import Values
from flows.runner.recording import RECORDING, end_process
from flows.runner.stages import (
    USER_ERROR,
    Call,
    PipelineFailure,
    StageFailure,
    Watchers,
    run_stage,
)
from flows.server.cluster import SearchCluster
from flows.server.runs import begin_run, drop_missed, workspace_tag
from flows.tracking.champion import target_ratio
from flows.tracking.record import ModelRecord, cell_of, read_record
from flows.tracking.tracking import AGAIN, Tracking, usable
from flows.unchanged import is_unchanged
from tasks.runtime.stage import read_parameters, told
from tasks.runtime.workspace import workspace_lock

NOTHING: Any = ()
"""An empty field of the form."""


class Run:
    """One run over the graph: which stages and models are done, and what failed."""

    def __init__(
        self, root: Path, parameters: Parameters, nodes: list[Node], tracking: Tracking
    ) -> None:
        self.root, self.parameters, self.nodes, self.tracking = root, parameters, nodes, tracking
        self.states: dict[str, State[Any]] = {}
        self.failures: list[StageFailure] = []
        self.not_run: list[str] = []
        self.culprits: dict[str, set[str]] = {}
        self.records: list[ModelRecord] = []
        self.mlflow_runs: dict[str, str] = {}

    def starts(self, node: Node) -> None:
        """A stage of a model is about to run: open the model's MLflow run."""
        if cell := cell_of(node):
            with self._live():
                self.tracking.live.begin(cell)

    def step(self, node: Node, number: int, values: Values) -> None:
        """A round of a model's search ended."""
        with self._live():
            self.tracking.live.log_round(cell_of(node), number, values)

    @contextmanager
    def _live(self) -> Iterator[None]:
        """Log on the way: an error only warns, because all is logged again at the end."""
        try:
            yield
        except Exception as error:
            get_run_logger().warning("MLflow: %s", str(error).splitlines()[0])

    def stage(self, node: Node, call: Call) -> None:
        """Run one stage, or say which failure keeps it from running."""
        blocked_by = {
            culprit for name in node.depends_on for culprit in self.culprits.get(name, ())
        }
        state = run_stage.with_options(name=node.name, task_run_name=node.name)(
            node,
            sorted(blocked_by),
            call,
            # in the graph, a stage that is not run depends on the failed one
            wait_for=[allow_failure(self.states[name]) for name in blocked_by or node.depends_on],
            return_state=True,
        )
        if call.stopped is not None:
            raise call.stopped
        self.states[node.name] = state
        if blocked_by:
            self.not_run.append(node.name)
            self.culprits[node.name] = blocked_by
        elif not state.is_completed():
            self._failed(node.name, state)
        if node.name in self.culprits and (cell := cell_of(node)):
            cause = ", ".join(sorted(self.culprits[node.name])) + " failed"
            with self._live():
                self.tracking.live.end(cell, cause, "FAILED")

    def log(self, cell: str) -> None:
        """Log a model to MLflow when all of its stages are done."""
        name = f"mlflow@{cell}"
        own = [node.name for node in self.nodes if cell_of(node) == cell]
        if any(stage in self.culprits for stage in own):
            self.not_run.append(name)
            return
        # a server or object store may answer a moment later; a local file answers the same
        remote = not self.tracking.uri.startswith("sqlite")
        state = log_model.with_options(
            name=name, task_run_name=name, retries=2 if remote else 0, retry_delay_seconds=[2, 10]
        )(self, cell, wait_for=[self.states[stage] for stage in own], return_state=True)
        self.states[name] = state
        if not state.is_completed():
            self._failed(name, state)

    def promote(self, ratio: float) -> None:
        """Choose the champion, once every model is logged."""
        if self.failures:
            self.not_run.append("promote")
            return
        logged = [self.states[f"mlflow@{record.cell}"] for record in self.records]
        state = promote(self, ratio, wait_for=logged, return_state=True)
        if not state.is_completed():
            self._failed("promote", state)

    def _failed(self, name: str, state: State[Any]) -> None:
        failure = state.result(raise_on_failure=False)
        if not isinstance(failure, StageFailure):
            failure = StageFailure(name, 1, str(failure))
        self.failures.append(failure)
        self.culprits[name] = {name}


@task(cache_policy=NO_CACHE, persist_result=False)
def log_model(run: Run, cell: str) -> State[Any]:
    """Log one model with everything that dvc.yaml declares of it, and register it."""
    record = read_record(run.root, run.nodes, cell)
    try:
        with usable(f"tracking.uri {run.tracking.uri}", AGAIN):
            run.mlflow_runs[cell], new = run.tracking.log(record)
    except UserError as error:
        return _told(f"mlflow@{cell}", error)
    run.records.append(record)
    if not new:
        return Completed(name="Cached", message="logged before")
    return Completed(message=f"MLflow run {run.mlflow_runs[cell]}")


@task(name="promote", task_run_name="promote", cache_policy=NO_CACHE, persist_result=False)
def promote(run: Run, ratio: float) -> State[Any]:
    """Give the alias `champion` to the best model that passes the checks."""
    try:
        decision = run.tracking.promote(run.mlflow_runs, run.records, ratio)
        keep_decision(run.root, run.parameters, run.nodes, run.records, decision, run.tracking)
    except UserError as error:
        return _told("promote", error)
    if decision.rows:
        RECORDING.tell(
            create_table_artifact,
            decision.rows,
            key="promotion",
            description=decision.said,
        )
    return Completed(message=decision.said)


def _told(step: str, error: UserError) -> State[Any]:
    """The state of a step in which MLflow could not be used."""
    get_run_logger().error("%s", error)
    return Failed(message=str(error), data=StageFailure(step, USER_ERROR, str(error)))


@flow(name="pipeline", persist_result=False)
def pipeline(
    methods: list[Method] = NOTHING,
    ratios: list[Ratio] = NOTHING,
    seed: Seed | None = None,
    overrides: list[str] = NOTHING,
    until: list[str] = NOTHING,
) -> State[Any]:
    """The stages of dvc.yaml in the current folder, each one only if something changed.

    With other parameters than those of params.yaml they run in a workspace of their own,
    `.work/runs`, which shares DVC's cache and MLflow with this one.

    Args:
        methods: methods that are compared; none: those of params.yaml
        ratios: shares of the decoder's weights that become zero, e.g. 0.5; none: as in params.yaml
        seed: of the demo model, the proxy data and the search; none: those of params.yaml
        overrides: further parameters as `dvc exp run -S` takes them, e.g. search.rounds=5
        until: stages that are wanted, with all they depend on, e.g. evaluate; none: all stages
    """
    root = Path.cwd()
    say_failures_once()
    form = Form(methods, ratios, seed, overrides)
    try:
        with workspace_lock("the pipeline", root):
            state = RECORDING.until_stopped(lambda: _in_workspace(root, form, until))
    except (UserError, OSError) as error:
        if (message := told(error)) is None:
            raise
        failure = StageFailure("pipeline", USER_ERROR, message)
        get_run_logger().error("%s", message)
        state = Failed(message=message, data=PipelineFailure([failure], []))
    return RECORDING.record_end(state)


def _in_workspace(root: Path, form: Form, until: Sequence[str]) -> State[Any]:
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None
    mended = mend(root)
    folder = workspace(root, form)
    for words in [*mended, *(mend(folder) if folder != root else [])]:
        get_run_logger().warning("%s", words)
    parameters = read_parameters(folder / "params.yaml")
    named = getattr(context.flow, "flow_run_name", None)
    name = summary(parameters) if named is None else context.flow_run.name
    labels = tags_of(parameters, form)
    if crashed := RECORDING.tell(begin_run, root, context.flow_run.id, name, labels):
        get_run_logger().warning(
            "marked %d earlier run(s) as Crashed: their process was killed", crashed
        )
    if dropped := RECORDING.tell(drop_missed, context.flow_run):
        get_run_logger().warning("dropped %d earlier run(s) that were missed", dropped)
    # without the flow's tags: each tag of a task takes a slot of the server's
    with chdir(folder), TagsContext(current_tags=set()):
        return _pipeline(folder, parameters, until, context.flow_run.id, record_of(form))


def _pipeline(
    root: Path, parameters: Parameters, until: Sequence[str], flow_run: UUID, record: dict[str, str]
) -> State[Any]:
    logger = get_run_logger()
    page = url_for("flow-run", obj_id=flow_run) or ""
    record = {**record, "prefect.flow_run_id": str(flow_run), "prefect.flow_run_url": page}
    tracking = Tracking(parameters.tracking, root, record)
    if tracking.unfinished:
        logger.warning(
            "MLflow's database was half made by a killed process: it is %s now", tracking.unfinished
        )
    tracking.close_left_open()
    nodes = read_graph(root, until)
    run = Run(root, parameters, nodes, tracking)
    try:
        with (
            SearchCluster(parameters.machine) as cluster,
            StageHost(parameters.machine.threads) as host,
        ):
            watchers = Watchers(run.starts, run.step)
            call = Call(root, Changes(root), host, watchers, cluster.environment)
            for number, node in enumerate(nodes):
                run.stage(node, call)
                cell = cell_of(node)
                if cell and cell not in {cell_of(later) for later in nodes[number + 1 :]}:
                    run.log(cell)
        run.promote(target_ratio(parameters))
    except BaseException:
        with run._live():
            tracking.live.interrupt()
        raise
    if run.failures:
        failure = PipelineFailure(run.failures, run.not_run)
        return Failed(message=str(failure), data=failure)
    keep_comparison(parameters)
    return Completed(message="every stage is up to date")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flow once, or say what it would do."""
    given = parse_form(__doc__.partition("\n")[0], arguments)
    fields, root = {**given.form.fields, "until": given.until}, Path.cwd()
    try:
        if given.dry_run:
            print_plan(root, given.form, given.until)
            return 0
        folder = folder_of(root, given.form)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR

    def show(_: Parameters) -> None:
        with chdir(folder):
            show_comparison(read_parameters())

    def idle(parameters: Parameters) -> bool:  # the workspace of a form is made by the flow
        return not (given.form.fields or given.until) and is_unchanged(parameters)

    def start() -> State[Any]:
        # tagged from its first moment: if it is killed, the next run finds it
        with tags(workspace_tag(root)):
            return pipeline(**fields, return_state=True)

    return run_to_end("the pipeline", start, show, idle)


if __name__ == "__main__":
    end_process(main())
