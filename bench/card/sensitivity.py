"""Seconds of a sensitivity pass on a card, beside forward passes of the same tokens."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

TOKENS = 2048
"""As `sensitivity.tokens`: of text that gradients see."""


def sensitivity_pass(
    opened: Any, proxy: Any, levels: Any, folder: Path, wait: Callable[[], None]
) -> str:
    """The Fisher costs of every matrix at every level, as `efficientllava_plus` computes them.

    Args:
        opened: the offloaded model and its database.
        wait: lets the device finish.

    Returns:
        Seconds of the pass, of a bare forward pass of its tokens, and how many of the second the
        first takes.
    """
    from dataclasses import replace

    from efficientllava.allocation.sensitivity.costs import Gradients, fisher_costs
    from efficientllava.calibration.proxy_loss import mean_loss
    from efficientllava.calibration.sample_losses import DenseReference
    from efficientllava.progress import silent

    shutil.rmtree(folder, ignore_errors=True)
    adapter = opened.adapter
    segments = proxy.segments[: max(1, TOKENS // proxy.segments.shape[1])]
    reference = DenseReference(adapter, replace(proxy, segments=segments, pairs=None), "text")
    streamed = opened.blocks is not None
    gradients = Gradients(adapter, reference, opened.database, streamed, 0, silent)

    def seconds(work: Callable[[], object]) -> float:
        wait()
        started = time.perf_counter()
        work()
        wait()
        return time.perf_counter() - started

    def forward() -> None:
        mean_loss(adapter.language_model, reference.head, reference.batches, "nll")

    forward()  # warm
    one = median(seconds(forward) for _ in range(3))
    passed = seconds(lambda: fisher_costs(gradients, levels, folder))
    return (
        f"{passed:.2f} s for {segments.numel()} tokens, bare forward pass {one:.3f} s: "
        f"{passed / one:.1f} forward passes"
    )
