"""The rule by which a pruned model takes the champion's place: checks that it passes or fails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import inf

from efficientllava.parameters import Parameters, TrackingParameters
from efficientllava.report.decision.paired import Answers, Difference, independent, paired
from flows.tracking.record import DENSE, ModelRecord


def target_ratio(parameters: Parameters) -> float:
    """The ratio at which a model can be champion: `tracking.champion_ratio`."""
    target = parameters.tracking.champion_ratio
    return parameters.ratios[0] if target is None else target


def champion_rule(ratio: str, rule: TrackingParameters) -> str:
    """The rule, in words."""
    words = {"verified": ", verified", "parity": ", with parity"}
    needs = "".join(words[name] for name in rule.promote_requires)
    errors = f"{rule.promote_errors:g} standard error" + ("" if rule.promote_errors == 1 else "s")
    return (
        f"the most accurate pruned model at {ratio} of the last pipeline run{needs}; of equals the "
        "one with the lower answer loss; it takes the place of a champion only at the same ratio, "
        "evaluated on the same questions, not below it by more than "
        f"{errors} in accuracy and answer loss, and not at all "
        "below one whose method the run left out; never after a rollback"
    )


@dataclass(frozen=True)
class Check:
    """One condition of the rule."""

    name: str
    passed: bool
    reason: str

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'fail'}: {self.reason}"


@dataclass(frozen=True)
class Standing:
    """The values by which a model is compared.

    Attributes:
        questions: digest of the questions it was asked; None when that is not known.
        count: how many of them were scored.
        error: one standard error of the accuracy.
        loss: of the right answers, in nats; None where it was not measured.
        answers: question by question; None where that is not known.
    """

    method: str
    ratio: float
    questions: str | None
    count: float | None
    accuracy: float | None
    error: float | None
    loss: float | None
    answers: Answers | None = None

    @classmethod
    def of(cls, record: ModelRecord) -> Standing:
        """Of a model of this run."""
        return cls(
            record.method,
            record.ratio,
            record.questions,
            record.metric("n"),
            record.metric("accuracy"),
            record.metric("standard_error"),
            record.metric("answer_nll"),
            record.answers,
        )

    @property
    def merit(self) -> tuple[float, float]:
        """The higher, the better: accuracy, then the answer loss."""
        loss = inf if self.loss is None else self.loss
        return (-inf if self.accuracy is None else self.accuracy), -loss


def same_ratio(one: float, other: float) -> bool:
    """Whether two target ratios are the same number."""
    return abs(one - other) < 1e-9


def candidates(records: Iterable[ModelRecord], ratio: float) -> list[ModelRecord]:
    """The run's pruned models at the target ratio that were evaluated, the best one first."""
    found = [
        record
        for record in records
        if record.method != DENSE
        and same_ratio(record.ratio, ratio)
        and record.metric("accuracy") is not None
    ]
    return sorted(found, key=lambda record: Standing.of(record).merit, reverse=True)


def own_checks(record: ModelRecord, rule: TrackingParameters) -> list[Check]:
    """The checks of a candidate by itself."""
    known = {"verified": verified, "parity": parity}
    return [known[name](record) for name in rule.promote_requires]


def verified(record: ModelRecord) -> Check:
    """Whether the checkpoint's record is there and follows its policy.

    Stage `prune` writes it after it has loaded the checkpoint again and compared it.
    """
    reason = record.pruning_fault or "pruning.json follows the policy"
    return Check("verified", record.pruning_fault is None, reason)


def parity(record: ModelRecord) -> Check:
    """Whether the exported model gave PyTorch's tokens, within the tolerance."""
    match = record.metric("tokens_match")
    beyond = [
        name.split(".")[1]
        for name, value in record.metrics.items()
        if name.startswith("export/runtimes.") and name.endswith(".within_tolerance") and not value
    ]
    if match is None:
        reason = "no export of it was compared with PyTorch"
    elif beyond:
        reason = f"logits of {', '.join(beyond)} are beyond the tolerance"
    elif not match:
        reason = "exported graphs or packed weights gave other tokens than PyTorch"
    else:
        reason = "every runtime gave PyTorch's tokens"
    return Check("parity", bool(match) and not beyond, reason)


