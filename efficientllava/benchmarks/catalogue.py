"""Our benchmarks, in the order of the tables; each is one folder.

The demo questions are not among them: they are answered by likelihood (`demo_questions`).
"""

from __future__ import annotations

from typing import Any

from efficientllava.benchmarks.base import Benchmark
from efficientllava.benchmarks.llava_bench.benchmark import LLAVA_BENCH
from efficientllava.benchmarks.mmvet.benchmark import MMVET
from efficientllava.benchmarks.scienceqa.benchmark import SCIENCEQA, SCIENCEQA_IMG
from efficientllava.benchmarks.vizwiz.benchmark import VIZWIZ

OURS: dict[str, Benchmark[Any]] = {
    benchmark.name: benchmark
    for benchmark in (SCIENCEQA, SCIENCEQA_IMG, VIZWIZ, MMVET, LLAVA_BENCH)
}
