"""One round of Algorithm 1: move the projector, propose policies, score them, keep the best."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from efficientllava.allocation.scoring.evaluation import Evaluator
from efficientllava.allocation.search.evolution import (
    Candidate,
    Proposal,
    first_generation,
    offspring,
    stream,
    survivors,
)
from efficientllava.allocation.search.policy import MatrixPolicies
from efficientllava.allocation.search.projector import (
    ProjectorEvolution,
    ProjectorStep,
    importance_weights,
)
from efficientllava.allocation.search.state import SearchState, reported
from efficientllava.calibration.structural_risk import COMPLEXITIES, structural_risk
from efficientllava.data.proxy import ProxyData
from efficientllava.database.solutions import Database
from efficientllava.errors import UserError
from efficientllava.models.families import Adapter
from efficientllava.offload.blocks_on_disk import BlocksOnDisk
from efficientllava.parameters import SearchParameters
from efficientllava.progress import Event, Progress

PROJECTOR_STREAM = -1
"""Index of the projector's random numbers in a round."""


@dataclass(frozen=True)
class SearchInputs:
    """The model that is searched, and the data to score it with.

    Attributes:
        adapter: of the dense model.
        blocks: brings the model's blocks to a device where not all of them fit; None where all do.
    """

    adapter: Adapter
    proxy: ProxyData
    database: Database
    blocks: BlocksOnDisk | None = None


@dataclass(frozen=True)
class SearchGoal:
    """The policy that a search looks for.

    Attributes:
        levels: ratios a matrix may take (C of the paper).
        ratio: target sparsity.
        upper_bound: weight candidates by equation (7); False sets every c_m to 1.
    """

    levels: Sequence[float]
    ratio: float
    parameters: SearchParameters
    upper_bound: bool = True


