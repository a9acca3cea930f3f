"""MLflow's registered model: one version per run, and the alias of the champion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flows.tracking.champion import CHAMPION, Standing, champion, champion_rule, obstacle
from flows.tracking.record import ModelRecord, metric_of

QUESTIONS = "questions"
"""Tag of a version: digest of the questions that it was evaluated on."""


class Registry:
    """The registered model of that name."""

    def __init__(self, client: Any, name: str) -> None:
        """Create the registered model where it is missing."""
        self.client, self.name = client, name
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(
                name,
                description=f"Pruned models, one version each; `{CHAMPION}` is "
                f"{champion_rule('the target ratio')}.",
            )

    def _version_of(self, run: str) -> Any:
        """The version that points at a run; None when there is none."""
        versions = self.client.search_model_versions(f"name = '{self.name}' and run_id = '{run}'")
        return versions[0] if versions else None

    def holds(self, run: str) -> bool:
        """Whether a version points at a run."""
        return self._version_of(run) is not None

    def register(self, run: str, record: ModelRecord) -> None:
        """Register the run's model as a version that points at the weights, once."""
        if (known := self._version_of(run)) is not None:
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

    def promote(self, runs: Mapping[str, str], records: Iterable[ModelRecord], ratio: float) -> str:
        """Give the alias `champion` to the best of the pipeline's models, if the rule lets it.

        Args:
            runs: run id of every cell.
            records: the models of this pipeline.
            ratio: the target ratio.

        Returns:
            The decision in words.
        """
        best = champion(records, ratio)
        if best is None:
            return f"no champion: no pruned model at ratio {ratio:g} has an accuracy"
        version = self._version_of(runs[best.cell]).version
        holder = self.client.get_registered_model(self.name).aliases.get(CHAMPION)
        if holder is not None and str(holder) != str(version):
            current = self.client.get_model_version(self.name, holder)
            if reason := obstacle(Standing.of(best), self._standing(current)):
                return (
                    f"{CHAMPION} stays version {holder}: {best.cell} is the best of this run at "
                    f"ratio {ratio:g}, but {reason}; to choose anew, delete the alias in MLflow"
                )
            for tag in current.tags:
                if tag.startswith(f"{CHAMPION}."):
                    self.client.delete_model_version_tag(self.name, holder, tag)
        rule = champion_rule(f"ratio {ratio:g}")
        self.client.set_registered_model_alias(self.name, CHAMPION, version)
        self.client.set_registered_model_tag(self.name, f"{CHAMPION}.rule", rule)
        self.client.set_model_version_tag(self.name, version, f"{CHAMPION}.rule", rule)
        return f"{CHAMPION}: version {version}, {best.cell} ({rule})"

    def _standing(self, version: Any) -> Standing:
        """The values by which a registered version is compared."""
        from mlflow.exceptions import MlflowException

        try:
            metrics = self.client.get_run(version.run_id).data.metrics
        except MlflowException:  # its run was deleted for good: how well it did is not known
            metrics = {}
        count, accuracy, loss = (
            metric_of(metrics, name) for name in ("n", "accuracy", "answer_nll")
        )
        ratio = float(version.tags.get("ratio", "nan"))
        return Standing(ratio, version.tags.get(QUESTIONS), count, accuracy, loss)


def note(record: ModelRecord) -> str:
    """A model in one line, with where its weights are."""
    if record.checkpoint is None:
        return record.cell
    return (
        f"{record.cell}: weights in {record.checkpoint.path} (DVC md5 {record.checkpoint.digest})"
    )
