"""The Hessian of a layer's squared output error, and the factor of its inverse that OBS needs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import get_lapack_funcs

from efficientllava.errors import UserError
from efficientllava.finite import all_finite
from efficientllava.kernels.precision import full_float32

logger = logging.getLogger(__name__)

RAISES = 4
"""How often the damping is raised tenfold before a Hessian is given up."""


def empty(
    columns: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """The Hessian [columns, columns] before the first token."""
    return torch.zeros(columns, columns, dtype=dtype, device=device)


@full_float32()
def accumulate(hessian: torch.Tensor, seen: int, inputs: torch.Tensor) -> int:
    """Add calibration inputs to H = (2/n) X X^T, in place (SparseGPT; method.md section 2).

    A running mean over tokens: the result does not depend on how tokens are split into batches.

    Args:
        hessian: [in, in], mean over the `seen` tokens so far.
        seen: number of tokens so far.
        inputs: [tokens, in], any floating dtype.

    Returns:
        The number of tokens now in the mean.
    """
    tokens = inputs.shape[0]
    if tokens == 0:
        return seen
    rows = inputs.to(hessian.dtype)
    total = seen + tokens
    hessian.mul_(seen / total).addmm_(rows.T, rows, alpha=2.0 / total)
    return total


@dataclass(frozen=True)
class InverseFactor:
    """The factor of a Hessian that OBS uses.

    Attributes:
        upper: U [in, in], upper Cholesky factor of the inverse of the damped Hessian.
        dead: [in], inputs that were zero on every calibration token.
        damping: lambda / (mean of diag H over the live inputs) that made the factorisation succeed.
    """

    upper: torch.Tensor
    dead: torch.Tensor
    damping: float


@full_float32()
def inverse_factor(
    hessian: torch.Tensor,
    damping: float = 0.01,
    name: str = "matrix",
    tokens: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> InverseFactor:
    """Damp a Hessian, invert it and factorise the inverse: H^-1 = U^T U.

    The diagonal is raised by `damping` x the mean of diag H over the live inputs: dead ones, which
    get a 1 there, neither raise nor lower it. If the factorisation fails, by ten times as much, up
    to four times, each logged.

    Args:
        hessian: [in, in], symmetric.
        name: the matrix it belongs to, for messages.
        tokens: the calibration tokens it was accumulated on, for messages.
        dtype: precision of the factorisation.

    Raises:
        UserError: NaN or inf in the Hessian, or not positive definite at any damping tried.
    """
    where = f"Hessian of {name}"
    dead = hessian.diagonal().to(dtype) == 0
    # in double, as a number would be, and left on the device: only success is waited for
    of_live = len(dead) / (~dead).sum().clamp(min=1).double()
    for attempt in range(RAISES + 1):
        share = damping * 10.0**attempt
        # one copy, with rows and columns in reverse order, becomes the factor in place
        flipped = hessian.flip(0, 1).to(dtype)
        diagonal = flipped.diagonal()
        mean = diagonal.mean().double() * of_live  # the dead are 0 here
        diagonal.masked_fill_(dead.flip(0), 1.0)
        diagonal += share * mean
        if (upper := _factorise(flipped)) is not None:
            return InverseFactor(upper, dead, share)
        if attempt == 0 and not all_finite(hessian):
            raise UserError(
                "NaN or inf in the activations that reach this matrix",
                where=where,
                remedy="check the checkpoint's weights and the proxy data; half precision "
                "overflows in some models: load in float32",
            )
        logger.warning("%s: not positive definite at damping %g", where, share)
    raise UserError(
        f"not positive definite, even with damping {share:g} "
        f"({'unknown' if tokens is None else tokens} calibration tokens for "
        f"{hessian.shape[0]} inputs)",
        where=where,
        remedy="use more proxy data (proxy.segments, proxy.pairs), raise obs.damping, or set "
        "obs.precision: float64",
    )


def _factorise(flipped: torch.Tensor) -> torch.Tensor | None:
    """U of H^-1 = U^T U, without forming H^-1; None if H is not positive definite.

    H = L L^T of the flipped matrix gives U = L^-1 flipped back. That takes 2/3 n^3 operations;
    inverting H and factorising the inverse, as SparseGPT does, is 4/3 n^3.

    Args:
        flipped: H with rows and columns in reverse order; destroyed.
    """
    if flipped.device.type == "cpu":
        inverse = _inverse_of_cholesky(flipped.numpy())
        if inverse is not None and not all_finite(inverse):
            inverse = None
    else:
        inverse = inverse_of_cholesky(flipped)
    if inverse is not None:
        _flip_in_place(inverse)
    return inverse


def _flip_in_place(matrix: torch.Tensor, step: int = 2**20) -> None:
    """Reverse the order of rows and columns of a matrix, stored either way, in its own memory."""
    flat = (matrix if matrix.is_contiguous() else matrix.T).view(-1)
    for start in range(0, len(flat) // 2, step):
        end = min(start + step, len(flat) // 2)
        front, back = flat[start:end], flat[len(flat) - end : len(flat) - start]
        flipped = front.flip(0)
        front.copy_(back.flip(0))
        back.copy_(flipped)


def inverse_of_cholesky(matrix: torch.Tensor) -> torch.Tensor | None:
    """L^-1 of a symmetric matrix L L^T by torch, on any device; None if there is no finite L^-1.

    The host waits for the device once, at the end.
    """
    inverse, failed = torch.linalg.cholesky_ex(matrix)
    invert_lower(inverse)
    return None if (failed != 0) | ~torch.isfinite(inverse).all() else inverse


def invert_lower(lower: torch.Tensor, leaf: int = 512) -> None:
    """Replace a lower triangular matrix [n, n] by its inverse, in its own memory.

    By halves: the lower left block C of [[A, 0], [C, B]] becomes -B^-1 C A^-1, by matrix products
    (2/3 n^3 operations; torch's solve_triangular against the identity takes n^3 and two more
    matrices). What lies above the diagonal is left alone.
    """
    size = len(lower)
    if size <= leaf:
        one = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, one, upper=False))
        return
    half = size // 2
    first, last, corner = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    invert_lower(first, leaf)
    invert_lower(last, leaf)
    corner.copy_(last @ corner @ first).neg_()


def _inverse_of_cholesky(matrix: np.ndarray) -> torch.Tensor | None:
    """L^-1 of a symmetric matrix L L^T, in its own memory; None if there is no L.

    By LAPACK itself, for torch has no inverse of a triangular matrix (n^3 / 3).
    """
    potrf, trtri = get_lapack_funcs(("potrf", "trtri"), (matrix,))
    # LAPACK's order of entries is that of the transpose: its upper factor is our lower one
    upper, failed = potrf(matrix.T, lower=False, overwrite_a=True)
    if failed:
        return None
    inverse, failed = trtri(upper, lower=False, overwrite_c=True)
    return None if failed else torch.from_numpy(inverse.T)


@full_float32()
def output_error(change: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr(dW H dW^T), twice the layer's squared output error per token.

    Args:
        change: dW [out, in].
        hessian: [in, in], undamped.
    """
    change, columns = change.to(hessian.dtype), len(hessian)
    step = max(columns // 8, 512)
    total = change.new_zeros((), dtype=torch.float64)
    # H is symmetric: count the part right of the diagonal twice, do not form the left one
    for start in range(0, columns, step):
        part = change[:, start : start + step] @ hessian[start : start + step, start:]
        part *= change[:, start:]
        total += part[:, :step].sum(dtype=torch.float64)
        total += 2 * part[:, step:].sum(dtype=torch.float64)
    return float(total)


def relative_error(pruned: torch.Tensor, dense: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr(dW H dW^T) / tr(W H W^T): the share of the layer's output energy that is lost."""
    return relative_errors([pruned], dense, hessian)[0]


def relative_errors(
    pruned: Sequence[torch.Tensor], dense: torch.Tensor, hessian: torch.Tensor
) -> list[float]:
    """The relative error of several pruned versions of one matrix."""
    dense = dense.to(hessian.dtype)  # before the difference: half precision would round it
    energy = output_error(dense, hessian)
    if energy <= 0:
        return [0.0] * len(pruned)
    return [
        output_error(solution.to(hessian.dtype) - dense, hessian) / energy for solution in pruned
    ]
