"""SparseGPT's `fasterprune` as published (IST-DASLab/sparsegpt, sparsegpt.py), for one matrix.

A transcription to be measured against, from the paper's Algorithm 1 and the published procedure:
each run has a Cholesky factorisation, an inverse and a second factorisation of its own, every
block's scores are sorted in full for the threshold, and the inner loop is torch operations on
[rows, block] tensors. What it does not do: 2:4, quantisation, printing, CUDA synchronisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


@torch.no_grad()
def fasterprune(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    sparsity: float,
    blocksize: int = 128,
    percdamp: float = 0.01,
    quotas: Sequence[int] | None = None,
    factor: torch.Tensor | None = None,
) -> torch.Tensor:
    """Prune one matrix [out, in] to a sparsity; returns the pruned copy, in the Hessian's dtype.

    It prunes one weight more than asked for in every block of columns, as published: the mask is
    `score <= threshold` with the threshold at index int(numel * sparsity) of the sorted scores.
    Dead inputs count as 1 in the mean that its damping is a share of, ours leaves them out: the two
    agree where none is dead, as in the bench's problems.
    To compare like with like (not published): with `quotas` it prunes so many in each block, and
    `factor` is used as the upper factor of the inverse.
    """
    W = weight.to(hessian.dtype, copy=True)
    H = hessian.clone()
    dead = torch.diag(H) == 0
    H[dead, dead] = 1
    W[:, dead] = 0
    rows, columns = W.shape

    Losses = torch.zeros(rows, dtype=W.dtype, device=W.device)
    damp = percdamp * torch.mean(torch.diag(H))
    diag = torch.arange(columns, device=W.device)
    H[diag, diag] += damp
    if factor is None:
        H = torch.linalg.cholesky(H)
        H = torch.cholesky_inverse(H)
        H = torch.linalg.cholesky(H, upper=True)
    else:
        H = factor
    Hinv = H

    for i1 in range(0, columns, blocksize):
        i2 = min(i1 + blocksize, columns)
        count = i2 - i1

        W1 = W[:, i1:i2].clone()
        Q1 = torch.zeros_like(W1)
        Err1 = torch.zeros_like(W1)
        Losses1 = torch.zeros_like(W1)
        Hinv1 = Hinv[i1:i2, i1:i2]

        tmp = W1**2 / (torch.diag(Hinv1).reshape((1, -1))) ** 2
        at = int(tmp.numel() * sparsity) if quotas is None else quotas[i1 // blocksize] - 1
        thresh = torch.sort(tmp.flatten())[0][at]
        mask1 = tmp <= thresh

        for i in range(count):
            w = W1[:, i]
            d = Hinv1[i, i]

            q = w.clone()
            q[mask1[:, i]] = 0

            Q1[:, i] = q
            Losses1[:, i] = (w - q) ** 2 / d**2

            err1 = (w - q) / d
            W1[:, i:] -= err1.unsqueeze(1).matmul(Hinv1[i, i:].unsqueeze(0))
            Err1[:, i] = err1

        W[:, i1:i2] = Q1
        Losses += torch.sum(Losses1, 1) / 2

        W[:, i2:] -= Err1.matmul(Hinv[i1:i2, i2:])
    return W
