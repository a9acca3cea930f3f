"""The registry of benchmarks: light to look up, and each object under its own name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from efficientllava.benchmarks.base import full_prompt, read_records
from efficientllava.benchmarks.records import Record
from efficientllava.errors import UserError
from efficientllava.registry import BENCHMARKS


def test_names_are_those_of_the_objects() -> None:
    assert list(BENCHMARKS) == ["scienceqa", "scienceqa_img", "vizwiz", "mmvet", "llava_bench"]
    assert all(name == benchmark.name for name, benchmark in BENCHMARKS.items())


def test_checking_names_loads_nothing_heavy() -> None:
    """params.yaml is refused at once: the import of torch alone would take longer."""
    code = (
        "import sys\n"
        "from efficientllava.parsing import parse_parameters\n"
        "names = ['scienceqa', 'scienceqa_img', 'vizwiz', 'mmvet', 'llava_bench']\n"
        "data = dict.fromkeys(names, 'folder')\n"
        "parse_parameters({'evaluation': {'benchmarks': names, 'data': data}})\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_vizwiz_makes_submissions() -> None:
    assert [name for name, each in BENCHMARKS.items() if each.has_submission] == ["vizwiz"]


def test_unknown_style_and_split() -> None:
    with pytest.raises(UserError, match=r"no style 'x' \(there are: llava_v1_5\)"):
        full_prompt(BENCHMARKS["vizwiz"], Record("1", "", None), "x")
    with pytest.raises(UserError, match=r"no split 'x' \(there are: test, bard\)"):
        read_records(BENCHMARKS["mmvet"], "folder", "x")
