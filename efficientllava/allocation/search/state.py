"""What a search knows between two rounds, and its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from efficientllava.allocation.search.evolution import Candidate
from efficientllava.allocation.search.policy import Genes
from efficientllava.files import (
    DamagedFile,
    file_digest,
    load_tensors,
    read_sealed,
    save_tensors,
    write_sealed,
)

ROUND_RECORD = "round_record"
"""Key of the first row of a round in a history: what the round reported when it ended."""


def reported(record: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a round's record, as its event and its history have them."""
    numbers = {name: value for name, value in record.items() if value is not None}
    return numbers | {"projector_kept": int(numbers["projector_kept"])}


@dataclass
class SearchState:
    """What the next round starts from.

    Attributes:
        history: every candidate that was scored, in order.
        rounds: one record of each round.
        archive: candidates under the present projector, of whom the best survive.
        population: for whom the projector is moved next.
        projector: how often it has moved.
    """

    history: list[Candidate] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    archive: dict[Genes, Candidate] = field(default_factory=dict)
    population: list[Candidate] = field(default_factory=list)
    projector: int = 0

    def has_settled(self, patience: int | None) -> bool:
        """Whether the best risk has not fallen for `patience` rounds; None waits for ever.

        Only risks under the present projector are compared.
        """
        moved = [index for index, record in enumerate(self.rounds) if record["projector_kept"]]
        risks = [record["best_risk"] for record in self.rounds[max(moved, default=0) :]]
        return (
            patience is not None
            and len(risks) > patience
            and min(risks[-patience:]) >= min(risks[:-patience])
        )

    def keep(self, folder: Path, number: int, projector: Mapping[str, torch.Tensor]) -> None:
        """Write what the next round needs; the round's JSON last, as the sign that all is there."""
        file = folder / f"projector-{number:03d}.safetensors"
        save_tensors(file, projector)
        record = {
            "projector_digest": file_digest(file),
            "record": self.rounds[-1],
            "history": [c.as_row() for c in self.history if c.round == number],
            "archive": [c.as_row() for c in self.archive.values()],
            "population": [c.as_row() for c in self.population],
            "projector": self.projector,
        }
        write_sealed(folder / f"round-{number:03d}.json", record)

    def resume(self, folder: Path, number: int) -> tuple[bool, dict[str, torch.Tensor] | None]:
        """Take over a finished round: whether it is there, and the projector if it has moved.

        Raises:
            UserError: a file is not as it was written.
        """
        path = folder / f"round-{number:03d}.json"
        if not path.exists():
            return False, None
        stored = read_sealed(path)
        self.rounds.append(stored["record"])
        self.history += [Candidate.from_row(row) for row in stored["history"]]
        archive = [Candidate.from_row(row) for row in stored["archive"]]
        self.archive = {candidate.genes: candidate for candidate in archive}
        self.population = [Candidate.from_row(row) for row in stored["population"]]
        if stored["projector"] == self.projector:
            return True, None
        self.projector = stored["projector"]
        file = folder / f"projector-{number:03d}.safetensors"
        if file_digest(file) != stored["projector_digest"]:
            raise DamagedFile(file)
        return True, load_tensors(file)
