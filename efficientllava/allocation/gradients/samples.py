"""Which of the proxy data gives the costs, and which compares the policies."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from efficientllava.data.proxy import ProxyData
from efficientllava.parameters import SensitivityParameters


@dataclass(frozen=True)
class Samples:
    """Two parts of the proxy data without a sample in common, but for a text of one segment.

    Attributes:
        gradients: gives the costs.
        choice: compares policies.
    """

    gradients: ProxyData
    choice: ProxyData


def split(proxy: ProxyData, parameters: SensitivityParameters, data: str) -> Samples:
    """The first segments and pairs for gradients, others for the choice.

    `data` is "text" or "text_and_pairs", as `search.fitness_data`. At least half of the segments
    are left for the choice, for a policy that wins on the tokens of its own costs has won nothing.
    A single segment serves both.
    """
    segments, length = proxy.segments.shape
    given = min(-(-parameters.tokens // length), max(segments // 2, 1))
    compared = min(-(-parameters.choice_tokens // length), segments - given)
    text = proxy.segments[given : given + compared]
    if compared == 0:
        text = proxy.segments
    first = other = None
    if data == "text_and_pairs" and proxy.pairs is not None:
        count = len(proxy.pairs)
        begin = min(parameters.pairs, count // 2)
        end = min(begin + parameters.choice_pairs, count)
        first = proxy.pairs[torch.arange(begin)] if begin else None
        other = proxy.pairs[torch.arange(begin, end)] if end > begin else None
    return Samples(ProxyData(proxy.segments[:given], first), ProxyData(text, other))
