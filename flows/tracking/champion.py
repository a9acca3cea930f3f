"""The rule that chooses the champion among the pruned models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from efficientllava.parameters import Parameters
from flows.tracking.record import DENSE, ModelRecord

CHAMPION = "champion"


def target_ratio(parameters: Parameters) -> float:
    """The ratio at which a model can be champion: `tracking.champion_ratio`."""
    target = parameters.tracking.champion_ratio
    return parameters.ratios[0] if target is None else target


def champion_rule(ratio: str) -> str:
    """The rule, in words."""
    return (
        f"the most accurate pruned model at {ratio} among those of the last pipeline run; "
        "of equals the one with the lower answer loss; it takes the place of a champion only at "
        "the same ratio, evaluated on the same questions, and when it is not below it"
    )


@dataclass(frozen=True)
class Standing:
    """The values by which a model is compared.

    Attributes:
        questions: digest of the questions it was asked; None when that is not known.
        count: how many of them were scored.
        loss: of the right answers, in nats; None where it was not measured.
    """

    ratio: float
    questions: str | None
    count: float | None
    accuracy: float | None
    loss: float | None

    @classmethod
    def of(cls, record: ModelRecord) -> Standing:
        """Of a model of this run."""
        return cls(
            record.ratio,
            record.questions,
            record.metric("n"),
            record.metric("accuracy"),
            record.metric("answer_nll"),
        )

    @property
    def merit(self) -> tuple[float, float]:
        """The higher, the better: accuracy, then the answer loss."""
        loss = float("inf") if self.loss is None else self.loss
        return (float("-inf") if self.accuracy is None else self.accuracy), -loss


def same_ratio(one: float, other: float) -> bool:
    """Whether two target ratios are the same number."""
    return abs(one - other) < 1e-9


def champion(records: Iterable[ModelRecord], ratio: float) -> ModelRecord | None:
    """The best of a run's models by `champion_rule`; None when no model qualifies."""
    candidates = [
        record
        for record in records
        if record.method != DENSE
        and same_ratio(record.ratio, ratio)
        and record.metric("accuracy") is not None
    ]
    return max(candidates, key=lambda record: Standing.of(record).merit, default=None)


def obstacle(challenger: Standing, holder: Standing) -> str | None:
    """Why a model may not take the champion's place, in words; None when it may."""
    if not same_ratio(challenger.ratio, holder.ratio):
        return f"its ratio is {challenger.ratio:g}, the champion's {holder.ratio:g}"
    if holder.questions is None or holder.accuracy is None:
        return "it is not known on which questions the champion was evaluated, or how well it did"
    if challenger.count != holder.count:
        return (
            f"it was evaluated on {_number(challenger.count)} questions, "
            f"the champion on {_number(holder.count)}"
        )
    if challenger.questions != holder.questions:
        return "it was evaluated on other questions than the champion"
    if challenger.merit >= holder.merit:
        return None
    if challenger.accuracy == holder.accuracy:
        return "it is as accurate as the champion and its answer loss is higher"
    return f"its accuracy is {challenger.accuracy:.4f}, the champion's {holder.accuracy:.4f}"


def _number(count: float | None) -> str:
    return "an unknown number of" if count is None else f"{count:g}"
