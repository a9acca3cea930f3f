"""What `search.kl_tokens` does to the order of a search's candidates.

    python -m dvc repro                    # or `make demo`: a search to look at
    python -m bench.kl_tokens

Scores every policy of a finished search again, with the projector as it came, by the KL over the
whole vocabulary and over the dense model's k most likely tokens and the rest as one, and compares
the orders by structural risk: Spearman's correlation over all policies, and how many of the best
four are the same. About a second a policy on one core for the embedded model.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.runtime.environment import prepare, use_threads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from efficientllava.calibration.proxy_loss import Distribution, LossBatch
    from efficientllava.models.families import Adapter

BEST = 4


def divergences(
    adapter: Adapter, part: Sequence[LossBatch], targets: Mapping[int, Sequence[Distribution]]
) -> torch.Tensor:
    """Mean KL [kinds] over a part's positions: one forward pass, all kinds of targets."""
    import torch

    from efficientllava.calibration.proxy_loss import chunked_logits, hidden_states, kl_divergence

    sums, count = 0.0, 0
    with torch.no_grad():
        for batch in part:
            hidden = hidden_states(adapter.language_model, batch.inputs)[batch.positions]
            for rows, logits in chunked_logits(adapter.head, hidden):
                kinds = [kl_divergence(kind[rows], logits) for kind in targets[id(batch)]]
                sums = sums + torch.stack(kinds).sum(dim=1, dtype=torch.float64)
            count += hidden.shape[0]
    return torch.as_tensor(sums / max(count, 1))


def main() -> None:
    """Score, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--method", default="efficientllava")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--eta", type=float, default=0.5)
    parser.add_argument("--policies", type=int, help="only so many, drawn at random")
    wanted = parser.parse_args()
    prepare()
    use_threads(1)

    import torch
    from scipy.stats import spearmanr

    from bench.machine import machine
    from efficientllava.allocation.evaluation import stitched_models, swap_order
    from efficientllava.calibration.proxy_loss import Distribution, ProxyLoss
    from efficientllava.calibration.structural_risk import mean_log_norm, structural_risk
    from efficientllava.data.proxy import load_proxy
    from efficientllava.database.build import open_database
    from efficientllava.models.checkpoint import load_model
    from efficientllava.models.families import adapter_for

    torch.set_num_threads(1)
    print(json.dumps({**vars(wanted), "machine": machine()}, default=str))
    folder = wanted.artifacts / "search" / f"{wanted.method}-{wanted.ratio:g}"
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    policies = [list(policy) for policy in {tuple(row["policy"]): None for row in rows}]
    if wanted.policies:
        random.Random(0).shuffle(policies)
        policies = policies[: wanted.policies]
    adapter = adapter_for(load_model(wanted.artifacts / "model"))
    levels = sorted({level for policy in policies for level in policy})
    database = open_database(wanted.artifacts / "database", levels)
    loss = ProxyLoss(adapter, load_proxy(wanted.artifacts / "proxy"), "kl", "text_and_pairs")
    kinds = [None, *wanted.tokens]
    targets: dict[int, list[Distribution]] = {}
    for part in (loss.text, loss.pairs):
        for batch in part:
            assert batch.dense is not None
            logs = batch.dense.probabilities.log()
            targets[id(batch)] = [Distribution.of(logs, top) for top in kinds]
    (stitched,) = stitched_models(adapter, database, 1)
    losses = torch.zeros(len(policies), len(kinds), dtype=torch.float64)
    risks = losses.clone()
    for index in swap_order(policies, adapter.sizes):
        stitched.stitch(policies[index])
        halves = [divergences(adapter, part, targets) for part in (loss.text, loss.pairs)]
        losses[index] = (halves[0] + halves[1]) / 2
        ratios = [
            database.norm_ratio(matrix.name, level)
            for matrix, level in zip(adapter.matrices, policies[index], strict=True)
        ]
        for kind, value in enumerate(losses[index].tolist()):
            risks[index, kind] = structural_risk(value, mean_log_norm(ratios), wanted.eta)

    best = risks.argsort(dim=0, stable=True)[:BEST].T.tolist()
    vocabulary = adapter.model.get_input_embeddings().num_embeddings  # type: ignore[operator,union-attr]
    print(
        f"{len(policies)} policies, KL {losses[:, 0].min():.4f} to {losses[:, 0].max():.4f}; a "
        f"position takes {4 * vocabulary} bytes in full\n"
        "| k | bytes | Spearman | best 4: the same | best: the same | KL / full, median |\n"
        "|---|---|---|---|---|---|"
    )
    for kind, tokens in enumerate(wanted.tokens, start=1):
        print(
            f"| {tokens} | {12 * tokens} "
            f"| {spearmanr(risks[:, 0], risks[:, kind]).statistic:.4f} "
            f"| {len(set(best[0]) & set(best[kind]))} "
            f"| {'yes' if best[0][0] == best[kind][0] else 'no'} "
            f"| {(losses[:, kind] / losses[:, 0]).median():.3f} |"
        )


if __name__ == "__main__":
    main()
