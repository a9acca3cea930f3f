"""What `search.early_stop` saves, and what sharing leading blocks could, on a real search.

    python -m dvc repro                    # or `make demo`: model, proxy and database
    python -m bench.early_stop

Runs the search of params.yaml with and without early stop on what the stages before it have made,
and compares policy, projector and survivors bit for bit. *Batches skipped* counts the offspring's
and, second, all candidates' batches. *Leading blocks shared* is counted on the search's candidates
in the order in which they are scored: the share of decoder blocks that a candidate begins with and
that some candidate of its round scored before it begins with too.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.runtime.environment import prepare, use_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from efficientllava.allocation.evolution import Candidate


def shared_leading_blocks(candidates: Sequence[Candidate], blocks: int) -> float:
    """The share of all blocks that need not be computed if activations are shared in a round.

    A round's candidates are a trie over blocks; its nodes are computed once each.

    Args:
        candidates: genes are one level per matrix (or block), block after block.
        blocks: number of decoder blocks.
    """
    computed, wanted = 0, 0
    for number in {candidate.round for candidate in candidates}:
        policies = [candidate.genes for candidate in candidates if candidate.round == number]
        step = len(policies[0]) // blocks
        nodes = {genes[: step * depth] for genes in policies for depth in range(1, blocks + 1)}
        computed += len(nodes)
        wanted += len(policies) * blocks
    return 1 - computed / wanted


def main() -> None:
    """Search twice, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--granularity", choices=("matrix", "block"), default="matrix")
    wanted = parser.parse_args()
    prepare()
    use_threads(1)

    import torch

    from bench.machine import machine
    from efficientllava.allocation.evolution import survivors
    from efficientllava.allocation.search import Search
    from efficientllava.data.proxy import load_proxy
    from efficientllava.database.build import open_database
    from efficientllava.models.checkpoint import load_model
    from efficientllava.models.families import adapter_for
    from efficientllava.parameters import SearchParameters

    print(json.dumps({**vars(wanted), "machine": machine()}, default=str))
    proxy = load_proxy(wanted.artifacts / "proxy")
    results, seconds = {}, {}
    for early_stop in (False, True):
        parameters = SearchParameters(
            rounds=wanted.rounds,
            workers=wanted.workers,
            granularity=wanted.granularity,
            early_stop=early_stop,
        )
        levels = sorted(round(wanted.ratio + offset, 6) for offset in parameters.offsets)
        adapter = adapter_for(load_model(wanted.artifacts / "model"))
        with tempfile.TemporaryDirectory() as temporary:
            started = time.process_time()
            results[early_stop] = Search(
                adapter,
                proxy,
                open_database(wanted.artifacts / "database", levels),
                levels,
                wanted.ratio,
                parameters,
                Path(temporary),
                {},
            ).run()
            seconds[early_stop] = time.process_time() - started
    whole, early = results[False], results[True]
    same = whole.policy == early.policy and all(
        torch.equal(tensor, early.projector[name]) for name, tensor in whole.projector.items()
    )
    for number in range(1, len(whole.rounds) + 1):
        chosen = []
        for result in (whole, early):
            under = max(c.projector for c in result.history if c.round == number)
            seen = [c for c in result.history if c.round <= number and c.projector == under]
            best = survivors({c.genes: c for c in seen}.values(), parameters.survivors)
            chosen.append([(c.genes, c.risk) for c in best])
        same &= chosen[0] == chosen[1]
    offspring = [c for c in early.history if c.round > 1 and c.origin in ("crossover", "mutation")]
    skipped = sum(1 - c.scored for c in offspring)
    print(
        f"same policy, projector and survivors, bit for bit: {same}\n"
        f"{len(early.history)} candidates, {len(offspring)} offspring, of which given up "
        f"{sum(c.stopped for c in offspring)}\n"
        f"batches skipped: {skipped / len(offspring):.1%} of the offspring's, "
        f"{skipped / len(early.history):.1%} of all\n"
        f"processor seconds: {seconds[False]:.1f} without, {seconds[True]:.1f} with\n"
        "leading blocks shared in a round: "
        f"{shared_leading_blocks(whole.history, len(adapter.blocks)):.1%}\n"
        f"load average after {os.getloadavg()[0]:.2f}"
    )


if __name__ == "__main__":
    main()