class Rounds:
    """The rounds of a search, on a state that each of them moves on.

    Args:
        state: changed by every round.
        evaluator: scores the candidates; closed by the caller.
        evolution: moves the projector between rounds; None for a projector that stays.
    """

    def __init__(
        self,
        inputs: SearchInputs,
        goal: SearchGoal,
        policies: MatrixPolicies,
        state: SearchState,
        evaluator: Evaluator,
        evolution: ProjectorEvolution | None,
        progress: Progress,
    ) -> None:
        self.adapter, self.database = inputs.adapter, inputs.database
        self.goal, self.parameters, self.policies = goal, goal.parameters, policies
        self.state, self.evaluator, self.evolution = state, evaluator, evolution
        self.progress = progress

    def resume(self, work: Path, number: int) -> bool:
        """Take over a finished round from its files; False where there are none."""
        resumed, moved = self.state.resume(work, number)
        if moved is not None:
            self.adapter.load_projector(moved)
            self.evaluator.projector_moved(self.adapter.projector_state)
        return resumed

    def run(self, number: int) -> None:
        """Run a round, from 1 on.

        Raises:
            UserError: a candidate's proxy loss is NaN or inf.
        """
        state, parameters = self.state, self.parameters
        self.progress(Event("round_started", number, parameters.rounds))
        if number == 1:
            proposals = first_generation(
                self.policies.space, parameters.candidates, self.goal.ratio, parameters.seed
            )
            state.population = self._evaluate(1, proposals)
            self._record(1, state.population, None)
            return
        parents = survivors(state.archive.values(), parameters.survivors)
        step = self._evolve_projector(number)
        again = self._rescored(parents) if step is not None and step.kept else []
        evaluated = self._evaluate(number, [*again, *self._offspring(number, parents)])
        state.population = evaluated if again else [*parents, *evaluated]
        self._record(number, evaluated, step)

    def report(self, number: int) -> None:
        """Report the last round's record as a `round` event."""
        record = reported(self.state.rounds[-1])
        self.progress(Event("round", number, self.parameters.rounds, record))

    def _rescored(self, parents: Sequence[Candidate]) -> list[Proposal]:
        """Survivors and the uniform policy, to be scored under a projector that has moved."""
        state = self.state
        again = [Proposal(parent.genes, "survivor") for parent in parents]
        uniform = self.policies.space.uniform(self.goal.ratio)
        if uniform in state.archive and all(p.genes != uniform for p in again):
            again.append(Proposal(uniform, "uniform"))
        state.archive = {}
        return again

    def _offspring(self, number: int, parents: Sequence[Candidate]) -> list[Proposal]:
        parameters = self.parameters
        proposals = offspring(
            self.policies.space,
            parents,
            max(parameters.candidates - parameters.survivors, 1),
            {candidate.genes for candidate in self.state.history},
            parameters.mutation,
            parameters.seed,
            number,
        )
        return self._preselect(proposals) if parameters.multi_step < 1.0 else proposals

    def _preselect(self, proposals: list[Proposal]) -> list[Proposal]:
        """Multi-step selection (EvoPress): the best on a share of the proxy go on."""
        policies = [self.policies.ratios(proposal.genes) for proposal in proposals]
        losses = dict(self.evaluator.losses(policies, self.parameters.multi_step))
        risks = [
            structural_risk(losses[i], self._complexity(policy), self.parameters.eta)
            for i, policy in enumerate(policies)
        ]
        best = sorted(range(len(proposals)), key=lambda i: (risks[i], i))
        return [proposals[i] for i in sorted(best[: self.parameters.multi_step_keep])]

    def _evolve_projector(self, number: int) -> ProjectorStep | None:
        if self.evolution is None:
            return None
        policies = [self.policies.ratios(candidate.genes) for candidate in self.state.population]
        if self.goal.upper_bound:
            weights = importance_weights(policies, self.parameters.neighbours)
        else:
            weights = [1.0] * len(policies)
        random = stream(self.parameters.seed, number, PROJECTOR_STREAM)
        step = self.evolution.step(weights, random)
        if step.kept:
            self.state.projector += 1
            self.evaluator.projector_moved(self.adapter.projector_state)
        return step

    def _complexity(self, policy: Sequence[float]) -> float:
        ratios = [
            self.database.norm_ratio(matrix.name, level)
            for matrix, level in zip(self.adapter.matrices, policy, strict=True)
        ]
        return COMPLEXITIES[self.parameters.complexity](ratios)

    def _evaluate(self, number: int, proposals: Sequence[Proposal]) -> list[Candidate]:
        """Score a round's candidates; they join the history and the archive in order."""
        state = self.state
        policies = [self.policies.ratios(proposal.genes) for proposal in proposals]
        complexities = [self._complexity(policy) for policy in policies]
        started = time.monotonic()
        evaluated: dict[int, Candidate] = {}
        best = min((c.risk for c in state.archive.values()), default=float("inf"))
        for index, loss in self.evaluator.losses(policies):
            if not isfinite(loss):
                raise UserError(
                    "the proxy loss of a candidate is NaN or inf",
                    where=f"search, round {number}, candidate {index}",
                    remedy="activations overflow: check the weights and the proxy data",
                )
            genes = proposals[index].genes
            evaluated[index] = candidate = Candidate(
                round=number,
                index=index,
                genes=genes,
                origin=proposals[index].origin,
                mean_sparsity=self.policies.space.mean_sparsity(genes),
                loss=loss,
                complexity=complexities[index],
                risk=structural_risk(loss, complexities[index], self.parameters.eta),
                projector=state.projector,
            )
            best = min(best, candidate.risk)
            speed = len(evaluated) / max(time.monotonic() - started, 1e-9)
            self._report_candidate(number, len(evaluated), len(proposals), best, speed)
        in_order = [evaluated[index] for index in range(len(proposals))]
        state.history += in_order
        state.archive.update({candidate.genes: candidate for candidate in in_order})
        return in_order

    def _report_candidate(
        self, number: int, done: int, count: int, best: float, speed: float
    ) -> None:
        """Report a scored candidate; `speed` in candidates a second."""
        parameters = self.parameters
        left = count - done + (parameters.rounds - number) * parameters.candidates
        values = {
            "round": number,
            "best_risk": best,
            "evaluations_per_second": speed,
            "seconds_left": left / speed,
        }
        self.progress(Event("candidate", done, count, values))

    def _record(
        self, number: int, evaluated: Sequence[Candidate], step: ProjectorStep | None
    ) -> None:
        best = survivors(self.state.archive.values(), 1)[0]
        record: dict[str, Any] = {
            "round": number,
            "best_risk": best.risk,
            "best_loss": best.loss,
            "best_complexity": best.complexity,
            "mean_risk": sum(c.risk for c in evaluated) / len(evaluated) if evaluated else None,
            "evaluated": len(evaluated),
            "projector_loss_before": None if step is None else step.before,
            "projector_loss_after": None if step is None else step.after,
            "projector_kept": step is not None and step.kept,
        }
        self.state.rounds.append(record)
