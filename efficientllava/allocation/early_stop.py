"""Giving up candidates that can no longer survive, without changing what a search finds.

**Claim.** With `search.early_stop` a search finds the same policy and the same projector, to the
bit, as without, and has the same survivors in every round.

1. *A bound.* No position's loss is below -ROUNDING: a KL divergence and a negative log-likelihood
   are never negative, and ROUNDING is what float32 may err by. The proxy loss is the mean over a
   known number of positions, in two halves if there are pairs. What has been summed so far, less
   ROUNDING for every position to come, is so a lower bound of it (`ProxyLoss.score`).
2. *Risk grows with the loss*: S = L + eta R, and R is known from the policy alone. A candidate is
   given up only if its bound exceeds `loss_limits`, that is if S of the bound exceeds T, the risk
   of the `survivors`-th best candidate of the archive: then its own S exceeds T too, and so does
   the S that is recorded for it, which is S of the bound.
3. *It never survives.* In the archive, to which candidates are only added while the projector
   stays, `survivors` others have a risk of at most T, now and ever after, with its true risk as
   with the recorded one: it is in no list of survivors, is nobody's parent and not the best. When
   the projector moves, the archive is emptied and only survivors and the uniform policy are scored
   again: they start from an empty archive, which has no T, and are never given up.
4. *Nothing else asks for its loss.* The projector's importance weights and steps, and what counts
   as known already, depend on the candidates' genes; patience on the best risk.
5. *T depends on no order.* It is taken from the archive as it is when the round's offspring are to
   be scored, after those that are scored again, and does not move while they are.

What does change: losses and risks of rows with `stopped: true` are bounds, the mean of a round is
that of the others, and a loss that would have become NaN behind the stop is not noticed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import inf

from efficientllava.allocation.evolution import Candidate, survivors

TOLERANCE = 1e-9
"""Beyond the rounding of T - eta R in float64, so that S of what exceeds the limit exceeds T."""


def loss_limits(
    archive: Collection[Candidate], count: int, complexities: Sequence[float], eta: float
) -> list[float]:
    """The loss above which each candidate can no longer be among the survivors.

    Args:
        archive: whatever survivors are chosen from, before these candidates are scored.
        count: number of survivors.
        complexities: R of each candidate.

    Returns:
        [candidates]: infinite while the archive holds fewer than `count`.
    """
    if len(archive) < count:
        return [inf] * len(complexities)
    threshold = survivors(archive, count)[-1].risk
    return [
        threshold - (eta * complexity if eta > 0 else 0.0) + TOLERANCE
        for complexity in complexities
    ]
