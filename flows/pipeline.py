"""The whole pipeline: `python -m flows.pipeline` in the clone.

Reads the stages from dvc.yaml, runs what has changed, logs every pruned model to MLflow and
prints the comparison. Exit status: 0; 2 for an error that the user can fix; 1 otherwise.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import allow_failure, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed, State
from prefect.utilities.urls import url_for

from efficientllava.errors import UserError
from efficientllava.parameters import Parameters
from efficientllava.versions.connection import tracking_uri
from flows.decision import keep_decision
from flows.ending import show_comparison
from flows.runner.console import say_failures_once
from flows.runner.dvc_files import mend
from flows.runner.graph import Changes, Node, read_graph
from flows.runner.host import StageHost
from flows.runner.live import Values
from flows.runner.recording import RECORDING, end_process
from flows.runner.stages import USER_ERROR, Call, StageFailure, Watchers, run_stage
from flows.server.cluster import SearchCluster
from flows.server.server import mark_crashed, prefect_server
from flows.tracking.champion import target_ratio
from flows.tracking.record import ModelRecord, cell_of, read_record
from flows.tracking.servers import warn_of_remote
from flows.tracking.tracking import AGAIN, Tracking, check_server, usable
from flows.unchanged import is_unchanged, recorded
from tasks.runtime.check import check_device
from tasks.runtime.stage import ARTIFACTS, read_parameters, told
from tasks.runtime.workspace import workspace_lock


class PipelineFailure(Exception):
    """Some steps failed; those that do not depend on them have run."""

    def __init__(self, failures: list[StageFailure], not_run: list[str]) -> None:
        self.failures, self.not_run = failures, not_run
        lines = [
            f"{failure.stage} failed with exit status {failure.status}; its message is above"
            for failure in failures
        ]
        if not_run:
            lines.append(f"not run because of that: {', '.join(not_run)}")
        super().__init__("\n".join(lines))

    @property
    def status(self) -> int:
        """2 when the user can mend every failure."""
        user_errors = all(failure.status == USER_ERROR for failure in self.failures)
        return USER_ERROR if user_errors else 1


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
        state = log_model.with_options(name=name, task_run_name=name)(
            self, cell, wait_for=[self.states[stage] for stage in own], return_state=True
        )
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


@flow(name="pipeline", persist_result=False, validate_parameters=False)
def pipeline(until: tuple[str, ...] = ()) -> State[Any]:
    """The stages of dvc.yaml in the current folder, each one only if something changed.

    Args:
        until: stages (without their cells) that are wanted, with all they depend on; all if empty.
    """
    root = Path.cwd()
    say_failures_once()
    try:
        with workspace_lock("the pipeline", root):
            state = _pipeline(root, read_parameters(root / "params.yaml"), until)
    except (UserError, OSError) as error:
        if (message := told(error)) is None:
            raise
        failure = StageFailure("pipeline", USER_ERROR, message)
        get_run_logger().error("%s", message)
        state = Failed(message=message, data=PipelineFailure([failure], []))
    return RECORDING.record_end(state)


def _pipeline(root: Path, parameters: Parameters, until: tuple[str, ...]) -> State[Any]:
    logger = get_run_logger()
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None
    flow_run = context.flow_run
    if crashed := RECORDING.tell(mark_crashed, root, flow_run.id):
        logger.warning("marked %d earlier run(s) as Crashed: their process was killed", crashed)
    for mended in mend(root):
        logger.warning("%s", mended)
    page = url_for("flow-run", obj_id=flow_run.id) or ""
    tags = {"prefect.flow_run_id": str(flow_run.id), "prefect.flow_run_url": page}
    tracking = Tracking(parameters.tracking, root, tags)
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
    _keep_comparison(parameters)
    return Completed(message="every stage is up to date")


def _keep_comparison(parameters: Parameters) -> None:
    """The comparison as an artifact of the flow run."""
    from efficientllava.report.comparison import markdown, read_rows

    try:
        rows = read_rows(ARTIFACTS, parameters.methods, parameters.ratios)
    except UserError as error:
        get_run_logger().warning("no comparison: %s", error)
        return
    title = "All models, measured"
    RECORDING.tell(create_markdown_artifact, markdown(rows), key="comparison", description=title)


def _warm_up() -> None:
    """Import slow modules while the server starts, which takes longer."""
    import mlflow  # noqa: F401

    import efficientllava.report.comparison  # noqa: F401


def run_to_end(
    who: str,
    start: Callable[[], State[Any]],
    show: Callable[[Parameters], None],
    idle: Callable[[Parameters], bool] = lambda parameters: False,
) -> int:
    """Run a flow on this workspace, with a server, and return the exit status.

    Args:
        who: this run's name in the message to a second run.
        start: runs the flow.
        show: called when it completed.
        idle: says, before a server is started, that the flow has nothing to do.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        parameters = read_parameters()
        check_device(parameters)
        check_server(tracking_uri(parameters.tracking, Path.cwd()))
        with workspace_lock(who):
            if idle(parameters):
                show(parameters)
                return 0
            warn_of_remote(Path.cwd())
            threading.Thread(target=_warm_up, daemon=True).start()
            with prefect_server(), recorded(Path.cwd()):
                state = RECORDING.run(start)
    except (UserError, OSError, KeyboardInterrupt) as error:
        if (message := told(error)) is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else USER_ERROR
    if state.is_completed():
        show(parameters)
        return 0
    failure = state.result(raise_on_failure=False)
    print(f"error: {failure}", file=sys.stderr)
    return failure.status if isinstance(failure, PipelineFailure) else 1


def main() -> int:
    """Run the flow once."""
    return run_to_end(
        "the pipeline", lambda: pipeline(return_state=True), show_comparison, is_unchanged
    )


if __name__ == "__main__":
    end_process(main())
