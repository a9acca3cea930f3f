"""Our engines by name."""

from __future__ import annotations

from efficientllava.benchmarks.engines.base import Engine
from efficientllava.benchmarks.engines.lmms_eval.engine import LMMS_EVAL
from efficientllava.benchmarks.engines.own import OWN

OURS: dict[str, Engine] = {engine.name: engine for engine in (OWN, LMMS_EVAL)}
