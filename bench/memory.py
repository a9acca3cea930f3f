"""Peak host memory of pruning against the size of the checkpoint, at three sizes.

Run: python -m bench memory  (three minutes on one core, 3 GB of disk; writes
docs/internal/memory.md)

Random LLaVA checkpoints of LLaVA-1.5-7B's proportions (bfloat16, in shards) are pruned and saved,
each method in a process of its own: as the `prune` stage does it. Peak is the largest resident set
(getrusage; mapped files that were read count) less what it was when everything was imported.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.random_models import DecoderSize, Tower, random_llava
from efficientllava.allocation.context import Allocation
from efficientllava.calibration.opened import OpenModel
from efficientllava.data.proxy import ProxyData
from efficientllava.files import write_text
from efficientllava.models.checkpoint import load_model, save_checkpoint
from efficientllava.models.families import adapter_for
from efficientllava.models.weight_files import weight_files
from efficientllava.offload.blocks_on_disk import blocks_on_disk
from efficientllava.parameters import ObsParameters, Parameters, SearchParameters
from efficientllava.pruning.masked import prune_masked
from efficientllava.registry import METHODS

PAGE = Path(__file__).parents[1] / "docs" / "internal" / "memory.md"
SIZES = {"small": (512, 32), "medium": (512, 48), "large": (512, 80)}
"""Width and blocks; LLaVA-1.5-7B has 4096 and 32."""

MLP, VOCABULARY = 11008 / 4096, 32064 / 4096
SHARDS = 8
BOUND = 1.3
MEBIBYTE = 2**20


def build(folder: Path, width: int, blocks: int) -> None:
    """Write a random checkpoint in bfloat16 and in shards."""
    import torch

    torch.set_default_dtype(torch.bfloat16)
    size = DecoderSize(width, int(MLP * width) // 64 * 64, blocks, int(VOCABULARY * width))
    model = random_llava(size, 512, Tower(width // 4, width, 4, 4, 56, 14))
    stored = sum(parameter.numel() * 2 for parameter in model.parameters())
    folder.mkdir(parents=True)
    model.save_pretrained(folder, max_shard_size=stored // SHARDS)


def prune_one(folder: Path, method: str, target: Path) -> dict[str, Any]:
    """Prune and save one checkpoint, and return the memory beyond the imports."""
    imported = _peak()
    import torch

    torch.set_num_threads(1)
    started = time.monotonic()
    model = load_model(folder)
    adapter = adapter_for(model)
    tokens = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    segments = torch.randint(5, tokens, (4, 128), generator=generator)
    policy = {matrix.name: 0.5 for matrix in adapter.matrices}
    pruning = ObsParameters(calibration="text")
    search = SearchParameters(fitness_data="text")
    with blocks_on_disk(adapter, folder, target.parent / "work") as on_disk:
        prune_masked(
            OpenModel(adapter, on_disk),
            ProxyData(segments, None),
            METHODS[method].criterion,
            Allocation(policy, "uniform"),
            Parameters(obs=pruning, search=search),
        )
        save_checkpoint(model, folder, target, save_weights=on_disk.save_weights)
    size = sum(file.stat().st_size for file in weight_files(folder))
    return {
        "method": method,
        "checkpoint": size,
        "imported": imported,
        "peak": _peak() - imported,
        "ratio": (_peak() - imported) / size,
        "seconds": time.monotonic() - started,
    }


def _peak() -> int:
    """The largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(sizes: dict[str, tuple[int, int]], methods: list[str]) -> list[dict[str, Any]]:
    """One row per size and method, each from a fresh process."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="memory-") as temporary:
        for name, (width, blocks) in sizes.items():
            dense = Path(temporary) / name
            _alone("build", dense, str(width), str(blocks))
            for method in methods:
                row = _alone("prune", dense, method, str(Path(temporary) / "pruned"))
                rows.append({"width": width, "blocks": blocks, **row})
                print(_line(rows[-1]), flush=True)
                shutil.rmtree(Path(temporary) / "pruned")
            shutil.rmtree(dense)
    return rows


def _alone(task: str, folder: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench", "memory", task, str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def _line(row: dict[str, Any]) -> str:
    return (
        f"| {row['width']} x {row['blocks']} | {row['method']} "
        f"| {row['checkpoint'] / MEBIBYTE:.0f} | {row['peak'] / MEBIBYTE:.0f} "
        f"| {row['ratio']:.2f} | {row['imported'] / MEBIBYTE:.0f} "
        f"| {row['seconds']:.0f} |"
    )


def page(rows: list[dict[str, Any]]) -> str:
    """The measured table as a page of the documentation."""
    worst = max(row["ratio"] for row in rows)
    head = (
        "| width x blocks | method | checkpoint, MiB | peak, MiB | peak / checkpoint "
        "| imports, MiB | seconds |\n|---|---|---:|---:|---:|---:|---:|"
    )
    return f"""# Memory

Measured by `python -m bench memory` on one core: random LLaVA checkpoints of LLaVA-1.5-7B's
proportions, bfloat16, in {SHARDS} shards and more, pruned at 0.5 and saved in shards, each row in
a process of its own. *Peak* is the largest resident set (`getrusage`; pages of mapped files that
were read count) less *imports*, what it was when everything had been imported and nothing loaded.

{head}
{chr(10).join(_line(row) for row in rows)}

The largest ratio is {worst:.2f}; the bound is {BOUND}. How it is done is in
[devices.md](../devices.md#host-memory).
"""


def main() -> None:
    """Measure all sizes and write the page; the sub-commands are its processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", nargs="?", default="measure")
    parser.add_argument("arguments", nargs="*")
    given = parser.parse_args()
    if given.task == "build":
        folder, width, blocks = given.arguments
        build(Path(folder), int(width), int(blocks))
        print("{}")
    elif given.task == "prune":
        folder, method, target = given.arguments
        print(json.dumps(prune_one(Path(folder), method, Path(target))))
    else:
        methods = [name for name in ("magnitude", "wanda", "sparsegpt") if name in METHODS]
        rows = measure(SIZES, methods)
        write_text(PAGE, page(rows))
        if any(row["ratio"] > BOUND for row in rows):
            sys.exit(f"more than {BOUND} times the checkpoint")
