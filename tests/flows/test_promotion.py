"""Who becomes champion, what is recorded of that, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import State

from efficientllava.errors import UserError
from efficientllava.parameters import TrackingParameters
from efficientllava.report.decision.paired import Answers
from efficientllava.versions.aliases import Aliases
from flows.tracking.champion import Standing, candidates, comparison_checks
from flows.tracking.record import ModelRecord
from flows.tracking.tracking import Tracking


def model(
    method: str, ratio: float, accuracy: float, loss: float = 0.5, **named: Any
) -> ModelRecord:
    """A model that passes every check by itself."""
    metrics = {
        "evaluate/accuracy": accuracy,
        "evaluate/standard_error": 0.01,
        "evaluate/answer_nll": loss,
        "evaluate/n": named.get("count", 100),
        "evaluate/breakdowns.NAT.n": 7,
        "export/tokens_match": float(named.get("tokens_match", True)),
    }
    asked = [["artifacts/questions", named.get("questions", "md5 of the questions")]]
    record = ModelRecord(f"{method}-{ratio:g}", method, ratio, metrics=metrics, asked=asked)
    record.pruning_fault = named.get("fault")
    record.parameters["trial"] = f"{method} {metrics} {asked}"
    return record


class Runs:
    """Pipelines of one registered model."""

    def __init__(self, root: Path, name: str, **parameters: Any) -> None:
        self.name = name
        self.parameters = TrackingParameters(experiment=name, registered_model=name, **parameters)
        self.tracking = Tracking(self.parameters, root)
        self.client: MlflowClient = self.tracking.client
        self.aliases = Aliases(self.client, name)

    def __call__(self, *records: ModelRecord) -> str:
        """What a pipeline of these models decides."""
        self.runs = {record.cell: self.tracking.log(record)[0] for record in records}
        return self.tracking.promote(self.runs, records, records[0].ratio).said

    def version(self, alias: str) -> ModelVersion:
        return self.client.get_model_version_by_alias(self.name, alias)

    @property
    def champion(self) -> str:
        """Its method and accuracy; no other version says that it is champion."""
        version = self.version("champion")
        tagged = [
            other.version
            for other in self.client.search_model_versions(f"name = '{self.name}'")
            if any(tag.startswith("champion") for tag in other.tags)
        ]
        assert tagged == [version.version]
        return f"{version.tags['method']} {version.tags['accuracy']}"


def test_the_first_champion_is_the_most_accurate_pruned_model(
    first_run: tuple[Path, State],
) -> None:
    client = MlflowClient(f"sqlite:///{first_run[0]}/mlflow.db")
    version = client.get_model_version_by_alias("toy", "champion")
    assert version.tags["method"] == "sparsegpt"  # 0.85; dense has 0.90, magnitude 0.80
    rule = version.tags["champion.rule"]
    assert "most accurate" in rule and "same ratio" in rule and "same questions" in rule
    assert version.tags["promotion.verdict"] == "pass, champion"
    assert version.tags["promotion.parity"] == "pass: every runtime gave PyTorch's tokens"
    [other] = client.search_model_versions("name = 'toy' and tags.method = 'magnitude'")
    assert other.tags["promotion.verdict"] == "pass, not the best"


def test_prefect_shows_every_check(first_run: tuple[Path, State]) -> None:
    number = first_run[1].state_details.flow_run_id
    assert number is not None
    chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[number]))
    with get_client(sync_client=True) as client:
        artifacts = {a.key: a for a in client.read_artifacts(artifact_filter=chosen)}
    assert '"check": "parity", "result": "pass"' in str(artifacts["promotion"].data)


def test_the_report_shows_the_decision(first_run: tuple[Path, State]) -> None:
    script = (first_run[0] / "artifacts" / "decision.js").read_text("utf-8")
    for words in (
        "champion: version",
        "models:/toy@champion",
        "artifacts/pruned/sparsegpt-0.5",
        "efficientllava fetch champion FOLDER",
        "cores",
        "magnitude-0.5",
    ):
        assert words in script, words


def test_champion_moves_only_to_what_can_be_compared(finished: Path) -> None:
    run = Runs(finished, "moves")
    run(model("a", 0.5, 0.7), model("b", 0.5, 0.8))
    assert run.champion == "b 0.8000"
    for trial, reason in (
        (model("b", 0.3, 0.9), "ratio: 0.3, the champion's is 0.5"),
        (model("b", 0.5, 0.9, count=50), "on 50 questions, the champion on 100"),
        (model("b", 0.5, 0.9, questions="others"), "on other questions than the champion"),
        (model("b", 0.5, 0.75), "accuracy: 75.00 %, the champion's 80.00 %: -5.000 ± 1.414"),
        (model("b", 0.5, 0.8, loss=0.6), "answer loss: 0.6000 nats, the champion's 0.5000"),
        (model("b", 0.5, 0.9, tokens_match=False), "gave other tokens than PyTorch"),
        (model("b", 0.5, 0.9, fault="pruning.json lacks 'policy'"), "verified: pruning.json lacks"),
        (model("trial", 0.5, 0.795), "complete run: the run left out b"),
    ):
        said = run(trial)
        assert run.champion == "b 0.8000"
        assert "champion stays version" in said and reason in said and "delete the alias" in said
        failed = run.tracking.registry.version_of(run.runs[trial.cell])
        assert failed.tags["promotion.verdict"] == "fail"
        assert any(value.startswith("fail:") for value in failed.tags.values())
    # the same method within the error, then better ones
    run(model("b", 0.5, 0.795))
    assert run.champion == "b 0.7950"
    run(model("c", 0.5, 0.85))
    assert run.champion == "c 0.8500"
    run(model("c", 0.5, 0.85))  # the same again
    assert run.champion == "c 0.8500"


def test_a_champion_of_which_too_little_is_known_stays(finished: Path) -> None:
    run = Runs(finished, "by_hand")
    run(model("a", 0.5, 0.85))
    number = run.version("champion").version
    run.client.delete_model_version_tag("by_hand", number, "questions")
    assert "not known on which questions" in run(model("d", 0.5, 0.95))
    assert run.champion == "a 0.8500"
    # once the alias is gone, the next run chooses anew
    run.client.delete_registered_model_alias("by_hand", "champion")
    run.client.delete_model_version_tag("by_hand", number, "champion.rule")
    run.client.delete_model_version_tag("by_hand", number, "champion.since")
    run(model("trial", 0.3, 0.6))
    assert run.champion == "trial 0.6000"


def test_the_champion_before_is_previous_and_can_come_back(finished: Path) -> None:
    run = Runs(finished, "back")
    for accuracy in (0.7, 0.8, 0.9):
        run(model("a", 0.5, accuracy))
    assert run.version("previous").tags["accuracy"] == "0.8000"
    assert not any(tag.startswith("promotion") for tag in run.version("previous").tags)
    present = run.version("champion").version
    assert run.aliases.roll_back() == (str(run.version("champion").version), str(present))
    assert run.champion == "a 0.8000"
    assert run.version("previous").tags["accuracy"] == "0.7000"
    # what was rolled back does not come again by itself
    assert "not rolled back: rolled back on" in run(model("a", 0.5, 0.9))
    assert run.champion == "a 0.8000"
    run.aliases.roll_back()
    assert run.champion == "a 0.7000"
    with pytest.raises(UserError, match="there was no champion before it"):
        run.aliases.roll_back()
    assert run.champion == "a 0.7000"


def test_a_deleted_version_is_no_way_back(finished: Path) -> None:
    run = Runs(finished, "deleted_versions")
    for accuracy in (0.7, 0.8, 0.9):
        run(model("a", 0.5, accuracy))
    run.client.delete_model_version("deleted_versions", run.version("previous").version)
    run.aliases.roll_back()
    assert run.champion == "a 0.7000"


def test_promotion_can_wait_for_a_word(finished: Path) -> None:
    run = Runs(finished, "waits", promote="ask")
    said = run(model("a", 0.5, 0.7))
    number = run.version("candidate").version
    assert said.startswith("no champion") and f"`efficientllava promote {number}`" in said
    assert run.aliases.promote(number) == "no champion"
    assert run.champion == "a 0.7000"
    with pytest.raises(UserError, match="champion already"):
        run.aliases.promote(number)
    run(model("a", 0.5, 0.6))
    worse = max(int(v.version) for v in run.client.search_model_versions("name = 'waits'"))
    with pytest.raises(UserError, match=r"failed: accuracy \(fail: 60"):
        run.aliases.promote(str(worse))
    run(model("a", 0.5, 0.8), model("b", 0.5, 0.75))
    better, beside = (str(worse + 1), str(worse + 2))
    run.aliases.promote(better)
    with pytest.raises(UserError, match=f"against {number}, the champion now is {better}"):
        run.aliases.promote(beside)


def test_promotion_can_be_off(finished: Path) -> None:
    run = Runs(finished, "off", promote="never")
    said = run(model("a", 0.5, 0.7))
    assert said.startswith("no champion") and "passes every check" in said
    assert not run.client.get_registered_model("off").aliases


def test_the_requirements_are_parameters(finished: Path) -> None:
    run = Runs(finished, "lenient", promote_requires=["verified"], promote_errors=0.0)
    run(model("a", 0.5, 0.7, tokens_match=False))
    assert run.champion == "a 0.7000"
    run(model("a", 0.5, 0.6999))
    assert run.champion == "a 0.7000"


def test_differences_are_paired_question_by_question() -> None:
    """Two models that differ on few questions: paired, the difference is beyond its error."""
    right = {str(n): float(n % 2) for n in range(1000)}
    worse = right | {str(n): 0.0 for n in (1, 3, 5, 7)}
    loss = dict.fromkeys(right, 1.0)

    def standing(answers: dict[str, float]) -> Standing:
        accuracy = sum(answers.values()) / len(answers)
        known = Answers(answers, loss)
        return Standing("a", 0.5, "q", 1000, accuracy, 0.0158, 1.0, known)

    rule = TrackingParameters()
    checks = comparison_checks(standing(worse), standing(right), {"a"}, rule)
    [accuracy] = [check for check in checks if check.name == "accuracy"]
    assert not accuracy.passed and "-0.400 ± 0.200 points, question by question" in accuracy.reason
    assert all(c.passed for c in comparison_checks(standing(right), standing(worse), {"a"}, rule))


def test_candidates_are_pruned_models_at_the_ratio_the_best_first() -> None:
    models = [
        model("dense", 0.5, 1.0, 0.1),
        model("a", 0.5, 0.8, 0.5),
        model("b", 0.5, 0.8, 0.4),
        model("c", 0.4, 0.9, 0.1),
    ]
    assert [record.method for record in candidates(models, 0.5)] == ["b", "a"]
    assert candidates(models, 0.7) == []
