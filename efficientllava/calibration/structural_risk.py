"""The structural risk of a policy, equations (2)-(4), lower is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

SMALLEST = 1e-12


def mean_log_norm(norm_ratios: Sequence[float]) -> float:
    """R(alpha) = (1/K) sum_i ln(||W^_i||_F / ||W_i||_F).

    A monotone transform of the product of Frobenius norms in equation (3), which itself is beyond
    float64 for a 7B model: candidates are ordered exactly as by the product. A ratio counts as at
    least SMALLEST, so that a matrix of zeros, which makes the product 0, stays a number.
    """
    return sum(log(max(ratio, SMALLEST)) for ratio in norm_ratios) / len(norm_ratios)


def geometric_mean(norm_ratios: Sequence[float]) -> float:
    """The K-th root of the product of norm ratios: exp of `mean_log_norm`."""
    return exp(mean_log_norm(norm_ratios))


COMPLEXITIES = {"mean_log_norm": mean_log_norm, "geometric_mean": geometric_mean}


@dataclass(frozen=True)
class Risk:
    """What one candidate scored.

    Attributes:
        loss: L, the proxy loss.
        complexity: R, from the norms of its matrices.
        eta: weight of R.
    """

    loss: float
    complexity: float
    eta: float

    @property
    def value(self) -> float:
        """S of equation (4)."""
        return structural_risk(self.loss, self.complexity, self.eta)


def structural_risk(loss: float, complexity: float, eta: float) -> float:
    """S(alpha, W_p) = L(alpha, W_p) + eta R(alpha), to be minimised.

    Equation (4) as printed maximises both; the text asks for low risk and low norm.
    """
    return loss + eta * complexity if eta > 0 else loss
