"""Memory of a card by formula: what 7B, 13B, 34B and 72B need, and where they fit.

    python -m bench card.memory         # no card is needed: the models have no weights

The formulas are those that the search decides by (`offload/placement.py`,
`calibration/working_set.py`); `python -m bench gpu` prints them beside torch's measured peaks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from bench import options_of
from bench.random_models import CLIP_LARGE, LEVELS, SHAPES, random_llava

GIB = 2**30
MODELS = ("7B", "13B", "34B", "72B")
CARDS = {"24 GB": 23.6, "80 GB": 79.0, "141 GB": 139.0}
"""GiB that an RTX 4090, an H100 and an H200 let a program use."""
HEADER = (
    "| model | fixed | blocks | one block | database dense / compact | working set: search / "
    "database | {} |\n|---|---|---|---|---|---|{}|"
)


def main() -> None:
    """Print the table of the page docs/devices.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--segments", type=int, default=64, help="of 256 tokens")
    parser.add_argument("--pairs", type=int, default=256, help="of 704 tokens")
    parser.add_argument("--projector-batch", type=int, default=32, help="pairs of a step")
    parser.add_argument("--threads", type=int, default=1)
    arguments = options_of(parser)
    print(HEADER.format(" | ".join(CARDS), "|".join("---" for _ in CARDS)), flush=True)
    for name in arguments.models:
        print(row(name, arguments), flush=True)


def row(name: str, arguments: argparse.Namespace) -> str:
    """One model's line, in GiB."""
    import torch

    from efficientllava.calibration.working_set import (
        Tokens,
        calibration_bytes,
        database_bytes,
        search_bytes,
    )
    from efficientllava.models.families import adapter_for
    from efficientllava.offload.placement import needs_of, shape_of

    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        adapter = adapter_for(random_llava(SHAPES[name], 2048, CLIP_LARGE))
    torch.set_default_dtype(torch.float32)
    text, pairs = arguments.segments * 256, arguments.pairs * 704
    step = arguments.projector_batch * 704
    tokens = Tokens(text, pairs, 4 * arguments.pairs, 4096, step)
    shape, weights = shape_of(adapter), sum(matrix.size for matrix in adapter.matrices)
    searching = search_bytes(shape, tokens)
    building = calibration_bytes(shape, tokens, len(LEVELS))
    needs = needs_of(adapter, searching)
    dense, compact = (database_bytes(weights, LEVELS, 2, form) / GIB for form in (False, True))
    where = [fit(needs, (dense, compact), card) for card in CARDS.values()]
    return (
        f"| {name} | {needs.fixed / GIB:.1f} | {needs.blocks / GIB:.1f} "
        f"| {needs.largest_block / GIB:.2f} | {dense:.0f} / {compact:.0f} "
        f"| {searching / GIB:.0f} / {building / GIB:.0f} | {' | '.join(where)} |"
    )


def fit(needs: Any, databases: Sequence[float], card: float) -> str:
    """Where a search's parts lie on a card of so many GiB, with a dense and a compact database."""
    from dataclasses import replace

    from efficientllava.offload.placement import RESERVE, choose_placement

    least = needs.fixed + needs.working + 2 * needs.largest_block + RESERVE
    if least > card * GIB:
        return f"no: {least / GIB:.1f} GiB are needed"
    found = {}
    for form, size in zip(("dense", "compact"), databases, strict=True):
        wanted = replace(needs, database=int(size * GIB))
        chosen = choose_placement(wanted, int(card * GIB), host=100 * GIB)
        if chosen.database == "device":
            place = "blocks assembled" if chosen.blocks == "streamed" else "all on the device"
        else:
            place = "streamed" if chosen.blocks == "streamed" else "blocks on the device"
        found[form] = place
    if found["dense"] == found["compact"]:
        return found["dense"]
    return f"{found['compact']} (compact); {found['dense']} (dense)"


def by_formula(adapter: Any, proxy: Any) -> int:
    """Bytes of a card that building the database takes, blocks being streamed."""
    from efficientllava.calibration.working_set import Tokens, calibration_bytes
    from efficientllava.offload.placement import RESERVE, needs_of, shape_of

    working = calibration_bytes(shape_of(adapter), Tokens.of(proxy), len(LEVELS))
    needs = needs_of(adapter, working)
    return needs.fixed + needs.working + 2 * needs.largest_block + RESERVE
