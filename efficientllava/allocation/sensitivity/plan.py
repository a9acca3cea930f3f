"""The steps of an allocation by sensitivity on an open model; each one resumes from its files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efficientllava.allocation.sensitivity.choice import Choice, Policy, Scored
from efficientllava.allocation.sensitivity.costs import Gradients, corrected_costs
from efficientllava.allocation.sensitivity.seeds import Budget
from efficientllava.allocation.sensitivity.swaps import Swaps
from efficientllava.calibration.sample_losses import DenseReference, difference
from efficientllava.files import value_digest
from efficientllava.parameters import SensitivityParameters
from efficientllava.progress import Event

WEIGHTS = (0.5, 1.0)
"""Of the squared term of a correction: what the second order says, and twice that."""


@dataclass
class Plan:
    """Choice, corrections and swaps of one model at one ratio.

    Attributes:
        gradients: where corrections come from.
        choice: where policies are compared.
        fresh: dense references for the generations of swaps; empty for those of the choice.
        folder: of everything that is finished.
        deadline: `time.monotonic()` after which no step begins; None for no limit.
    """

    gradients: Gradients
    choice: Choice
    fresh: Sequence[DenseReference]
    budget: Budget
    parameters: SensitivityParameters
    folder: Path
    deadline: float | None = None

    def corrected(self) -> None:
        """Correct the best policy so far; again while that gains more than its error."""
        model, longest = self.choice.models[0], 0.0
        for number in range(1, self.parameters.corrections + 1):
            began, best = time.monotonic(), self.choice.best
            if self.is_late(longest):
                return
            folder = self.folder / f"correction-{value_digest(best.policy)[:16]}"
            model.stitch([self.budget.levels[index] for index in best.policy])
            # sums come from the files for the second weight
            costs = [self._costs_at(best.policy, weight, folder) for weight in WEIGHTS]
            name = f"corrected {number}"
            self.choice(
                [
                    (f"{name}, weight {weight:g}", self.budget.cheapest(cost))
                    for weight, cost in zip(WEIGHTS, costs, strict=True)
                ]
            )
            longest = max(longest, time.monotonic() - began)
            gain = self.choice.best.against(best)
            self._report("correction", number, self.parameters.corrections, gain.mean, gain.error)
            if not gain.better:
                return

    def _costs_at(self, policy: Policy, weight: float, folder: Path) -> np.ndarray:
        return corrected_costs(
            self.gradients, policy, self.budget.levels, self.parameters.trust, weight, folder
        )

    def swapped(self, costs: np.ndarray) -> None:
        """Search on from the best policy by budget-neutral swaps, until nothing is gained."""
        parameters, parent, idle, longest = self.parameters, self.choice.best, 0, 0.0
        swaps = Swaps.of(costs, self.budget.levels, self.budget.sizes)
        for number in range(1, parameters.generations + 1):
            began = time.monotonic()
            if idle == parameters.patience or self.is_late(longest):
                break
            seed = f"{parameters.seed}/swaps/{number}"
            children = swaps.children(parent.policy, parameters.offspring, seed)
            if not children:
                break
            references = self.fresh or [self.choice.reference]
            reference = references[(number - 1) % len(references)]
            losses = self.choice.losses(reference, [parent.policy, *children])
            apart = [difference(loss, losses[0]) for loss in losses[1:]]
            order = sorted(range(len(children)), key=lambda index: (apart[index].mean, index))
            best = apart[order[0]]
            idle = 0 if best.better else idle + 1
            if best.better:
                (parent,) = self.choice([(f"swapped {number}", children[order[0]])])
            longest = max(longest, time.monotonic() - began)
            self._report("generation", number, parameters.generations, best.mean, best.error)

    def is_late(self, longest: float) -> bool:
        """Whether a step as long as the longest before would end after the deadline."""
        return self.deadline is not None and time.monotonic() + longest > self.deadline

    def _report(self, name: str, done: int, total: int, gain: float, error: float) -> None:
        self.choice.progress(Event(name, done, total, {"difference": gain, "error": error}))

    def survivors(self, count: int) -> list[Scored]:
        """The best policies, best first."""
        return sorted(self.choice.scored.values(), key=lambda scored: scored.kl)[:count]