def comparison_checks(
    candidate: Standing, holder: Standing, methods: Iterable[str], rule: TrackingParameters
) -> list[Check]:
    """The checks of a candidate against the standing champion.

    Args:
        methods: of the run that made the candidate.
    """
    same = same_ratio(candidate.ratio, holder.ratio)
    checks = [
        Check("ratio", same, f"{candidate.ratio:g}, the champion's is {holder.ratio:g}"),
        _questions(candidate, holder),
    ]
    if not all(check.passed for check in checks):
        return checks  # nothing further can be compared
    checks += [_accuracy(candidate, holder, rule), _answer_loss(candidate, holder, rule)]
    if holder.method not in methods and candidate.merit < holder.merit:
        checks.append(
            Check(
                "complete run",
                False,
                f"the run left out {holder.method}, the champion's method, and its best model is "
                f"{_below(candidate, holder)}",
            )
        )
    return checks


def _below(candidate: Standing, holder: Standing) -> str:
    if candidate.accuracy == holder.accuracy:
        return "as accurate with a higher answer loss"
    return "less accurate"


def _questions(candidate: Standing, holder: Standing) -> Check:
    if holder.questions is None or holder.accuracy is None:
        return Check(
            "questions",
            False,
            "it is not known on which questions the champion was evaluated, or how well it did",
        )
    if candidate.count != holder.count:
        counts = (
            f"evaluated on {_number(candidate.count)} questions, "
            f"the champion on {_number(holder.count)}"
        )
        return Check("questions", False, counts)
    same = candidate.questions == holder.questions
    which = "the same questions as" if same else "other questions than"
    return Check("questions", same, f"evaluated on {which} the champion")


def _accuracy(candidate: Standing, holder: Standing, rule: TrackingParameters) -> Check:
    difference = None
    if candidate.answers and holder.answers:
        difference = paired(candidate.answers.right, holder.answers.right)
    if difference is None:
        difference = independent(
            [candidate.accuracy or 0.0, holder.accuracy or 0.0],
            [candidate.error or 0.0, holder.error or 0.0],
        )
    passed = difference.value >= -rule.promote_errors * difference.error - 1e-12
    reason = (
        f"{100 * (candidate.accuracy or 0.0):.2f} %, the champion's "
        f"{100 * (holder.accuracy or 0.0):.2f} %: {_told(difference, 100.0, ' points')}"
    )
    return Check("accuracy", passed, reason)


def _answer_loss(candidate: Standing, holder: Standing, rule: TrackingParameters) -> Check:
    if candidate.loss is None or holder.loss is None:
        return Check("answer loss", True, "not measured of both")
    difference = None
    if candidate.answers and holder.answers:
        difference = paired(candidate.answers.loss, holder.answers.loss)
    difference = difference or Difference(candidate.loss - holder.loss, 0.0)
    passed = difference.value <= rule.promote_errors * difference.error + 1e-12
    reason = (
        f"{candidate.loss:.4f} nats, the champion's {holder.loss:.4f}: "
        f"{_told(difference, 1.0, ' nats')}"
    )
    return Check("answer loss", passed, reason)


def _told(difference: Difference, scale: float, unit: str) -> str:
    value = f"{scale * difference.value:+.3f} ± {scale * difference.error:.3f}{unit}"
    return f"{value}, {'question by question' if difference.n else 'not paired'}"


def failures(checks: Sequence[Check]) -> str:
    """The failed checks, in one line."""
    return "; ".join(f"{check.name}: {check.reason}" for check in checks if not check.passed)


def table(rows: Iterable[tuple[str, str, Sequence[Check]]]) -> list[dict[str, str]]:
    """Pass and fail by model, version and check, for a table."""
    return list(
        chain.from_iterable(
            (
                {
                    "model": cell,
                    "version": version,
                    "check": check.name,
                    "result": "pass" if check.passed else "fail",
                    "reason": check.reason,
                }
                for check in checks
            )
            for cell, version, checks in rows
        )
    )


def _number(count: float | None) -> str:
    return "an unknown number of" if count is None else f"{count:g}"
