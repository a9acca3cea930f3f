"""Allocation by sensitivity, from a context: one knapsack, or all of `efficientllava_plus`."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import torch

from efficientllava.allocation.context import Allocation, Context, Risk
from efficientllava.allocation.gradients.samples import Samples, split
from efficientllava.allocation.scoring.evaluation import stitched_models
from efficientllava.allocation.search.algorithm import require_pairs
from efficientllava.allocation.sensitivity.choice import Choice, Policy, Scored
from efficientllava.allocation.sensitivity.costs import Gradients
from efficientllava.allocation.sensitivity.evolved import evolve_projector
from efficientllava.allocation.sensitivity.plan import Plan
from efficientllava.allocation.sensitivity.seeds import Budget, simple_policies
from efficientllava.allocation.unfinished import unfinished
from efficientllava.calibration.sample_losses import DenseReference, warn_of_few
from efficientllava.calibration.structural_risk import COMPLEXITIES, structural_risk
from efficientllava.data.proxy import ProxyData
from efficientllava.database.offloaded import Machine, Offloaded, offloaded
from efficientllava.database.solutions import open_database
from efficientllava.files import value_digest
from efficientllava.offload.devices import open_device
from efficientllava.parameters import SearchParameters

logger = logging.getLogger(__name__)

Costs = Literal["sensitivity", "output_error", "plus"]
SURVIVORS = 4
"""Policies for which the projector moves."""
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
        work = _Work(context, search, levels, found, folder, started)
        if kind != "plus":
            return work.single(kind)
        return work.whole()


@dataclass(frozen=True)
class _Work:
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
        # at equal zeros: a band that lies above the target leaves it where levels can meet it
        lowest = ratio if band[0] <= 0.0 <= band[1] else ratio + band[0]
        return Budget(self.levels, self.found.adapter.sizes, lowest, ratio + max(band[1], 0.0))

    def single(self, kind: Literal["sensitivity", "output_error"]) -> Allocation:
        plan = self._plan(compares=False)
        costs = plan.costs() if kind == "sensitivity" else plan.errors()
        policy = self.budget.cheapest(costs)
        summary = {"mean_sparsity": self.budget.mean(policy)} | _range(self._ratios(policy))
        return Allocation(self._named(policy), kind, summary=summary, levels=self.levels)

    def whole(self) -> Allocation:
        parameters = self.context.parameters
        plan = self._plan(compares=True)
        budget, choice = self.budget, plan.choice
        proposals = simple_policies(
            self.found.adapter,
            ProxyData(self._samples.gradients.segments, None),
            budget,
            parameters.obs,
            parameters.allocation.outlier_threshold,
        )
        costs = plan.costs()
        proposals.append((parameters.sensitivity.form, budget.cheapest(costs)))
        # the projector's targets are the dense model's, too
        evolve = evolve_projector(self.context, self.search, self.found, self.folder)
        uniform = choice(proposals)[0]
        plan.corrected()
        plan.swapped(costs)
        best = choice.best
        projector, moved = evolve(choice.models[0], self.levels, plan.survivors(SURVIVORS))
        return self._allocation(choice, uniform, best, projector, moved)

    @cached_property
    def _samples(self) -> Samples:
        sensitivity = self.context.parameters.sensitivity
        return split(self.context.proxy, sensitivity, self.search.fitness_data)

    def _plan(self, compares: bool) -> Plan:
        """Everything that is remembered of the dense model, before a weight changes."""
        context, found, progress = self.context, self.found, self.context.progress
        parameters, machine = context.parameters.sensitivity, context.parameters.machine
        samples = self._samples
        adapter, data = found.adapter, self.search.fitness_data
        reference = DenseReference(adapter, samples.gradients, data, progress)
        streamed = found.blocks is not None
        gradients = Gradients(
            adapter, reference, found.database, streamed, parameters.seed, progress
        )
        other = DenseReference(
            adapter, samples.choice if compares else _nothing(samples), data, progress
        )
        fresh = self._fresh(samples) if compares and parameters.generations else []
        # one candidate fills a GPU
        count = machine.workers if adapter.device.type == "cpu" and not streamed else 1
        if compares:
            warn_of_few(int(other.dense.positions.sum()), "policies are compared")
            if len(context.proxy.segments) == 1:
                logger.warning("costs and choice rest on the same tokens: give more text segments")
        choice = Choice(
            stitched_models(adapter, found.database, count if compares else 1, found.blocks),
            other,
            self.levels,
            self.folder / "scores",
            machine.threads,
            progress,
        )
        limit = self.search.max_seconds
        deadline = None if limit is None else self.started + limit
        return Plan(gradients, choice, fresh, self.budget, parameters, self.folder, deadline)

    def _fresh(self, samples: Samples) -> list[DenseReference]:
        """Text that neither costs nor choice see, a batch a generation."""
        used = len(samples.gradients.segments) + len(samples.choice.segments)
        left = self.context.proxy.segments[used:]
        if not len(left):
            return []
        reference = DenseReference(
            self.found.adapter, ProxyData(left, None), "text", self.context.progress
        )
        return [reference.part([index]) for index in range(len(reference.batches))]

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

    def _ratios(self, policy: Policy) -> list[float]:
        return [self.levels[index] for index in policy]

    def _named(self, policy: Policy) -> dict[str, float]:
        names = [matrix.name for matrix in self.found.adapter.matrices]
        return dict(zip(names, self._ratios(policy), strict=True))


def _range(ratios: list[float]) -> dict[str, float]:
    return {"lowest_ratio": min(ratios), "highest_ratio": max(ratios)}


def _nothing(samples: Samples) -> ProxyData:
    """One segment, for a plan that compares nothing."""
    return replace(samples.choice, segments=samples.choice.segments[:1], pairs=None)
