"""Whether a run has nothing to do: then no server is started to record it.

DVC says whether a stage must run, MLflow whether it holds every model. A server that runs anyway is
told of every run: there a run without changes has all its stages in the state Cached.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.settings import PREFECT_API_URL

from efficientllava.errors import UserError
from efficientllava.parameters import Parameters
from flows.decision import keep_decision
from flows.runner.graph import Changes, Node, read_graph
from flows.runner.recording import RECORDING
from flows.tracking.champion import target_ratio
from flows.tracking.record import cell_of, read_record
from flows.tracking.tracking import Tracking

RECORDED = Path(".work/recorded")
"""There while a run is recorded. A run that is killed, or loses Prefect's server, leaves it; the
next one then mends the records."""


@contextmanager
def recorded(root: Path) -> Iterator[None]:
    """Note that the run inside of the block is recorded on a server."""
    mark = root / RECORDED
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    yield
    if not RECORDING.gone.is_set():
        mark.unlink(missing_ok=True)


def is_unchanged(parameters: Parameters) -> bool:
    """Whether a run in the current folder has nothing to do; if so, that is said.

    It has something to do if a server is configured, the last run was not recorded to its end, a
    stage must run, or MLflow lacks a model. Whatever is wrong is left to the run, which records it.
    """
    decided = _decided(Path.cwd(), parameters)
    if decided is not None:
        print(
            "every stage is Cached: nothing has changed since the last run, and MLflow holds every "
            f"model\n{decided}\nno server was started, so Prefect has no record of this run"
        )
    return decided is not None


def _decided(root: Path, parameters: Parameters) -> str | None:
    """What was decided about the champion; None if there is something to do."""
    if PREFECT_API_URL.value() or (root / RECORDED).exists():
        return None
    try:
        nodes, changes = read_graph(root), Changes(root)
        if any(changes.why(node.name) is not None for node in nodes):
            return None
    except UserError:
        return None
    from mlflow.exceptions import MlflowException

    try:
        return _champion(root, nodes, parameters)
    except (UserError, MlflowException, OSError):
        return None


def _champion(root: Path, nodes: list[Node], parameters: Parameters) -> str | None:
    """Choose the champion, as every run does; None if MLflow lacks a model."""
    tracking = Tracking(parameters.tracking, root)
    runs, records = {}, []
    for cell in dict.fromkeys(cell for node in nodes if (cell := cell_of(node))):
        record = read_record(root, nodes, cell)
        known = tracking.known(record)
        if known is None:
            return None
        tracking.live.forget(cell)  # failed attempts whose stages ended in the meantime
        runs[cell] = known
        records.append(record)
    decision = tracking.promote(runs, records, target_ratio(parameters))
    keep_decision(root, parameters, nodes, records, decision, tracking)
    return decision.said
