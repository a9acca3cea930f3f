"""Policies compared by the KL divergence of their stitched models, on tokens of their own."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch

from efficientllava.allocation.scoring.evaluation import StitchedModel
from efficientllava.calibration.sample_losses import (
    DenseReference,
    Difference,
    SampleLosses,
    difference,
)
from efficientllava.errors import UserError
from efficientllava.files import read_sealed, value_digest, write_sealed
from efficientllava.progress import Event, Progress

Policy = tuple[int, ...]
"""The index of a level for every matrix."""


@dataclass(frozen=True)
class Scored:
    """A policy and what it costs.

    Attributes:
        origin: which step made it: "uniform", "slope 0.05", "owl 0.04", "fisher", "corrected", ...
        losses: of its stitched model, by sample of the choice, weighted.
    """

    policy: Policy
    origin: str
    losses: SampleLosses

    @property
    def kl(self) -> float:
        """Mean KL divergence to the dense model over all scored positions, weighted."""
        return self.losses.mean("kl")

    def against(self, other: Scored) -> Difference:
        """The paired difference of the KL divergences, this one minus the other."""
        return difference(self.losses, other.losses)


@dataclass
class Choice:
    """Scores policies once each; what is scored lies in files, so a killed run does not repeat it.

    Attributes:
        models: stitched ones, one for each worker; which of them scores changes nothing.
        levels: ratios that the indices of a policy mean.
        scored: every policy so far, in the order in which they were proposed.
    """

    models: list[StitchedModel]
    reference: DenseReference
    levels: Sequence[float]
    folder: Path
    threads: int
    progress: Progress
    scored: dict[Policy, Scored] = field(default_factory=dict)

    def __call__(self, proposals: Sequence[tuple[str, Policy]]) -> list[Scored]:
        """Score policies that are new, several side by side; all of them in the given order.

        Raises:
            UserError: the loss of a policy is NaN or inf.
        """
        losses = self.losses(self.reference, [policy for _, policy in proposals])
        found = []
        for (origin, policy), loss in zip(proposals, losses, strict=True):
            if policy not in self.scored:
                self.scored[policy] = Scored(policy, origin, loss)
            found.append(self.scored[policy])
        return found

    def losses(self, reference: DenseReference, policies: Sequence[Policy]) -> list[SampleLosses]:
        """The losses of stitched models on any samples, weighted (`answer_weight`), in the order of
        the policies."""
        free: SimpleQueue[StitchedModel] = SimpleQueue()
        for model in self.models:
            free.put(model)
        weights = _weights(reference)

        def score(policy: Policy) -> SampleLosses:
            path = self.folder / f"{_key(reference, policy)}.json"
            if not path.exists():
                torch.set_num_threads(self.threads)
                model = free.get()
                try:
                    model.stitch([self.levels[index] for index in policy])
                    losses = reference(model.language_model)
                finally:
                    free.put(model)
                _require_finite(losses)
                write_sealed(path, losses.as_row())
            return SampleLosses.from_row(read_sealed(path)).weighted(weights)

        # the same policy twice is scored once: two threads would write the same file
        different = list(dict.fromkeys(policies))
        by_policy: dict[Policy, SampleLosses] = {}
        with ThreadPoolExecutor(len(self.models)) as pool:
            for policy, losses in zip(different, pool.map(score, different), strict=True):
                by_policy[policy] = losses
                kl = losses.mean("kl")
                self.progress(Event("policy", len(by_policy), len(different), {"kl": kl}))
        return [by_policy[policy] for policy in policies]

    @property
    def best(self) -> Scored:
        """The policy of least KL divergence; of equals the one that was proposed first."""
        return min(self.scored.values(), key=lambda scored: scored.kl)


def _weights(reference: DenseReference) -> np.ndarray:
    """[n] what a scored position of every sample counts."""
    samples = [len(batch.positions) for batch in reference.batches]
    return np.repeat(reference.weights, samples)


def _key(reference: DenseReference, policy: Policy) -> str:
    samples = [batch.targets.tolist() for batch in reference.batches]
    return value_digest({"policy": policy, "samples": samples})[:24]


def _require_finite(losses: SampleLosses) -> None:
    if not np.isfinite(losses.kl).all():
        raise UserError(
            "the KL divergence of a policy is NaN or inf",
            where="sensitivity, choice",
            remedy="activations overflow: check the weights and the proxy data, or convert the "
            "model to bfloat16 or float32",
        )
