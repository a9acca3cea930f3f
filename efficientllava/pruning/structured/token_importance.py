"""The importance of tokens to a block, and how much the block changes them (Short-LVLM, ShortGPT).

Short-LVLM's authors published figures, no code of the method: the formulas are re-implemented
from those (docs/methods.md lists the inferred parts).
"""

from __future__ import annotations

import torch
from torch.nn import functional

from efficientllava.calibration.visual_tokens import largest_share


def token_importance(
    attention: torch.Tensor, text: torch.Tensor, visual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token Importance Scores (TIS) of one block's attention A, rows queries, columns keys.

    s_v(j) = 1/2 [ mean_{i >= j in v} A(i, j) + mean_{i > j in t} A(i, j) ]
    s_t(i) = 1/2 [ mean_{j < i in v} A(i, j) + mean_{i' >= i in t} A(i', i) ]
    v visual, t text tokens. Means go over pairs that causality lets see each other, otherwise
    early tokens win; a mean over none is 0.

    Args:
        attention: [B, T, T], mean over heads, rows sum to 1, zero where key > query.
        text, visual: [B, T] bool, disjoint, no padding.

    Returns:
        s_v and s_t, [B, T] each; of use at visual and text positions only.
    """
    t, v = text.to(attention.dtype), visual.to(attention.dtype)
    length = attention.shape[-1]
    seen = torch.ones(length, length, dtype=attention.dtype, device=attention.device).tril()

    def by_queries(queries: torch.Tensor) -> torch.Tensor:
        given = torch.einsum("bij,bi->bj", attention * seen, queries)
        return given / torch.einsum("ij,bi->bj", seen, queries).clamp(min=1.0)

    to_visual = torch.einsum("bij,bj->bi", attention * seen, v)
    to_visual = to_visual / torch.einsum("ij,bj->bi", seen, v).clamp(min=1.0)
    from_text = by_queries(t)
    return (by_queries(v) + from_text) / 2, (to_visual + from_text) / 2


def important_tokens(
    attention: torch.Tensor, text: torch.Tensor, visual: torch.Tensor, share: float
) -> torch.Tensor:
    """The tokens of highest importance: of each sample ceil(share * n) per modality.

    The first token of a sample is left out: as the sink of attention it would always win.

    Args:
        attention: see `token_importance`.
        share: p.

    Returns:
        [B, T] bool.
    """
    of_visual, of_text = token_importance(attention, text, visual)
    rest = ~first_tokens(text | visual)
    return largest_share(of_visual, visual & rest, share) | largest_share(
        of_text, text & rest, share
    )


def first_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """[B, T] bool: the first position of each sample that is no padding (BOS, attention sink)."""
    return tokens & (tokens.cumsum(dim=1) == 1)


def cosine_sum(
    before: torch.Tensor, after: torch.Tensor, chosen: torch.Tensor
) -> tuple[float, int]:
    """Sum over chosen tokens of cos(x_l, x_{l+1}), and their number.

    Args:
        before, after: [B, T, d].
        chosen: [B, T] bool.
    """
    cosines = functional.cosine_similarity(before[chosen].float(), after[chosen].float(), dim=-1)
    return float(cosines.sum(dtype=torch.float64)), int(chosen.sum())
