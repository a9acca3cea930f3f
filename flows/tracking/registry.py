"""MLflow's registered model: one version per run, and which of them is the champion."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from efficientllava.parameters import TrackingParameters
from efficientllava.report.decision.paired import Answers
from efficientllava.versions.aliases import (
    CANDIDATE,
    CHAMPION,
    NOBODY,
    PASSED,
    PREVIOUS,
    ROLLED_BACK,
    Aliases,
)
from flows.tracking.champion import (
    Check,
    Standing,
    candidates,
    champion_rule,
    comparison_checks,
    failures,
    own_checks,
    table,
)
from flows.tracking.record import PREDICTIONS, ModelRecord, metric_of

MEASURED = "pipeline.measured"
"""Tag of a run: the numbers by which its model is compared as champion, as JSON."""
COMPARED = ("n", "accuracy", "standard_error", "answer_nll")
QUESTIONS = "questions"
"""Tag of a version: digest of the questions that it was evaluated on."""


@dataclass(frozen=True)
class Decision:
    """What a run decided about the champion.

    Attributes:
        said: in words.
        version: the champion's number now; None where there is none.
        source: the address of its weights.
        rows: every check of every candidate.
    """

    said: str
    version: str | None = None
    source: str | None = None
    rows: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Judged:
    record: ModelRecord
    version: str
    checks: Sequence[Check]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


class Registry:
    """The registered model of that name."""

    def __init__(self, client: Any, rule: TrackingParameters) -> None:
        """Create the registered model where it is missing."""
        from mlflow.exceptions import MlflowException

        self.client, self.name, self.rule = client, rule.registered_model, rule
        self.aliases = Aliases(client, self.name)
        try:
            client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            client.create_registered_model(
                self.name,
                description=f"Pruned models, one version each; `{CHAMPION}` is "
                f"{champion_rule('the target ratio', rule)}; `{PREVIOUS}` was it before.",
            )

    def version_of(self, run: str) -> Any:
        """The version that points at a run; None when there is none."""
        # by its run alone: a name may hold quotes
        versions = self.client.search_model_versions(f"run_id = '{run}'")
        return next((version for version in versions if version.name == self.name), None)

    def holds(self, run: str) -> bool:
        """Whether a version points at a run."""
        return self.version_of(run) is not None

    def register(self, run: str, record: ModelRecord) -> None:
        """Register the run's model as a version that points at the weights, once."""
        if (known := self.version_of(run)) is not None:
            if QUESTIONS not in known.tags:  # registered before there was such a tag
                self.client.set_model_version_tag(
                    self.name, known.version, QUESTIONS, record.questions
                )
            return
        tags = {
            "method": record.method,
            "ratio": f"{record.ratio:g}",
            QUESTIONS: record.questions,
        }
        for tag, metric in (("sparsity", "achieved_sparsity"), ("accuracy", "accuracy")):
            if (value := record.metric(metric)) is not None:
                tags[tag] = f"{value:.4f}"
        source = record.checkpoint.uri if record.checkpoint else f"runs:/{run}"
        self.client.create_model_version(
            self.name, source=source, run_id=run, tags=tags, description=note(record)
        )

    def promote(
        self, runs: Mapping[str, str], records: Iterable[ModelRecord], ratio: float
    ) -> Decision:
        """Check the pipeline's models at the target ratio; the best that passes becomes champion.

        Every check of every candidate is recorded in the tags of its version.

        Args:
            runs: run id of every cell.
            records: the models of this pipeline.
            ratio: the target ratio.
        """
        records = list(records)
        holder = self.aliases.version(CHAMPION)
        found = [
            (record, self.version_of(runs[record.cell])) for record in candidates(records, ratio)
        ]
        if not found:
            said = f"no champion: no pruned model at ratio {ratio:g} has an accuracy"
            return self._decision(said, holder, [])
        standing = None if holder is None else self._standing(holder)
        methods, judged = {record.method for record in records}, []
        for record, version in found:
            # the champion itself has nobody to be compared with
            against = None if str(version.version) == holder else standing
            judged.append(self._judge(record, version, against, methods))
        rows = table((each.record.cell, each.version, each.checks) for each in judged)
        best = next((each for each in judged if each.passed), None)
        crowned = best is not None and best.version != holder and self.rule.promote == "auto"
        if best is not None and crowned:
            self.aliases.crown(best.version, champion_rule(f"ratio {ratio:g}", self.rule))
        for each in judged:
            self._record(each, holder, each is best, crowned)
        if best is None:
            return self._decision(self._stays(judged[0], holder, ratio), holder, rows)
        if crowned or best.version == holder:
            return self._decision(self._stands(best, ratio), best.version, rows)
        return self._decision(self._waits(best, holder), holder, rows)

    def _decision(self, said: str, version: str | None, rows: list[dict[str, str]]) -> Decision:
        source = None
        if version is not None:
            source = str(self.client.get_model_version(self.name, version).source)
        return Decision(said, version, source, rows)

    def _judge(
        self, record: ModelRecord, version: Any, standing: Standing | None, methods: set[str]
    ) -> _Judged:
        checks = own_checks(record, self.rule)
        if since := version.tags.get(ROLLED_BACK):
            checks.append(Check("not rolled back", False, f"rolled back on {since}"))
        if standing is not None:
            checks += comparison_checks(Standing.of(record), standing, methods, self.rule)
        return _Judged(record, str(version.version), checks)

    def _record(self, judged: _Judged, holder: str | None, best: bool, crowned: bool) -> None:
        if judged.version == holder and judged.passed:
            return  # its record says how it became champion
        verdict = "fail" if not judged.passed else PASSED if best else f"{PASSED}, not the best"
        if best and crowned:
            verdict = f"{PASSED}, champion"
        said = {check.name: str(check) for check in judged.checks}
        self.aliases.record(judged.version, said, verdict, holder or NOBODY)

    def _stands(self, best: _Judged, ratio: float) -> str:
        rule = champion_rule(f"ratio {ratio:g}", self.rule)
        return f"{CHAMPION}: version {best.version}, {best.record.cell} ({rule})"

    def _stays(self, best: _Judged, holder: str | None, ratio: float) -> str:
        if holder is None:
            return f"no champion: {best.record.cell} fails, {failures(best.checks)}"
        return (
            f"{CHAMPION} stays version {holder}: {best.record.cell} is the best of this run at "
            f"ratio {ratio:g}, but fails, {failures(best.checks)}; to choose anew, delete the "
            "alias in MLflow"
        )

    def _waits(self, best: _Judged, holder: str | None) -> str:
        stays = f"{CHAMPION} stays version {holder}" if holder else NOBODY
        said = f"{stays} (tracking.promote: {self.rule.promote}): version {best.version}, "
        said += f"{best.record.cell}, passes every check"
        if self.rule.promote == "never":
            return said
        if self.aliases.version(CANDIDATE) != best.version:
            self.client.set_registered_model_alias(self.name, CANDIDATE, best.version)
        return f"{said}; `efficientllava promote {best.version}` makes it champion"

    def _standing(self, number: str) -> Standing:
        """The values by which the registered champion is compared."""
        version = self.client.get_model_version(self.name, number)
        numbers = self._numbers(version.run_id)
        count, accuracy, error, loss = (numbers.get(name) for name in COMPARED)
        ratio, method = float(version.tags.get("ratio", "nan")), version.tags.get("method", "")
        questions, answers = version.tags.get(QUESTIONS), self._answers(version.run_id)
        return Standing(method, ratio, questions, count, accuracy, error, loss, answers)

    def _numbers(self, run: str) -> dict[str, float]:
        """The numbers by which a run's model is compared; none where it was deleted for good."""
        from mlflow.exceptions import MlflowException

        try:
            data = self.client.get_run(run).data
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        # runs of earlier versions have them as metrics
        return json.loads(data.tags.get(MEASURED, "{}")) or compared_numbers(data.metrics)

    def _answers(self, run: str) -> Answers | None:
        """The answers of a run's model to every question; None where it does not hold them."""
        from mlflow.exceptions import MlflowException

        with TemporaryDirectory() as folder:
            try:
                return Answers.read(Path(self.client.download_artifacts(run, PREDICTIONS, folder)))
            except (MlflowException, OSError):  # deleted, or of a benchmark without such a file
                return None


def compared_numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of a model's metrics by which it is compared as champion, as far as it has them."""
    found = {name: metric_of(metrics, name) for name in COMPARED}
    return {name: value for name, value in found.items() if value is not None}


def note(record: ModelRecord) -> str:
    """A model in one line, with where its weights are."""
    if record.checkpoint is None:
        return record.cell
    return (
        f"{record.cell}: weights in {record.checkpoint.path} (DVC md5 {record.checkpoint.digest})"
    )
