"""The KL divergence against torch's, in full and over the most likely tokens only."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from efficientllava.calibration.proxy_loss import Distribution, kl_divergence


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6), st.sampled_from([2, 64, 32064]), st.floats(0.01, 60), st.floats(0, 0.1)
)
def test_kl_is_torchs_and_most_likely_tokens_bound_it(
    seed: int, vocabulary: int, scale: float, apart: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(6, vocabulary, generator=generator) * scale
    pruned = dense + apart * torch.randn(6, vocabulary, generator=generator)
    kept = dense.log_softmax(dim=1)
    full = kl_divergence(Distribution.of(kept), pruned)
    exact = functional.kl_div(
        pruned.double().log_softmax(1), dense.double().log_softmax(1), reduction="none",
        log_target=True,
    ).sum(1)  # fmt: skip
    torch.testing.assert_close(full, exact.float(), rtol=1e-3, atol=2e-4)
    for top in (1, 16):
        part = kl_divergence(Distribution.of(kept, top), pruned)
        assert part.min() > -2e-4 and (part <= full + 2e-4).all()
