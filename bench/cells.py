"""One cell of the experiment: a model of one seed, pruned by one method, measured.

Cells are JSON files under the experiment's folder: a killed run goes on with the next cell.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from efficientllava.allocation.search import Search, SearchResult
from efficientllava.benchmarks.multiple_choice import answer_questions, scores
from efficientllava.benchmarks.text_loss import text_loss
from efficientllava.data.proxy import ProxyData, build_pairs
from efficientllava.data.questions import read_questions
from efficientllava.data.text import held_out_segments, read_text, sample_segments
from efficientllava.database.build import Database, build_database, open_database
from efficientllava.demo.model import train_embedded
from efficientllava.demo.questions.layout import write_questions
from efficientllava.files import file_digest, folder_digest, read_json, write_json
from efficientllava.kernels.masks import zeros_at
from efficientllava.models.checkpoint import load_model, load_processor
from efficientllava.models.families import Adapter, adapter_for
from efficientllava.parameters import Parameters
from efficientllava.progress import silent
from efficientllava.pruning.finalize import prune_finally
from efficientllava.pruning.methods import METHODS

MATCHED = "sparsegpt_matched"
"""Uniform OBS at the sparsity that the search reached: the fair comparison."""


@dataclass(frozen=True)
class Unit:
    """What is computed together: the methods of one seed, ratio and calibration."""

    seed: int
    ratio: float
    calibration: str
    methods: tuple[str, ...]

    def cell(self, method: str) -> str:
        """Name of a cell's file."""
        return f"seed{self.seed}-{self.ratio:g}-{self.calibration}-{method}.json"


def seeded(parameters: Parameters, seed: int) -> Parameters:
    """The parameters with model, proxy and search at the same seed, one worker, one thread."""
    embedded = parameters.model.embedded.model_copy(update={"seed": seed})
    return parameters.model_copy(
        update={
            "model": parameters.model.model_copy(update={"embedded": embedded}),
            "proxy": parameters.proxy.model_copy(update={"seed": seed}),
            "search": parameters.search.model_copy(
                update={"seed": seed, "workers": 1, "threads": 1}
            ),
        }
    )


def prepare(parameters: Parameters, seed: int, checkpoints: Path, cells: Path) -> None:
    """Train the model of a seed, unless it is there, and measure it dense."""
    torch.set_num_threads(1)  # processes side by side: more would wait for each other
    parameters = seeded(parameters, seed)
    folder = checkpoints / f"seed-{seed}"
    started = time.monotonic()
    if not (folder / "questions").exists():
        write_questions(folder / "questions", parameters.model.embedded, silent)
    if not (folder / "model").exists():
        train_embedded(folder / "model", parameters.model.embedded, folder / "questions", silent)
    cell = cells / f"seed{seed}-dense.json"
    if not cell.exists():
        bench = Seed(parameters, seed, checkpoints)
        model = load_model(bench.model_folder)
        row = {"seed": seed, "method": "dense", "ratio": 0.0, "achieved_sparsity": 0.0}
        row |= bench.measure(model) | {"seconds": time.monotonic() - started}
        write_json(cell, row)
        _say(seed, row)


def run_unit(parameters: Parameters, unit: Unit, checkpoints: Path, cells: Path) -> None:
    """Compute the cells of a unit that are not there yet."""
    wanted = [name for name in unit.methods if not (cells / unit.cell(name)).exists()]
    if not wanted:
        return
    parameters = seeded(parameters, unit.seed)
    pruning = parameters.pruning.model_copy(update={"calibration": unit.calibration})
    parameters = parameters.model_copy(update={"pruning": pruning})
    bench = Seed(parameters, unit.seed, checkpoints)
    for method in wanted:
        started = time.monotonic()
        policy = None
        if method == MATCHED:
            searched = read_json(cells / unit.cell("efficientllava"))
            policy = dict.fromkeys(searched["policy"], searched["achieved_sparsity"])
        row = bench.prune(method, unit.ratio, policy, cells.parent / "work")
        row |= {"calibration": unit.calibration, "seconds": time.monotonic() - started}
        write_json(cells / unit.cell(method), row)
        _say(unit.seed, row)


def _say(seed: int, row: dict[str, Any]) -> None:
    print(
        f"seed {seed}  {row['ratio']:g}  {row.get('calibration', ''):14}  {row['method']:30} "
        f"accuracy {row['accuracy']:.4f}  answer loss {row['answer_nll']:.4f}  "
        f"text loss {row['text_loss']:.4f}  {row['seconds']:.0f} s",
        flush=True,
    )


