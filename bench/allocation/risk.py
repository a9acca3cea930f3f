"""Does the structural risk order policies better than the proxy loss alone?

    python -m bench allocation.risk --model DIR --proxy DIR --text ptb --work WORK --ratios 0.5

Half of the policies are random ones of the paper's space, half draw a level of the wide range for
every block, all within the search's band. Each is stitched from the OBS database and scored: proxy
loss (KL) on the proxy data, R of equation (3), and the loss on held-out text (NLL). The table gives
Spearman's rank correlation with the held-out loss, with 95 % intervals over 2,000 resamples of the
policies.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from bench import options_of, say_conditions

RESAMPLES = 2000


def main() -> None:
    """Score the policies of each ratio and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench allocation.risk")
    parser.add_argument("--model", type=Path, required=True, help="folder of a checkpoint")
    parser.add_argument("--proxy", type=Path, required=True, help="folder of its proxy data")
    parser.add_argument("--text", default="demo", help="as `proxy.text`, for the held-out part")
    parser.add_argument("--work", type=Path, default=Path(".work/bench/allocation/work"))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.6, 0.7])
    parser.add_argument("--policies", type=int, default=40)
    parser.add_argument("--data", choices=("text", "text_and_pairs"), default="text_and_pairs")
    parser.add_argument("--segments", type=int, help="of the proxy data's text: the first; all")
    parser.add_argument("--length", type=int, default=256, help="tokens of a held-out segment")
    parser.add_argument("--test-segments", type=int, default=64)
    parser.add_argument("--eta", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    wanted = options_of(parser)
    say_conditions(wanted)
    print("| ratio | policies | of the proxy loss | L + eta R | R alone |\n|---|---|---|---|---|")
    for ratio in wanted.ratios:
        scored = _scored(wanted, ratio)
        for name, rows in {
            "paper's": scored[: len(scored) // 2],
            "wide": scored[len(scored) // 2 :],
            "all": scored,
        }.items():
            loss, risk, held_out = np.array(rows).T
            shown = (
                _correlation(values, held_out) for values in (loss, loss + wanted.eta * risk, risk)
            )
            print(f"| {ratio:g} | {name}, {len(rows)} | {' | '.join(shown)} |", flush=True)


def _scored(wanted: argparse.Namespace, ratio: float) -> list[tuple[float, float, float]]:
    """Of each policy: KL divergence on the proxy data, R, and held-out NLL."""
    import torch

    from bench.allocation.cells import held_out
    from efficientllava.allocation.context import Context
    from efficientllava.allocation.scoring.evaluation import stitched_models
    from efficientllava.calibration.proxy_loss import ProxyLoss
    from efficientllava.calibration.structural_risk import mean_log_norm
    from efficientllava.data.proxy import ProxyData
    from efficientllava.models.checkpoint import load_model
    from efficientllava.models.families import adapter_for
    from efficientllava.parsing import parse_parameters

    values: dict[str, Any] = {
        "ratios": wanted.ratios,
        "obs": {"calibration": wanted.data},
        "machine": {"threads": wanted.threads, "workers": 1},
    }
    parameters = parse_parameters(values, where="bench allocation.risk")
    torch.set_num_threads(wanted.threads)
    context = Context(wanted.model, wanted.proxy, ratio, parameters, wanted.work)
    adapter = adapter_for(load_model(context.model))
    policies = _policies(parameters, ratio, adapter, wanted.policies)
    database = context.database(sorted({level for policy in policies for level in policy}))
    proxy = replace(context.proxy, segments=context.proxy.segments[: wanted.segments])
    loss = ProxyLoss(adapter, proxy, "kl", wanted.data)
    test = ProxyLoss(adapter, ProxyData(held_out(wanted), None), "nll", "text")
    (model,) = stitched_models(adapter, database, 1)
    rows = []
    for policy in policies:
        model.stitch(policy)
        norms = [
            database.norm_ratio(matrix.name, level)
            for matrix, level in zip(adapter.matrices, policy, strict=True)
        ]
        scores = (loss(model.language_model), test(model.language_model))
        rows.append((scores[0], mean_log_norm(norms), scores[1]))
    return rows


def _policies(parameters: Any, ratio: float, adapter: Any, count: int) -> list[list[float]]:
    """The paper's random policies, then as many with one wide level for each block."""
    from efficientllava.allocation.search.policy import PolicySpace

    random, low, high = Random(0), *parameters.search.band
    narrow = PolicySpace(
        tuple(parameters.levels(ratio)), tuple(adapter.sizes), ratio + low, ratio + high
    )
    policies = [narrow.ratios(narrow.random(random)) for _ in range(count // 2)]
    sizes = [0] * (1 + max(matrix.block for matrix in adapter.matrices))
    for matrix in adapter.matrices:
        sizes[matrix.block] += matrix.size
    wide = PolicySpace(
        tuple(parameters.wide_levels(ratio)), tuple(sizes), ratio + low, ratio + high
    )
    for _ in range(count - len(policies)):
        by_block = wide.ratios(wide.random(random))
        policies.append([by_block[matrix.block] for matrix in adapter.matrices])
    return policies


def _correlation(values: np.ndarray, held_out: np.ndarray) -> str:
    """Spearman's rank correlation and its 95 % interval."""
    from scipy.stats import spearmanr

    draw = np.random.default_rng(0)
    resampled = []
    for _ in range(RESAMPLES):
        chosen: Sequence[int] = draw.integers(0, len(values), len(values))
        resampled.append(spearmanr(values[chosen], held_out[chosen]).statistic)
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    return f"{spearmanr(values, held_out).statistic:.3f} ({low:.2f} to {high:.2f})"
