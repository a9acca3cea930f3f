"""Algorithm 1: search a pruning policy and evolve the projector, round by round."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from efficientllava.allocation.scoring.evaluation import (
    CandidateEvaluator,
    Evaluator,
    StitchedModel,
    stitched_models,
)
from efficientllava.allocation.search.evolution import Candidate, survivors
from efficientllava.allocation.search.policy import MatrixPolicies, policy_space
from efficientllava.allocation.search.projector import ProjectorEvolution, recomputes_blocks
from efficientllava.allocation.search.rounds import Rounds, SearchGoal, SearchInputs
from efficientllava.allocation.search.state import SearchState
from efficientllava.calibration.proxy_loss import ProxyLoss, pair_loss_batches, remember_dense
from efficientllava.calibration.working_set import Tokens
from efficientllava.errors import UserError
from efficientllava.files import value_digest
from efficientllava.models.families import Adapter
from efficientllava.parameters import MachineParameters
from efficientllava.progress import Progress, silent

logger = logging.getLogger(__name__)

NO_PROJECTOR = "off: the model has no projector"

NOTHING_VARIES = (
    "nothing: there is one level, so every matrix has the same ratio (a search mixes n:m patterns "
    "that obs.patterns names)"
)

UNDECISIVE = {"rounds", "max_seconds", "patience"}
"""Search parameters that do not change what a round does: work of other values is continued."""


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        policy: ratio per prunable matrix, by name.
        projector: the evolved projector's state; empty where the model has none.
        history: every evaluated candidate, in order.
        rounds: one record of each round.
        summary: best and uniform risks and counts; no times.
    """

    policy: dict[str, float]
    projector: dict[str, torch.Tensor]
    history: list[Candidate]
    rounds: list[dict[str, Any]]
    summary: dict[str, Any]


