"""Every parameter with every bad value, through the stage that checks params.yaml."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_inputs.commands import fault, prepare, run
from tests.bad_inputs.parameters import CASES, case_of

OFTEN = set(random.Random(0).sample(sorted(CASES), 30))
"""Cases of every run of the tests; the others are slow."""


@pytest.fixture(scope="module", autouse=True)
def imported() -> Iterator[None]:
    prepare()
    yield


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in OFTEN else pytest.mark.slow) for n in CASES],
)
def test_is_told(name: str, tmp_path: Path) -> None:
    case, text = case_of(name)
    (tmp_path / "params.yaml").write_text(text)
    assert not (said := fault(case, run(case.command, tmp_path))), said
    assert not (tmp_path / "artifacts").exists()
