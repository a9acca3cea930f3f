"""The record of each model for MLflow, derived from dvc.yaml and dvc.lock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from dvc.dependency.param import ParamsDependency

from efficientllava.errors import UserError
from efficientllava.files import read_json, value_digest
from efficientllava.report.decision.paired import Answers
from efficientllava.report.speedup import TOLD, is_factor
from efficientllava.versions.contents import Pointer
from flows.runner.graph import Node, flatten, open_repo
from tasks.runtime.cost import StageCost, read_cost

DENSE = "dense"
WEIGHTS, DENSE_WEIGHTS = "prune", "model"  # the stages that make a pruned and the dense model
TIMED = "artifacts/export_metrics/"  # where the outputs with times lie, other ones in every run
# the key of the question in a line of predictions
ASKED = ("id", "question_id", "prompt")
PREDICTIONS = "evaluate/predictions.jsonl"
"""Artifact of a run: what its model did with every question."""
READABLE = {".png", ".json", ".jsonl", ".csv", ".md", ".html", ".txt"}
LARGEST_ARTIFACT = 5_000_000


def cell_of(node: Node) -> str:
    """The model a stage belongs to: `METHOD-RATIO`, `dense`, or empty when it serves all.

    METHOD-RATIO is the cell of the stage's matrix; a stage called `..._dense` does for the dense
    model what the matrix does for the pruned ones.
    """
    return node.cell or (DENSE if node.name.endswith(f"_{DENSE}") else "")


@dataclass(frozen=True)
class Pinned:
    """An output of a stage with the digest that dvc.lock pins."""

    stage: str
    path: str
    digest: str

    @property
    def is_timed(self) -> bool:
        """Whether it holds times."""
        return self.path.startswith(TIMED)

    @property
    def uri(self) -> str:
        """A pointer that outlives the workspace: where DVC has it, and which content."""
        return str(Pointer(self.path, self.digest))


@dataclass
class ModelRecord:
    """Everything that is logged of one model.

    Attributes:
        cell: `METHOD-RATIO` or `dense`: the name of its run.
        parameters: dotted name -> value, of every stage that made it.
        inputs: outputs of the stages it shares with others: questions, dense model, proxy data.
        outputs: outputs of its own stages.
        metrics: `STAGE/dotted.name` -> number, from its own stages' metrics files.
        words: `STAGE/dotted.name` -> a speed-up in words, from the same files: a tag of its run.
        rounds: number of the round -> name -> number, from its search history.
        artifacts: (file, folder in the run) of its plots and readable records.
        checkpoint: the folder with its weights, an output of stage `prune`.
        asked: which questions it was evaluated on: what is shared of the evaluation's inputs, as
            (path, digest), and the questions that its predictions name.
        pruning_fault: what is wrong with the checkpoint's own record; None if nothing is.
        costs: of its own stages, as far as they ran in this workspace.
    """

    cell: str
    method: str
    ratio: float
    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: list[Pinned] = field(default_factory=list)
    outputs: list[Pinned] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    rounds: dict[int, dict[str, float]] = field(default_factory=dict)
    artifacts: list[tuple[Path, str]] = field(default_factory=list)
    checkpoint: Pinned | None = None
    asked: list[Any] = field(default_factory=list)
    pruning_fault: str | None = None
    costs: list[StageCost] = field(default_factory=list)

    @property
    def answers(self) -> Answers | None:
        """What the model did with every question; None where its predictions do not say."""
        for file, folder in self.artifacts:
            if f"{folder}/{file.name}" == PREDICTIONS:
                return Answers.read(file)
        return None

    @property
    def digest(self) -> str:
        """Key of the record: parameters, inputs and outputs decide it, not where, when or how fast.

        Outputs with times differ in every run and do not count.
        """
        pinned = [
            [item.path, item.digest] for item in (*self.inputs, *self.outputs) if not item.is_timed
        ]
        text = json.dumps([self.cell, self.parameters, sorted(pinned)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def questions(self) -> str:
        """Digest of the questions that the model was evaluated on."""
        return value_digest(self.asked)

    def metric(self, name: str) -> float | None:
        """The metric of that name, whichever stage measured it."""
        return metric_of(self.metrics, name)


def metric_of(metrics: Mapping[str, float], name: str) -> float | None:
    """The value of `STAGE/name`, whichever the stage."""
    values = [value for key, value in metrics.items() if key.partition("/")[2] == name]
    return values[0] if values else None


def split_cell(cell: str) -> tuple[str, float]:
    """Method and ratio of a cell."""
    if cell == DENSE:
        return DENSE, 0.0
    method, _, ratio = cell.rpartition("-")
    return method, float(ratio)


def read_record(root: Path, nodes: list[Node], cell: str) -> ModelRecord:
    """Collect the record of a model whose stages have all run."""
    method, ratio = split_cell(cell)
    record = ModelRecord(cell, method, ratio)
    own = {node.name for node in nodes if cell_of(node) == cell}
    made_by = set(own)
    for node in reversed(nodes):  # dependencies come earlier
        if node.name in made_by:
            made_by.update(node.depends_on)
    with open_repo(root) as repo:
        parameter_files: set[str] = set()  # logged as parameters: only those that a stage uses
        by_name = {stage.addressing: stage for stage in repo.index.stages}  # dvc.lock is read once
        stages = {node: by_name[node.name] for node in nodes if node.name in made_by}
        for stage in stages.values():
            for dependency in stage.deps:
                if isinstance(dependency, ParamsDependency):
                    parameter_files.add(dependency.fs_path)
                    record.parameters.update(flatten(dependency.hash_info.value or {}))
        for node, stage in stages.items():
            base = node.base.removesuffix(f"_{DENSE}")
            for out in stage.outs:
                if out.fs_path in parameter_files:
                    continue
                path = Path(out.fs_path)
                pinned = Pinned(
                    node.name, path.relative_to(root).as_posix(), out.hash_info.value or ""
                )
                if node.name in own:
                    record.outputs.append(pinned)
                    _read_output(record, base, path)
                else:
                    record.inputs.append(pinned)
                weights = DENSE_WEIGHTS if cell == DENSE else WEIGHTS
                if base == weights and path.is_dir() and not record.checkpoint:
                    record.checkpoint = pinned
        for node in nodes:
            if node.name in own and _has_accuracy(record, node):
                [stage] = repo.stage.collect(node.name)
                record.asked = _asked(root, stage, record)
    record.pruning_fault = _pruning_fault(root, record)
    record.costs = [cost for name in sorted(own) if (cost := read_cost(name, root)) is not None]
    return record


def _pruning_fault(root: Path, record: ModelRecord) -> str | None:
    """Why a checkpoint is no verified one; stage `prune` writes its record when it has compared."""
    if record.checkpoint is None:
        return "it has no checkpoint"
    try:
        pruning = read_json(root / record.checkpoint.path / "pruning.json")
        levels = {row["name"]: row["level"] for row in pruning["matrices"]}
        same = levels == pruning["policy"]
    except UserError as error:
        return error.what
    except (KeyError, TypeError) as error:
        return f"pruning.json lacks {error}"
    return None if same else "the rows of pruning.json do not follow its policy"


def _has_accuracy(record: ModelRecord, node: Node) -> bool:
    return f"{node.base.removesuffix(f'_{DENSE}')}/accuracy" in record.metrics


def _asked(root: Path, stage: Any, record: ModelRecord) -> list[Any]:
    """The question set that an evaluation read, and the questions that its predictions name."""
    shared = [item.path for item in record.inputs if item != record.checkpoint]
    asked: list[Any] = []
    for dependency in stage.deps:
        if isinstance(dependency, ParamsDependency):
            continue
        path = Path(dependency.fs_path)
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        if any(name == item or name.startswith(f"{item}/") for item in shared):
            asked.append([name, dependency.hash_info.value or ""])
    for out in stage.outs:
        path = Path(out.fs_path)
        if path.suffix == ".jsonl" and path.is_file():
            rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
            asked.append([{name: row[name] for name in ASKED if name in row} for row in rows])
    return asked


def _read_output(record: ModelRecord, base: str, path: Path) -> None:
    """Take metrics, rounds and readable files from one output of the model's own stages."""
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    for file in files:
        readable = file.suffix in READABLE and file.is_file()
        if not readable or file.stat().st_size > LARGEST_ARTIFACT:
            continue
        record.artifacts.append((file, base))
        # a metrics file of its own, or the record named after the stage in its folder; of speed-ups
        # the ends of their intervals
        if file.suffix == ".json" and (file is path or file.stem == base):
            values = flatten(json.loads(file.read_text(encoding="utf-8")))
            record.words.update(
                (f"{base}/{name}", value) for name, value in values.items() if name.endswith(TOLD)
            )
            record.metrics.update(
                (f"{base}/{name}", float(value))
                for name, value in values.items()
                if isinstance(value, bool | int | float) and not is_factor(name)
            )
        if file.suffix == ".jsonl":
            record.rounds.update(_rounds(file))


def _rounds(file: Path) -> dict[int, dict[str, float]]:
    """The values of each round of the search, from its history: those that it reported live.

    A method that reports no rounds has them here alone.
    """
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
    if not rows or not {"round", "risk", "policy"} <= rows[0].keys():
        return {}
    if records := [row["round_record"] for row in rows if "round_record" in row]:
        return {int(record["round"]): dict(record) for record in records}
    from efficientllava.report.trajectory import trajectory

    numbers, best, mean, _ = trajectory(rows)
    return {
        number: {f"best_{name}": values[index] for name, values in best.items()}
        # none where every candidate of a round was given up
        | ({"mean_risk": mean["risk"][index]} if isfinite(mean["risk"][index]) else {})
        for index, number in enumerate(numbers)
    }
