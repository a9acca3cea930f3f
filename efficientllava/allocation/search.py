"""Algorithm 1: search a pruning policy and evolve the projector, round by round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from efficientllava.allocation.early_stop import loss_limits
from efficientllava.allocation.evaluation import CandidateEvaluator, Evaluator, stitched_models
from efficientllava.allocation.evolution import (
    Candidate,
    Proposal,
    first_generation,
    offspring,
    stream,
    survivors,
)
from efficientllava.allocation.policy import Genes, policy_space
from efficientllava.allocation.projector import (
    ProjectorEvolution,
    ProjectorStep,
    importance_weights,
)
from efficientllava.allocation.state import SearchState
from efficientllava.calibration.proxy_loss import ProxyLoss, pair_loss_batches, remember_dense
from efficientllava.calibration.structural_risk import COMPLEXITIES, structural_risk
from efficientllava.data.proxy import ProxyData
from efficientllava.database.build import Database
from efficientllava.errors import UserError
from efficientllava.files import value_digest
from efficientllava.models.families import Adapter
from efficientllava.offload.blocks_on_disk import BlocksOnDisk
from efficientllava.parameters import SearchParameters
from efficientllava.progress import Event, Progress, silent

PROJECTOR_STREAM = -1
"""Index of the projector's random numbers in a round."""