class Seed:
    """The model, proxy data and test data of one seed.

    Args:
        parameters: already `seeded`.
        checkpoints: folder that `prepare` has filled.
    """

    def __init__(self, parameters: Parameters, seed: int, checkpoints: Path) -> None:
        torch.set_num_threads(1)
        self.parameters, self.seed = parameters, seed
        self.model_folder = checkpoints / f"seed-{seed}" / "model"
        questions = checkpoints / f"seed-{seed}" / "questions"
        self.processor: Any = load_processor(self.model_folder)
        proxy = parameters.proxy
        segments = sample_segments(
            self.processor.tokenizer,
            read_text(proxy.text),
            proxy.segments,
            proxy.segment_length,
            proxy.seed,
        )
        train = read_questions(questions, "train")
        pairs = build_pairs(train, self.processor, proxy.pairs, proxy.seed)
        self.proxy = ProxyData(segments, pairs, f"seed {seed}")
        self.questions = read_questions(questions, "test")[: parameters.evaluation.questions]
        self.held_out = held_out_segments(
            self.processor.tokenizer,
            proxy.text,
            parameters.evaluation.text_segments,
            proxy.segment_length,
        )

    def measure(self, model: Any) -> dict[str, Any]:
        """Accuracy with breakdowns, answer loss and held-out text loss of a model."""
        batch_size = self.parameters.evaluation.batch_size
        predictions = answer_questions(model, self.processor, self.questions, batch_size, silent)
        return {
            **scores(self.questions, predictions),
            "text_loss": text_loss(model, self.held_out, batch_size=8),
        }

    def prune(
        self, name: str, ratio: float, policy: dict[str, float] | None, work: Path
    ) -> dict[str, Any]:
        """Prune a fresh copy of the model by a method, and measure it.

        Args:
            policy: instead of the method's own; for MATCHED.
            work: folder for databases and searches.
        """
        method = METHODS["sparsegpt" if name == MATCHED else name]
        model = load_model(self.model_folder)
        adapter = adapter_for(model)
        row: dict[str, Any] = {"seed": self.seed, "method": name, "ratio": ratio}
        database, projector = None, {}
        if method.allocation == "search":
            database = self._database(adapter, ratio, work)
            found = self._search(name, ratio, database, work)
            policy, projector = found.policy, found.projector
            row["search"] = {
                **found.summary,
                "seconds": None,
                "best_risks": [record["best_risk"] for record in found.rounds],
                "best_losses": [record["best_loss"] for record in found.rounds],
            }
        if policy is None:
            policy = {matrix.name: ratio for matrix in adapter.matrices}
        record = prune_finally(
            adapter,
            self.proxy,
            database,
            method.update,
            policy,
            projector,
            self.parameters.pruning,
            method.search_parameters(self.parameters.search),
            prune=self.parameters.prune,
        )
        # what is left, where parts were removed
        adapter, policy = adapter_for(model), record["policy"]
        counted = [int((matrix.weight == 0).sum()) for matrix in adapter.matrices]
        asked = [zeros_at(policy[matrix.name], matrix.size) for matrix in adapter.matrices]
        kept = ("proxy_loss", "proxy_kl", "proxy_nll", "achieved_sparsity", "chosen", "risk")
        return {
            **row,
            **{key: record[key] for key in kept},
            "policy": policy,
            "zeros_beyond_policy": sum(a - b for a, b in zip(counted, asked, strict=True)),
            "matrices_off_policy": sum(a != b for a, b in zip(counted, asked, strict=True)),
            **self.measure(model),
        }

    def _database(self, adapter: Adapter, ratio: float, work: Path) -> Database:
        """The database at the levels of one ratio, built once for all methods."""
        levels = self.parameters.levels(ratio)
        calibration = self.parameters.pruning.calibration
        folder = work / f"database-seed{self.seed}-{ratio:g}-{calibration}"
        if not folder.exists():
            identity = {"model": folder_digest(self.model_folder), "proxy": self.proxy.digest}
            build_database(
                adapter,
                self.proxy,
                levels,
                self.parameters.pruning,
                folder,
                work / "databases",
                identity,
            )
        return open_database(folder, levels)

    def _search(self, name: str, ratio: float, database: Database, work: Path) -> SearchResult:
        method = METHODS[name]
        calibration = self.parameters.pruning.calibration
        manifest = work / f"database-seed{self.seed}-{ratio:g}-{calibration}" / "manifest.json"
        return Search(
            adapter_for(load_model(self.model_folder)),
            self.proxy,
            database,
            self.parameters.levels(ratio),
            ratio,
            method.search_parameters(self.parameters.search),
            work / "searches",
            {
                "model": folder_digest(self.model_folder),
                "proxy": self.proxy.digest,
                "database": file_digest(manifest),
                "method": name,
            },
            method.upper_bound,
        ).run()


def read_cells(cells: Path) -> Iterator[dict[str, Any]]:
    """All finished cells, ordered by name."""
    for path in sorted(cells.glob("*.json")):
        yield read_json(path)
