"""Allocation by sensitivity, from a context: one knapsack, or all of `efficientllava_plus`."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from efficientllava.allocation.context import Allocation, Context, Risk
from efficientllava.allocation.gradients.samples import Samples, split
from efficientllava.allocation.scoring.evaluation import stitched_models
from efficientllava.allocation.search.algorithm import require_pairs
from efficientllava.allocation.sensitivity.choice import Choice, Policy, Scored
from efficientllava.allocation.sensitivity.costs import Gradients, output_errors, sensitivities
from efficientllava.allocation.sensitivity.evolved import evolve_projector
from efficientllava.allocation.sensitivity.plan import Plan
from efficientllava.allocation.sensitivity.seeds import Budget, simple_policies
from efficientllava.allocation.unfinished import unfinished
from efficientllava.calibration.sample_losses import DenseReference, warn_of_few
from efficientllava.calibration.structural_risk import COMPLEXITIES, structural_risk
from efficientllava.data.proxy import ProxyData, batches
from efficientllava.database.offloaded import Machine, Offloaded, offloaded
from efficientllava.database.solutions import level_key, open_database
from efficientllava.files import value_digest
from efficientllava.offload.devices import open_device
from efficientllava.parameters import SearchParameters

logger = logging.getLogger(__name__)

Costs = Literal["sensitivity", "output_error", "plus"]
UNDECISIVE = {"corrections", "generations", "patience", "projector_rounds"}
"""Parameters that say how far a search goes and not what its steps do: finished steps stay."""


def allocated(
    context: Context, search: SearchParameters, kind: Costs, by_importance: bool = False
) -> Allocation:
    """Ratios of every matrix by its sensitivity.

    Args:
        search: `band`, `complexity`, `eta`, `fitness_data`, `max_seconds` and what the projector
            needs.
        kind: "sensitivity" and "output_error": one exact knapsack, of Fisher costs or of relative
            output errors. "plus": seeds, costs, corrections and swaps, chosen by the KL divergence
            on other tokens; then the projector moves for the best.
        by_importance: see `Context.database_folders`.

    Raises:
        UserError: no policy meets the budget; the model does not fit on the device; gradients
            overflow.
    """
    started, parameters = time.monotonic(), context.parameters
    levels = parameters.wide_levels(context.ratio)
    every = (parameters.wide_levels(ratio) for ratio in parameters.ratios)
    others = {level for each in every for level in each}
    folders = context.database_folders(levels, others, by_importance)
    machine, sensitivity = parameters.machine, parameters.sensitivity
    with offloaded(
        context.model,
        open_database(folders, levels),
        context.proxy,
        Machine(open_device(machine.device), machine.device_memory),
        context.work,
        search.projector_batch if search.evolve_projector else 0,
        gradient_checkpointing=True,
        gradient_tokens=sensitivity.tokens,
    ) as found:
        if search.evolve_projector and found.adapter.projector is not None and kind == "plus":
            require_pairs(0 if context.proxy.pairs is None else len(context.proxy.pairs))
        torch.set_num_threads(machine.threads)
        key = {
            "database": context.database_key(by_importance),
            "levels": levels,
            "ratio": context.ratio,
            "data": search.fitness_data,
            "band": list(search.band),
            "owl": parameters.allocation.outlier_threshold,
            "sensitivity": sensitivity.model_dump(mode="json", exclude=UNDECISIVE),
        }
        folder = unfinished(context.work, "sensitivity", machine) / value_digest(key)[:16]
        work = _Allocator(context, search, levels, found, folder, started)
        if kind != "plus":
            return work.one_knapsack(kind)
        return work.compare_and_correct()


@dataclass(frozen=True)
class _Allocator:
    context: Context
    search: SearchParameters
    levels: list[float]
    found: Offloaded
    folder: Path
    started: float

    @property
    def budget(self) -> Budget:
        band = self.search.band
        ratio = round(self.context.ratio, 4)
        # with a band around 0 exactly the target's zeros, where the levels can meet them
        lowest = ratio if band[0] <= 0.0 <= band[1] else ratio + band[0]
        return Budget(self.levels, self.found.adapter.sizes, lowest, ratio + band[1])

    def one_knapsack(self, kind: Literal["sensitivity", "output_error"]) -> Allocation:
        if kind == "sensitivity":
            costs = self._sensitivities(self._gradients())
        else:
            costs = output_errors(self.found.database, self.found.adapter, self.levels)
        policy = self.budget.cheapest(costs)
        summary = {"mean_sparsity": self.budget.mean(policy)} | _range(self._ratios(policy))
        return Allocation(self._named(policy), kind, summary=summary, levels=self.levels)

    def compare_and_correct(self) -> Allocation:
        parameters, budget = self.context.parameters, self.budget
        # everything that is remembered of the dense model, before a weight changes
        gradients, choice = self._gradients(), self._choice()
        fresh = self._fresh() if parameters.sensitivity.generations else []
        proposals = simple_policies(
            self.found.adapter,
            ProxyData(self._samples.gradients.segments, None),
            budget,
            parameters.obs,
            parameters.allocation.outlier_threshold,
        )
        costs = self._sensitivities(gradients)
        proposals.append((parameters.sensitivity.form, budget.cheapest(costs)))
        evolve = evolve_projector(self.context, self.search, self.found, self.folder)
        uniform = choice(proposals)[0]
        limit = self.search.max_seconds
        deadline = None if limit is None else self.started + limit
        plan = Plan(gradients, choice, fresh, budget, parameters.sensitivity, self.folder, deadline)
        plan.corrected()
        plan.swapped(costs)
        projector, moved = evolve(plan)
        return self._allocation(choice, uniform, choice.best, projector, moved)

    @cached_property
    def _samples(self) -> Samples:
        sensitivity = self.context.parameters.sensitivity
        return split(self.context.proxy, sensitivity, self.search.fitness_data)

    def _reference(self, proxy: ProxyData) -> DenseReference:
        data, progress = self.search.fitness_data, self.context.progress
        return DenseReference(self.found.adapter, proxy, data, progress)

    def _gradients(self) -> Gradients:
        found, seed = self.found, self.context.parameters.sensitivity.seed
        return Gradients(
            found.adapter,
            self._reference(self._samples.gradients),
            found.database,
            found.blocks is not None,
            seed,
            self.context.progress,
        )

    def _sensitivities(self, gradients: Gradients) -> np.ndarray:
        form = self.context.parameters.sensitivity.form
        return sensitivities(gradients, form, self.levels, self.folder)

    def _choice(self) -> Choice:
        found, machine = self.found, self.context.parameters.machine
        reference = self._reference(self._samples.choice)
        warn_of_few(int(reference.dense.positions.sum()), "policies are compared")
        if len(self.context.proxy.segments) == 1:
            logger.warning("costs and choice rest on the same tokens: give more text segments")
        # one candidate fills a GPU
        alone = found.adapter.device.type != "cpu" or found.blocks is not None
        return Choice(
            stitched_models(
                found.adapter, found.database, 1 if alone else machine.workers, found.blocks
            ),
            reference,
            self.levels,
            self.folder / "scores",
            machine.threads,
            self.context.progress,
        )

    def _fresh(self) -> list[DenseReference]:
        """Text that neither costs nor choice see, a batch a generation."""
        used = len(self._samples.gradients.segments) + len(self._samples.choice.segments)
        left = self.context.proxy.segments[used:]
        return [self._reference(ProxyData(left[rows], None)) for rows in batches(*left.shape)]

    def _allocation(
        self,
        choice: Choice,
        uniform: Scored,
        best: Scored,
        projector: dict[str, torch.Tensor],
        moved: int,
    ) -> Allocation:
        apart = best.against(uniform)
        risks = {
            name: self._risk(scored) for name, scored in (("best", best), ("uniform", uniform))
        }
        summary: dict[str, Any] = {
            "best_loss": best.kl,
            "uniform_loss": uniform.kl,
            "best_risk": risks["best"][1],
            "uniform_risk": risks["uniform"][1],
            "best_complexity": risks["best"][0],
            # no policy is measured again when the projector has moved
            "uniform_risk_final_projector": risks["uniform"][1],
            "uniform_loss_final_projector": uniform.kl,
            "lowest_mean_sparsity": min(map(self.budget.mean, choice.scored)),
            "highest_mean_sparsity": max(map(self.budget.mean, choice.scored)),
            "rounds": len(choice.scored),
            "mean_sparsity": self.budget.mean(best.policy),
            "candidates": len(choice.scored),
            "projector_rounds_kept": moved,
            "best_origin": best.origin,
        }
        gain = {
            "uniform_kl": uniform.kl,
            "kl": best.kl,
            "difference": apart.mean,
            "positions": int(choice.reference.dense.positions.sum()),
            "compared": len(choice.scored),
            "uniform_ratios": len(set(uniform.policy)),
            "uniform_zeros": self._zeros(uniform.policy),
            "zeros": self._zeros(best.policy),
        }
        if isfinite(apart.error):
            gain["error"] = apart.error
        history = [
            self._row(number, scored) for number, scored in enumerate(choice.scored.values())
        ]
        return Allocation(
            self._named(best.policy),
            "sensitivity",
            projector,
            history,
            summary | _range(self._ratios(best.policy)),
            Risk(self.search.complexity, self.search.eta, decides=False),
            self.levels,
            gain,
        )

    def _row(self, number: int, scored: Scored) -> dict[str, Any]:
        complexity, risk = self._risk(scored)
        return {
            "round": number + 1,
            "index": 0,
            "origin": scored.origin,
            "mean_sparsity": self.budget.mean(scored.policy),
            "loss": scored.kl,
            "complexity": complexity,
            "risk": risk,
            "decided_by": "loss",
            "projector": 0,
            "policy": self._ratios(scored.policy),
        }

    def _risk(self, scored: Scored) -> tuple[float, float]:
        """Complexity and structural risk: recorded, they decide nothing here."""
        norms = [
            self.found.database.norm_ratio(matrix.name, self.levels[level])
            for matrix, level in zip(self.found.adapter.matrices, scored.policy, strict=True)
        ]
        complexity = COMPLEXITIES[self.search.complexity](norms)
        return complexity, structural_risk(scored.kl, complexity, self.search.eta)

    def _zeros(self, policy: Policy) -> float:
        """The share of zeros of a stitched policy; a matrix may have more than its ratio says."""
        records = self.found.database.manifest["matrices"]
        zeros = (
            records[name]["levels"][level_key(level)]["zeros"]
            for name, level in self._named(policy).items()
        )
        return float(sum(zeros) / sum(self.found.adapter.sizes))

    def _ratios(self, policy: Policy) -> list[float]:
        return [self.levels[index] for index in policy]

    def _named(self, policy: Policy) -> dict[str, float]:
        names = [matrix.name for matrix in self.found.adapter.matrices]
        return dict(zip(names, self._ratios(policy), strict=True))


def _range(ratios: list[float]) -> dict[str, float]:
    return {"lowest_ratio": min(ratios), "highest_ratio": max(ratios)}
