"""Record files as the stages leave them, with numbers that are easy to find again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientllava.files import save_tensors, write_json, write_text

KINDS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
NAMES = [f"model.language_model.layers.{block}.{kind}" for block in range(3) for kind in KINDS]


def scores(accuracy: float) -> dict[str, Any]:
    parts = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12")
    return {
        "accuracy": accuracy,
        "standard_error": 0.00625,
        "n": 3000,
        "answer_nll": 1.25,
        "text_loss": 4.5,
        "breakdowns": {
            part: {"accuracy": accuracy - index / 100, "standard_error": 0.01, "n": 500}
            for index, part in enumerate(parts)
        },
    }


def timing(dense: float, pruned: float, spread: float = 0.04) -> dict[str, Any]:
    """A runtime's part of the times; the interval reaches by `spread` to either side."""
    ratio = dense / pruned
    interval = {"low": ratio / (1 + spread), "high": ratio * (1 + spread)}
    return {
        "available": True,
        "dense": {"prefill_ms": dense, "decode_ms": dense / 4},
        "pruned": {"prefill_ms": pruned, "decode_ms": pruned / 4, "engine_share": 0.9},
        "prefill_speedup": ratio,
        "decode_speedup": ratio,
        "prefill_speedup_interval": interval,
        "decode_speedup_interval": interval,
    }


def shown_times(report: Path) -> str:
    """The HTML that the script beside a report puts on its page."""
    script = (report.with_name(f"{report.name}_timings") / "timings.js").read_text("utf-8")
    start, _, value = script.partition(" = ")
    assert start == 'document.getElementById("timings").innerHTML'
    section: str = json.loads(value.removesuffix(";\n"))
    return section


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """Dense, sparsegpt at 0.5 and 0.7, efficientllava at 0.5 (not evaluated at 0.7)."""
    root = tmp_path / "artifacts"
    save_tensors(root / "model" / "model.safetensors", {"w": torch.zeros(499_980)})
    write_json(root / "evaluation" / "dense" / "scores.json", scores(0.9))
    cells = (("sparsegpt", 0.5, 4.0), ("sparsegpt", 0.7, 4.4), ("efficientllava", 0.5, 4.2))
    for method, ratio, dense in cells:
        name = f"{method}-{ratio}"
        searched = method == "efficientllava"
        levels = [0.4, 0.5, 0.6]
        policy = {
            matrix: levels[index % 3] if searched else ratio for index, matrix in enumerate(NAMES)
        }
        write_json(
            root / "search" / name / "policy.json",
            {"policy": policy, "allocation": "search" if searched else "uniform"},
        )
        summary = {"best_risk": 0.1, "candidates": 20} if searched else {"mean_sparsity": ratio}
        write_json(root / "search" / name / "search.json", summary)
        write_json(
            root / "pruned_metrics" / f"{name}.json",
            {
                "achieved_sparsity": ratio,
                "proxy_loss": 0.125,
                "bytes_on_disk": 2_000_000,
                "parameters": 400_000,
            },
        )
        write_json(
            root / "pruned" / name / "pruning.json",
            {
                "method": method,
                "ratio": ratio,
                "achieved_sparsity": ratio,
                "matrices": [
                    {
                        "name": matrix,
                        "zeros": round(policy[matrix] * 1000),
                        "size": 1000,
                        "relative_error": 0.01,
                    }
                    for matrix in NAMES
                ],
            },
        )
        write_json(root / "evaluation" / name / "scores.json", scores(0.95 - ratio / 4))
        write_json(
            root / "export_metrics" / f"{name}.json",
            {
                "threads": 1,
                "machine": {"cpu": "a <fast> one"},
                "runtimes": {
                    "deepsparse": timing(dense, dense / 1.25),
                    "onnxruntime": {"available": False},
                },
            },
        )
    write_text(
        root / "search" / "efficientllava-0.5" / "history.jsonl",
        "".join(
            f'{{"round": {number}, "index": {index}, "origin": "{origin}", '
            f'"risk": {risk}, "loss": {risk + 0.05}, "complexity": -0.1, '
            f'"policy": [{policy}, 0.5], "projector": {projector}}}\n'
            for number, index, origin, risk, policy, projector in HISTORY
        ),
    )
    return root


HISTORY = (
    (1, 0, "uniform", 0.50, 0.5, 0),
    (1, 1, "random", 0.40, 0.4, 0),
    (1, 2, "random", 0.41, 0.3, 0),
    # the projector moved: survivors are measured again, and the others do not count any more
    (2, 0, "survivor", 0.43, 0.4, 1),
    (2, 1, "uniform", 0.48, 0.5, 1),
    (2, 2, "mutation", 0.47, 0.6, 1),
    (3, 0, "crossover", 0.30, 0.7, 1),
)
