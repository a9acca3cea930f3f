"""The experiment of docs/results.md: methods x ratios x calibrations over several seeds.

Run from the repository's root as `make results`, or `python -m bench.results --help`. A seed
is a model trained anew with its own questions, proxy data and search. Finished cells are kept
below .work/results; a killed run goes on from there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

from bench.cells import MATCHED, Unit, prepare, read_cells, run_unit
from bench.machine import machine
from bench.page import write_page
from efficientllava.errors import UserError
from efficientllava.files import value_digest
from efficientllava.parameters import Parameters
from efficientllava.pruning.methods import METHODS
from tasks.runtime.stage import guarded, read_parameters

CALIBRATIONS = ("text_and_pairs", "text")
BOTH = ("sparsegpt", "efficientllava")
"""Methods that are also measured with text-only calibration; magnitude uses none."""


def main() -> None:
    """Compute what is missing and write docs/results.{md,csv} and its plots."""
    arguments = _arguments()
    parameters = _parameters(arguments)
    settings = parameters.model_dump(
        mode="json", exclude={"methods", "ratios", "tracking", "export"}
    )
    folder = Path(arguments.work) / value_digest(settings)[:12]
    cells = folder / "cells"
    models = value_digest(parameters.model.model_dump(mode="json"))[:12]
    checkpoints = Path(arguments.checkpoints or Path(arguments.work) / f"models-{models}")
    if not arguments.tables_only:
        _compute(arguments, parameters, checkpoints, cells)
    command = "python -m bench.results " + " ".join(sys.argv[1:])
    rows = [
        row
        for row in read_cells(cells)
        if row["seed"] in arguments.seeds
        and (row["method"] == "dense" or row["ratio"] in arguments.ratios)
    ]
    if not rows:
        raise UserError("no finished cells", where=str(cells))
    write_page(rows, parameters, Path(arguments.docs), command.strip(), machine(), arguments.note)
    print(f"written: {arguments.docs}/results.md, results.csv and plots ({len(rows)} cells)")


def _arguments() -> argparse.Namespace:
    # the paper's method with its ablations and baselines; `make methods` compares all
    searched = [
        name
        for name, method in METHODS.items()
        if name in ("magnitude", "sparsegpt") or method.allocation == "search"
    ]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.4, 0.5, 0.6, 0.7])
    parser.add_argument("--methods", nargs="+", choices=searched, default=searched)
    parser.add_argument("--calibrations", nargs="+", choices=CALIBRATIONS, default=CALIBRATIONS)
    parser.add_argument("--rounds", type=int, help="rounds of a search; params.yaml's if not given")
    parser.add_argument("--candidates", type=int, help="candidates a round")
    parser.add_argument("--segments", type=int, help="text segments of the proxy")
    parser.add_argument("--questions", type=int, help="test questions; all if not given")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--checkpoints", help="folder of models: seed-N/model, seed-N/questions")
    parser.add_argument("--work", default=".work/results", help="folder of finished cells")
    parser.add_argument("--docs", default="docs", help="where the page goes")
    parser.add_argument(
        "--note", default="", help="a sentence for the page, e.g. the code's commit"
    )
    parser.add_argument("--tables-only", action="store_true", help="only write the page again")
    return parser.parse_args()


def _parameters(arguments: argparse.Namespace) -> Parameters:
    parameters = read_parameters()
    if parameters.model.source != "embedded":
        raise UserError(
            "the experiment trains one embedded model per seed",
            where="params.yaml, model.source",
            remedy="set it to `embedded`; for your own model use the pipeline",
        )
    search, proxy, evaluation = parameters.search, parameters.proxy, parameters.evaluation
    if arguments.rounds:
        search = search.model_copy(update={"rounds": arguments.rounds})
    if arguments.candidates:
        survivors = min(search.survivors, arguments.candidates)
        changes = {"candidates": arguments.candidates, "survivors": survivors}
        search = search.model_copy(update=changes)
    if arguments.segments:
        proxy = proxy.model_copy(update={"segments": arguments.segments})
    if arguments.questions:
        evaluation = evaluation.model_copy(update={"questions": arguments.questions})
    sections = {"search": search, "proxy": proxy, "evaluation": evaluation}
    return parameters.model_copy(update=sections)


def _units(arguments: argparse.Namespace) -> list[Unit]:
    units = []
    for calibration in arguments.calibrations:
        # all ratios of a seed before the next: an early end leaves whole seeds
        for seed in arguments.seeds:
            for ratio in arguments.ratios:
                methods = [
                    name
                    for name in arguments.methods
                    if calibration == CALIBRATIONS[0] or name in BOTH
                ]
                if calibration == CALIBRATIONS[0] and "efficientllava" in methods:
                    methods.insert(methods.index("efficientllava") + 1, MATCHED)
                units.append(Unit(seed, ratio, calibration, tuple(methods)))
    return units


def _compute(
    arguments: argparse.Namespace, parameters: Parameters, checkpoints: Path, cells: Path
) -> None:
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        try:
            print(f"models of {len(arguments.seeds)} seeds -> {checkpoints}", flush=True)
            _finish(
                [
                    pool.submit(prepare, parameters, seed, checkpoints, cells)
                    for seed in arguments.seeds
                ],
                "models",
                started,
            )
            units = _units(arguments)
            print(f"{sum(len(unit.methods) for unit in units)} cells -> {cells}", flush=True)
            _finish(
                [pool.submit(run_unit, parameters, unit, checkpoints, cells) for unit in units],
                "units",
                started,
            )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _finish(futures: list[Future[None]], what: str, started: float) -> None:
    for done, future in enumerate(as_completed(futures), 1):
        future.result()
        minutes = (time.monotonic() - started) / 60
        print(f"== {done} of {len(futures)} {what} after {minutes:.1f} min", flush=True)


if __name__ == "__main__":
    sys.exit(guarded(main))
