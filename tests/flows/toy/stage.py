"""Stages that write in a moment what the real ones write in minutes; progress is told for real."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from efficientllava.progress import Event
from tasks.runtime.cost import measured
from tasks.runtime.progress import reporter

ACCURACIES = {"magnitude-0.5": 0.80, "sparsegpt-0.5": 0.85, "dense": 0.90}
name, cell = sys.argv[1], (sys.argv[2:] or [""])[0]


def write(path: str, value: Any) -> None:
    target = Path("artifacts") / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, bytes):
        target.write_bytes(value)
    else:
        target.write_text(value if isinstance(value, str) else json.dumps(value))


def weights(name: str) -> bytes:
    """A safetensors file of one number, and of this name in its metadata."""
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"__metadata__": {"of": name}, "w": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


def model() -> None:
    write("model/config.json", {})
    write("model/model.safetensors", weights("dense"))
    with reporter("model") as tell:
        for step in (1, 2):
            tell(Event("training", step, 2, {"loss": 1 / step}))


def search() -> None:
    rows = []
    with reporter(f"search {cell}") as tell:
        for number in (1, 2, 3):
            tell(Event("round_started", number, 3))
            for index in (1, 2):
                values = {"round": number, "best_risk": 1 / number, "seconds_left": 0.1}
                tell(Event("candidate", index, 2, values))
                row = {"round": number, "index": index, "policy": [number, index]}
                rows.append(row | {"risk": index / number, "loss": 0.5, "complexity": 1.0})
                time.sleep(0.02)
            record = {"round": number, "best_risk": 1 / number, "best_loss": 0.5, "evaluated": 2}
            rows[-2]["round_record"] = record
            tell(Event("round", number, 3, record))
    write(f"search/{cell}/policy.json", {"policy": {"layer": 0.5}})
    write(f"search/{cell}/history.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def prune() -> None:
    write(f"pruned/{cell}/config.json", {})
    write(f"pruned/{cell}/model.safetensors", weights(cell))
    matrices = [{"name": "layer", "level": 0.5}]
    write(f"pruned/{cell}/pruning.json", {"matrices": matrices, "policy": {"layer": 0.5}})
    metrics = {"achieved_sparsity": 0.5, "proxy_loss": 0.1, "bytes_on_disk": 1000, "parameters": 1}
    write(f"pruned_metrics/{cell}.json", metrics)


def evaluate() -> None:
    part = {"accuracy": ACCURACIES[cell], "standard_error": 0.01, "n": 100}
    write(f"evaluation/{cell}/scores.json", {**part, "breakdowns": {"G1-6": part}})


def export() -> None:
    """A folder that looks like a checkpoint, and times that differ whenever they are taken."""
    write(f"export/{cell}/config.json", {})
    write(f"export/{cell}/embeddings.safetensors", f"embeddings of {cell}")
    write(f"export/{cell}/export.json", {"runtimes": {}, "tokens_match": True})
    write(f"export_metrics/{cell}.json", {"runtimes": {}, "prefill_ms": time.time_ns() / 1e6})


def questions() -> None:
    write("questions/problems.json", Path("problems.json").read_text())


def report() -> None:
    write("report/table.md", "a table")


print(f"working on {name} {cell}", flush=True)
if (failing := os.environ.get("TOY_FAILS", "").split())[:2] == [name, cell]:
    if failing[2] == "sleep":
        time.sleep(600)
    print("error: params.yaml: search.rounds cannot work\n  -> mend it", file=sys.stderr)
    sys.exit(int(failing[2]))
if os.environ.get("TOY_WAITS", "").split() == [name, cell]:
    while not Path("go_on").exists():  # until the test has done what it came for
        time.sleep(0.1)
with measured(os.environ["DVC_STAGE"]):
    globals()[name]()