class Search:
    """One search at one target ratio.

    Args:
        inputs: its adapter's language model and projector are changed in place.
        goal: a model without a projector is searched without projector evolution, and the summary
            says so.
        machine: how many candidates side by side, with how many threads; gradient checkpointing.
        work: folder of unfinished searches; rounds found there under the same key are not run
            again.
        identity: digests (model, proxy, code) that decide whether unfinished work still counts.
        make_evaluator: given the work folder, makes what scores candidates in place of this
            process.

    Raises:
        UserError: no policy meets the budget; the projector is to evolve without image-text pairs.
    """

    def __init__(
        self,
        inputs: SearchInputs,
        goal: SearchGoal,
        machine: MachineParameters,
        work: Path,
        identity: dict[str, Any],
        progress: Progress = silent,
        make_evaluator: Callable[[Path], Evaluator] | None = None,
    ) -> None:
        self.inputs, self.goal, self.machine = inputs, _without_projector(inputs, goal), machine
        self.progress, self.make_evaluator = progress, make_evaluator
        self.policies = _policies(inputs.adapter, self.goal)
        if len(goal.levels) == 1:
            logger.warning("the search varies %s", NOTHING_VARIES)
        parameters = self.goal.parameters
        key = {
            "search": parameters.model_dump(mode="json", exclude=UNDECISIVE),
            "ratio": goal.ratio,
            "levels": list(goal.levels),
            "upper_bound": goal.upper_bound,
            **identity,
        }
        self.work = Path(work) / value_digest(key)[:16]

    def run(self, started: float | None = None) -> SearchResult:
        """Search until the last round, `max_seconds`, or no gain for `patience` rounds.

        Args:
            started: `time.monotonic()` from which `max_seconds` counts, set-up included; None for
                now. A round that would end later, judged by the longest before it, is not begun.
        """
        started = time.monotonic() if started is None else started
        parameters, state = self.goal.parameters, SearchState()
        torch.set_num_threads(self.machine.threads)
        loss = self._loss()
        models = self._models()
        # the projector is moved through the first worker's model, when the others rest
        evolution = self._evolution(loss, models[0], state)
        with closing(self._evaluator(models, loss)) as evaluator:
            rounds = Rounds(
                self.inputs, self.goal, self.policies, state, evaluator, evolution, self.progress
            )
            longest, limit = 0.0, parameters.max_seconds
            for number in range(1, parameters.rounds + 1):
                if not rounds.resume(self.work, number):
                    begun = time.monotonic()
                    # the first round gives a result at all
                    if limit is not None and number > 1 and begun - started + longest > limit:
                        break
                    rounds.run(number)
                    state.keep(self.work, number, self.inputs.adapter.projector_state)
                    longest = max(longest, time.monotonic() - begun)
                rounds.report(number)
                if state.has_settled(parameters.patience):
                    break
        return self._result(state)

    def _loss(self) -> ProxyLoss:
        parameters = self.goal.parameters
        return ProxyLoss(
            self.inputs.adapter,
            self.inputs.proxy,
            parameters.fitness,
            parameters.fitness_data,
            parameters.kl_tokens,
        )

    def _models(self) -> list[StitchedModel]:
        """One model per worker of this process."""
        inputs = self.inputs
        # one candidate fills a GPU
        alone = self.make_evaluator is not None or inputs.adapter.device.type != "cpu"
        count = 1 if alone else self.machine.workers
        return stitched_models(inputs.adapter, inputs.database, count, inputs.blocks)

    def _evaluator(self, models: list[StitchedModel], loss: ProxyLoss) -> Evaluator:
        if self.make_evaluator is not None:
            return self.make_evaluator(self.work)
        return CandidateEvaluator(models, loss, self.machine.threads)

    def _evolution(
        self, loss: ProxyLoss, model: StitchedModel, state: SearchState
    ) -> ProjectorEvolution | None:
        adapter, proxy = self.inputs.adapter, self.inputs.proxy
        if not self.goal.parameters.evolve_projector:
            return None
        assert proxy.pairs is not None
        dense = remember_dense(adapter, loss.head, pair_loss_batches(adapter, proxy))
        return ProjectorEvolution(
            adapter,
            proxy.pairs,
            lambda index: model.stitch(self.policies.ratios(state.population[index].genes)),
            dense,
            self.goal.parameters,
            recomputes_blocks(
                adapter,
                Tokens.of(proxy, self.goal.parameters.projector_batch),
                self.machine,
                self.inputs.blocks is not None,
            ),
        )

    def _result(self, state: SearchState) -> SearchResult:
        adapter = self.inputs.adapter
        best = survivors(state.archive.values(), 1)[0]
        uniform = self.policies.space.uniform(self.goal.ratio)
        first = next((c for c in state.history if c.genes == uniform), None)
        final = state.archive.get(uniform, first)
        ratios = self.policies.ratios(best.genes)
        policy = {m.name: level for m, level in zip(adapter.matrices, ratios, strict=True)}
        projector = {name: value.clone() for name, value in adapter.projector_state.items()}
        summary: dict[str, Any] = {
            "best_risk": best.risk,
            "best_loss": best.loss,
            "best_complexity": best.complexity,
            "mean_sparsity": best.mean_sparsity,
            "uniform_risk": None if first is None else first.risk,
            "uniform_loss": None if first is None else first.loss,
            "uniform_risk_final_projector": None if final is None else final.risk,
            "uniform_loss_final_projector": None if final is None else final.loss,
            "lowest_mean_sparsity": min(c.mean_sparsity for c in state.history),
            "highest_mean_sparsity": max(c.mean_sparsity for c in state.history),
            "rounds": len(state.rounds),
            "candidates": len(state.history),
            "projector_rounds_kept": state.projector,
        }
        if len(self.goal.levels) == 1:
            summary["varied"] = NOTHING_VARIES
        if adapter.projector is None:
            summary["projector_evolution"] = NO_PROJECTOR
        return SearchResult(policy, projector, state.history, state.rounds, summary)


def _without_projector(inputs: SearchInputs, goal: SearchGoal) -> SearchGoal:
    """The goal, without projector evolution where the model has no projector."""
    if inputs.adapter.projector is None and goal.parameters.evolve_projector:
        logger.warning("search.evolve_projector is %s", NO_PROJECTOR)
        unevolved = goal.parameters.model_copy(update={"evolve_projector": False})
        goal = replace(goal, parameters=unevolved)
    if goal.parameters.evolve_projector:
        require_pairs(0 if inputs.proxy.pairs is None else len(inputs.proxy.pairs))
    return goal


def _policies(adapter: Adapter, goal: SearchGoal) -> MatrixPolicies:
    """The policies in the budget: one gene per matrix, or one per block."""
    by_block = goal.parameters.granularity == "block"
    gene_of = [matrix.block if by_block else index for index, matrix in enumerate(adapter.matrices)]
    sizes = [0] * (max(gene_of) + 1)
    for gene, matrix in zip(gene_of, adapter.matrices, strict=True):
        sizes[gene] += matrix.size
    space = policy_space(goal.levels, sizes, goal.ratio, goal.parameters.band)
    return MatrixPolicies(space, tuple(gene_of))


def require_pairs(count: int) -> None:
    """Check that projector evolution has image-text pairs.

    Raises:
        UserError: there are none, and why that matters.
    """
    if count == 0:
        raise UserError(
            "projector evolution needs image-text pairs: with text alone the projector is not in "
            "the forward pass and its gradient is exactly zero",
            where="proxy.pairs",
            remedy="set proxy.pairs above 0, or search.evolve_projector: false",
        )
