"""The part of an export's record that reproduces: the facts of the model, without times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RUN = ("repetitions", "clock", "machine", "speedup_coverage", "warning")
"""Keys of the record that are about the run."""
FACTS = ("available", "reason", "remedy", "of_model", "version", "precision", "within_tolerance")
"""Keys of a runtime's row that are about the model; so is `tokens_match`. All others are times."""


def without_times(record: Mapping[str, Any]) -> dict[str, Any]:
    """The facts: what export.json holds."""
    facts = {name: value for name, value in record.items() if name not in RUN}
    facts["runtimes"] = {
        runtime: {name: row[name] for name in (*FACTS, "tokens_match") if name in row}
        for runtime, row in record["runtimes"].items()
    }
    return facts
