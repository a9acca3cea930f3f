"""Which of the pruned models is the champion: a rule, apart from whoever keeps the alias."""

from __future__ import annotations

from collections.abc import Iterable

from flows.tracking.record import DENSE, ModelRecord

CHAMPION = "champion"


def champion_rule(ratio: str) -> str:
    """The rule, in words."""
    return (
        f"the most accurate pruned model at {ratio} among those of the last pipeline run; "
        "of equals the one with the lower answer loss"
    )


def champion(records: Iterable[ModelRecord], ratio: float) -> ModelRecord | None:
    """The model that `champion_rule` chooses; None when no model qualifies."""
    candidates = [
        record
        for record in records
        if record.method != DENSE
        and abs(record.ratio - ratio) < 1e-9
        and record.metric("accuracy") is not None
    ]

    def merit(record: ModelRecord) -> tuple[float, float]:
        loss = record.metric("answer_nll")
        return record.metric("accuracy") or 0.0, -(float("inf") if loss is None else loss)

    return max(candidates, key=merit, default=None)
