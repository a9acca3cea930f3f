"""Better values for the weights that a mask keeps: exact least squares, or ADMM.

OBS decides mask and values together, column by column; with the mask fixed, the values that
minimise the output error tr((W^ - W) H (W^ - W)^T) are a least-squares problem per row.
"""

from __future__ import annotations

import torch

ELEMENTS_PER_CHUNK = 2**25
"""Rows are solved together as long as their systems hold at most this many numbers (256 MB)."""
JITTER = 1e-10
"""Share of the mean diagonal that keeps a system solvable where inputs depend on each other."""
ITERATIONS = 200


def refine(
    weight: torch.Tensor, pruned: torch.Tensor, hessian: torch.Tensor, method: str
) -> torch.Tensor:
    """Solve again for the weights that are kept.

    Works in float64. A row that does not get better, measured on the undamped Hessian in the
    weight's own precision, stays as OBS left it: the result is never worse.

    Args:
        weight: the dense W [out, in].
        pruned: OBS's solution [out, in]; its zeros are the mask.
        hessian: [in, in], undamped.
        method: "least_squares" or "admm".

    Returns:
        [out, in] in the dtype of `pruned`, zero wherever `pruned` is.
    """
    exact = hessian.double()
    dense, start = weight.double(), pruned.double()
    kept = pruned != 0
    if method == "least_squares":
        solved = least_squares(dense, kept, exact)
    else:
        solved = admm(dense, start, kept, exact)
    solved = solved.to(pruned.dtype)
    better = _row_errors(solved.double() - dense, exact) < _row_errors(start - dense, exact)
    return torch.where(better[:, None], solved, pruned)


def least_squares(dense: torch.Tensor, kept: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """W^_r,S = H_SS^-1 (H W_r)_S for every row r and its kept columns S.

    Args:
        dense: [out, in].
        kept: [out, in] bool.
        hessian: [in, in]; all float64.
    """
    columns = hessian.shape[0]
    target = (dense @ hessian) * kept
    jitter = JITTER * hessian.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    solved = torch.zeros_like(dense)
    step = max(1, ELEMENTS_PER_CHUNK // columns**2)
    for start in range(0, dense.shape[0], step):
        rows = slice(start, start + step)
        mask = kept[rows].to(hessian.dtype)
        # pruned columns get a 1 on the diagonal and nothing else: their solution is 0
        systems = hessian * mask[:, :, None] * mask[:, None, :]
        systems.diagonal(dim1=1, dim2=2).add_(torch.where(kept[rows], jitter, 1.0))
        lower, failed = torch.linalg.cholesky_ex(systems)
        solution = torch.cholesky_solve(target[rows][:, :, None], lower)[:, :, 0]
        # a failed row holds no numbers to trust: NaN is never better than OBS
        solved[rows] = torch.where(failed[:, None] == 0, solution, torch.nan) * kept[rows]
    return solved.masked_fill_(~kept, 0.0)


def admm(
    dense: torch.Tensor,
    start: torch.Tensor,
    kept: torch.Tensor,
    hessian: torch.Tensor,
    iterations: int = ITERATIONS,
) -> torch.Tensor:
    """The same minimum by ADMM with one factorisation for all rows (Boza 2024, "Fast and
    effective weight update for pruned LLMs"; the mask stays fixed).

    Inputs are scaled to H_jj = 1 first, as published. For wide matrices, where a system per row
    costs too much.

    Args:
        start: [out, in], the iteration's first value.
    """
    scale = hessian.diagonal().sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    scaled = hessian / scale[:, None] / scale[None, :]
    penalty = 1.0
    eye = torch.eye(hessian.shape[0], dtype=hessian.dtype, device=hessian.device)
    lower = torch.linalg.cholesky(scaled + penalty * eye)
    target = (dense * scale) @ scaled
    masked = start * scale
    dual = torch.zeros_like(masked)
    for _ in range(iterations):
        free = torch.cholesky_solve((target + penalty * (masked - dual)).T, lower).T
        masked = (free + dual) * kept
        dual += free - masked
    return masked / scale


def _row_errors(change: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vecdot(change @ hessian, change)
