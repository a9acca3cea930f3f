"""Every damaged file through the command that reads it: told, or of no influence on the answer."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.bad_inputs.commands import Case, fault, prepare, run
from tests.bad_inputs.damage import Damage
from tests.bad_inputs.files import TARGETS, Target
from tests.bad_inputs.sound import make

OFTEN = set(random.Random(0).sample(range(len(TARGETS)), 6))
"""Targets of which a damage is tried in every run of the tests; the rest is slow."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of everything; every command succeeds in it."""
    folder = tmp_path_factory.mktemp("sound") / "folder"
    make(folder)
    prepare(folder / "model")
    return folder


def answered(command: tuple[str, ...], sound: Path, known: dict[tuple[str, ...], str]) -> str:
    """What a command prints when nothing is damaged."""
    if command not in known:
        ended = run(command, sound)
        assert ended.status == 0, ended.output
        known[command] = ended.output
    return known[command]


@pytest.fixture(scope="module")
def known() -> dict[tuple[str, ...], str]:
    """Outputs of commands on sound files."""
    return {}


def harmless(output: str, expected: str) -> bool:
    """Whether what was changed has no influence, maybe repaired with a word, or a note tells it."""
    notes = [line for line in output.splitlines() if line.startswith("note: ")]
    return output.endswith(expected) or any(note not in expected for note in notes)


def said_of(damage: Damage, target: Target, sound: Path, place: Path, expected: str) -> str:
    """Why the answer to a damage is no good one; empty where it is."""
    folder = place / "folder"
    shutil.copytree(sound, folder)
    damage(folder / target.path)
    ended = run(target.command, folder)
    shutil.rmtree(place)
    if ended.status == 0 and harmless(ended.output, expected):
        return ""
    return fault(Case("", target.command, ()), ended)


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=pytest.mark.slow) for n in range(len(TARGETS))]
)
def test_every_damage_is_told(
    number: int, sound: Path, known: dict[tuple[str, ...], str], tmp_path: Path
) -> None:
    target, bad = TARGETS[number], []
    expected = answered(target.command, sound, known)
    for name, damage in target.cases(sound):
        if said := said_of(damage, target, sound, tmp_path / "case", expected):
            bad.append(f"{target.path}, {name}: {said}")
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("number", sorted(OFTEN))
def test_some_damages_are_told(
    number: int, sound: Path, known: dict[tuple[str, ...], str], tmp_path: Path
) -> None:
    target = TARGETS[number]
    expected = answered(target.command, sound, known)
    for name in random.Random(number).sample(sorted(target.damages), 5):
        damage = target.damages[name]
        said = said_of(damage, target, sound, tmp_path / "case", expected)
        assert not said, f"{target.path}, {name}: {said}"