UNDECISIVE = {
    "rounds",
    "workers",
    "max_seconds",
    "executor",
    "dask_address",
    "projector_checkpointing",
}
"""Search parameters that do not change what a round does: work of other values is continued."""


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        policy: ratio per prunable matrix, by name.
        projector: the evolved projector's state.
        history: every evaluated candidate, in order.
        rounds: what each round came to.
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
        adapter: of the dense model; its language model and projector are changed in place.
        levels: ratios a matrix may take (C of the paper).
        work: folder of unfinished searches; rounds found there under the same key are not run
            again.
        identity: digests (model, proxy, code) that decide whether unfinished work still counts.
        upper_bound: weight candidates by equation (7); False sets every c_m to 1.
        make_evaluator: given the work folder, whoever scores candidates in place of this process.
        blocks: what brings the model's blocks to a device, where not all of them fit on it.

    Raises:
        UserError: no policy meets the budget; the projector is to evolve without image-text pairs.
    """

    def __init__(
        self,
        adapter: Adapter,
        proxy: ProxyData,
        database: Database,
        levels: Sequence[float],
        ratio: float,
        parameters: SearchParameters,
        work: Path,
        identity: dict[str, Any],
        upper_bound: bool = True,
        progress: Progress = silent,
        make_evaluator: Callable[[Path], Evaluator] | None = None,
        blocks: BlocksOnDisk | None = None,
    ) -> None:
        self.make_evaluator, self.blocks = make_evaluator, blocks
        if parameters.evolve_projector:
            require_pairs(0 if proxy.pairs is None else len(proxy.pairs))
        self.adapter, self.proxy, self.database = adapter, proxy, database
        self.ratio, self.parameters, self.progress = ratio, parameters, progress
        self.upper_bound = upper_bound
        by_block = parameters.granularity == "block"
        self.gene_of = [
            matrix.block if by_block else index for index, matrix in enumerate(adapter.matrices)
        ]
        sizes = [0] * (max(self.gene_of) + 1)
        for gene, matrix in zip(self.gene_of, adapter.matrices, strict=True):
            sizes[gene] += matrix.size
        self.space = policy_space(levels, sizes, ratio, parameters.band)
        key = {
            "search": parameters.model_dump(mode="json", exclude=UNDECISIVE),
            "ratio": ratio,
            "levels": list(levels),
            "upper_bound": upper_bound,
            **identity,
        }
        self.work = Path(work) / value_digest(key)[:16]
        self.state = SearchState()

    def run(self) -> SearchResult:
        """Search until the last round, `max_seconds`, or no gain for `patience` rounds."""
        parameters = self.parameters
        torch.set_num_threads(parameters.threads)
        self.loss = ProxyLoss(
            self.adapter,
            self.proxy,
            parameters.fitness,
            parameters.fitness_data,
            parameters.kl_tokens,
        )
        # one candidate fills a GPU
        alone = self.make_evaluator is not None or self.adapter.device.type != "cpu"
        here = 1 if alone else parameters.workers
        models = stitched_models(self.adapter, self.database, here, self.blocks)
        # the projector is moved through the first worker's model, when the others rest
        self.stitched = models[0]
        self.evolution = self._projector_evolution() if parameters.evolve_projector else None
        self.evaluator: Evaluator = (
            CandidateEvaluator(models, self.loss, parameters.threads)
            if self.make_evaluator is None
            else self.make_evaluator(self.work)
        )
        self.started = time.monotonic()
        try:
            for number in range(1, parameters.rounds + 1):
                if not self._resume(number):
                    self._round(number)
                    self.state.keep(self.work, number, self.adapter.projector.state_dict())
                self._tell(number)
                if self._should_stop():
                    break
            return self._result()
        finally:
            self.evaluator.close()

    def _projector_evolution(self) -> ProjectorEvolution:
        assert self.proxy.pairs is not None
        parameters = self.parameters
        batches = pair_loss_batches(self.adapter, self.proxy)
        dense = remember_dense(self.adapter, self.loss.head, batches)
        return ProjectorEvolution(
            self.adapter,
            self.proxy.pairs,
            lambda index: self.stitched.stitch(self._ratios(self.state.population[index].genes)),
            parameters.projector_loss,
            dense,
            parameters.projector_steps,
            parameters.projector_learning_rate,
            parameters.projector_batch,
            # streamed blocks are computed again in any case: never both
            parameters.projector_checkpointing and self.blocks is None,
        )

    def _ratios(self, genes: Genes) -> list[float]:
        """The ratio of every matrix under a policy."""
        levels = self.space.ratios(genes)
        return [levels[gene] for gene in self.gene_of]

    def _round(self, number: int) -> None:
        state, parameters = self.state, self.parameters
        self.progress(Event("round_started", number, parameters.rounds))
        step: ProjectorStep | None = None
        if number == 1:
            proposals = first_generation(
                self.space, parameters.candidates, self.ratio, parameters.seed
            )
            again: list[Proposal] = []
        else:
            parents = survivors(state.archive.values(), parameters.survivors)
            step = self._evolve_projector(number)
            again = []
            if step is not None and step.kept:
                again = [Proposal(parent.genes, "survivor") for parent in parents]
                uniform = self.space.uniform(self.ratio)
                if uniform in state.archive and all(p.genes != uniform for p in again):
                    again.append(Proposal(uniform, "uniform"))
                state.archive = {}
            known = {candidate.genes for candidate in state.history}
            proposals = offspring(
                self.space,
                parents,
                max(parameters.candidates - parameters.survivors, 1),
                known,
                parameters.mutation,
                parameters.seed,
                number,
            )
            if parameters.multi_step < 1.0:
                proposals = self._preselect(proposals)
            if not again:
                state.population = parents
        # those scored again come first where they decide whom to give up
        groups = [again, proposals] if parameters.early_stop else [[*again, *proposals]]
        evaluated: list[Candidate] = []
        started = time.monotonic()
        for group in groups:
            evaluated += self._evaluate(
                number, group, len(evaluated), sum(map(len, groups)), started
            )
        kept_parents = [] if number == 1 or again else state.population
        state.population = [*kept_parents, *evaluated]
        self._close_round(number, evaluated, step)

    def _preselect(self, proposals: list[Proposal]) -> list[Proposal]:
        """Multi-step selection (EvoPress): the best on a share of the proxy go on."""
        policies = [self._ratios(proposal.genes) for proposal in proposals]
        scores = dict(self.evaluator.scores(policies, self.parameters.multi_step))
        risks = [
            structural_risk(scores[i].loss, self._complexity(policy), self.parameters.eta)
            for i, policy in enumerate(policies)
        ]
        best = sorted(range(len(proposals)), key=lambda i: (risks[i], i))
        return [proposals[i] for i in sorted(best[: self.parameters.multi_step_keep])]

    def _evolve_projector(self, number: int) -> ProjectorStep | None:
        if self.evolution is None:
            return None
        policies = [self._ratios(candidate.genes) for candidate in self.state.population]
        if self.upper_bound and len(policies) > 1:
            weights = importance_weights(policies, self.parameters.neighbours)
        else:
            weights = [1.0] * len(policies)
        random = stream(self.parameters.seed, number, PROJECTOR_STREAM)
        step = self.evolution.step(weights, random)
        if step.kept:
            self.state.projector += 1
            self.evaluator.projector_moved(self.adapter.projector.state_dict())
        return step

    def _complexity(self, policy: Sequence[float]) -> float:
        ratios = [
            self.database.norm_ratio(matrix.name, level)
            for matrix, level in zip(self.adapter.matrices, policy, strict=True)
        ]
        return COMPLEXITIES[self.parameters.complexity](ratios)

    def _evaluate(
        self, number: int, proposals: Sequence[Proposal], first: int, total: int, started: float
    ) -> list[Candidate]:
        """Score a round's candidates from number `first` on, of `total`."""
        parameters, state = self.parameters, self.state
        policies = [self._ratios(proposal.genes) for proposal in proposals]
        complexities = [self._complexity(policy) for policy in policies]
        limits = None
        if parameters.early_stop:
            archive = state.archive.values()
            limits = loss_limits(archive, parameters.survivors, complexities, parameters.eta)
        evaluated: dict[int, Candidate] = {}
        best = min((c.risk for c in state.archive.values()), default=float("inf"))
        for index, score in self.evaluator.scores(policies, limits=limits):
            if not isfinite(score.loss):
                raise UserError(
                    "the proxy loss of a candidate is NaN or inf",
                    where=f"search, round {number}, candidate {first + index}",
                    remedy="activations overflow: check the weights and the proxy data",
                )
            genes = proposals[index].genes
            evaluated[index] = candidate = Candidate(
                round=number,
                index=first + index,
                genes=genes,
                origin=proposals[index].origin,
                mean_sparsity=self.space.mean_sparsity(genes),
                loss=score.loss,
                complexity=complexities[index],
                risk=structural_risk(score.loss, complexities[index], parameters.eta),
                projector=state.projector,
                scored=score.scored,
            )
            best = min(best, candidate.risk)
            done = first + len(evaluated)
            speed = done / max(time.monotonic() - started, 1e-9)
            left = total - done + (parameters.rounds - number) * parameters.candidates
            values: dict[str, float | int | str] = {
                "round": number,
                "best_risk": best,
                "evaluations_per_second": speed,
                "seconds_left": left / speed,
            }
            self.progress(Event("candidate", done, total, values))
        in_order = [evaluated[index] for index in range(len(proposals))]
        state.history += in_order
        state.archive.update({candidate.genes: candidate for candidate in in_order})
        return in_order

    def _close_round(
        self, number: int, evaluated: list[Candidate], step: ProjectorStep | None
    ) -> None:
        best = survivors(self.state.archive.values(), 1)[0]
        whole = [candidate.risk for candidate in evaluated if not candidate.stopped]
        record: dict[str, Any] = {
            "round": number,
            "best_risk": best.risk,
            "best_loss": best.loss,
            "best_complexity": best.complexity,
            "mean_risk": sum(whole) / len(whole) if whole else None,
            "evaluated": len(evaluated),
            "projector_loss_before": None if step is None else step.before,
            "projector_loss_after": None if step is None else step.after,
            "projector_kept": step is not None and step.kept,
        }
        if self.parameters.early_stop:
            record["stopped"] = len(evaluated) - len(whole)
        self.state.rounds.append(record)

    def _resume(self, number: int) -> bool:
        """Take over a finished round, if it is there."""
        found, moved = self.state.resume(self.work, number)
        if moved is not None:
            self.adapter.projector.load_state_dict(moved)
            self.evaluator.projector_moved(self.adapter.projector.state_dict())
        return found

    def _tell(self, number: int) -> None:
        record = {k: v for k, v in self.state.rounds[-1].items() if v is not None}
        record["projector_kept"] = int(record["projector_kept"])
        self.progress(Event("round", number, self.parameters.rounds, record))

    def _should_stop(self) -> bool:
        limit, patience = self.parameters.max_seconds, self.parameters.patience
        if limit is not None and time.monotonic() - self.started > limit:
            return True
        risks = [record["best_risk"] for record in self.state.rounds]
        return (
            patience is not None
            and len(risks) > patience
            and min(risks[-patience:]) >= min(risks[:-patience])
        )

    def _result(self) -> SearchResult:
        state = self.state
        best = survivors(state.archive.values(), 1)[0]
        uniform = self.space.uniform(self.ratio)
        first = next((c for c in state.history if c.genes == uniform), None)
        final = state.archive.get(uniform, first)
        policy = {
            matrix.name: level
            for matrix, level in zip(self.adapter.matrices, self._ratios(best.genes), strict=True)
        }
        projector = {
            name: tensor.clone() for name, tensor in self.adapter.projector.state_dict().items()
        }
        summary = {
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
        return SearchResult(policy, projector, state.history, state.rounds, summary)


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
