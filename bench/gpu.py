"""The pipeline at 7B size on one GPU, with everything there and streamed: one command.

    python -m bench gpu --folder /dev/shm/bench       # 7B, 80 GB and 22 GB modes: about 95 GB there
    python -m bench gpu --profile                     # and where the time of two candidates goes
    python -m bench gpu --device cpu --width 64 --mlp 128 --blocks 3 --vocabulary 512 \\
        --small-tower --segments 4 --length 32 --pairs 8 --rounds 2 --candidates 4 --modes 0

A LLaVA with random bfloat16 weights is made on the device and saved; each mode (GB of the device
that may be used; 0: no limit) then runs in a process of its own: database, candidates against bare
forward passes, the search with projector evolution, the final model. Each line is printed as soon
as it is measured, and a phase that fails leaves the others. Peaks are torch's: allocated, and in
brackets reserved. Goals for 7B: database 60 s, search 5 min, all 12 min, 80 and 22 GB.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench import options_of, say_conditions
from bench.card.memory import by_formula
from bench.card.sensitivity import TOKENS, sensitivity_pass
from bench.card.timing import show_profile
from bench.random_models import LEVELS, DecoderSize, save_random_inputs, size_options

GB = 10**9


class Bench:
    """One mode: its phases and their times.

    Args:
        limit: GB of the device; 0 for no limit.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path, limit: float) -> None:
        import torch

        from efficientllava.data.proxy import load_proxy
        from efficientllava.offload.devices import open_device
        from efficientllava.parameters import MachineParameters, ObsParameters, SearchParameters

        self.arguments, self.folder, self.limit = arguments, folder, limit
        self.device = open_device(arguments.device)
        self.memory = limit * GB / 2**30 if limit else None
        self.cuda = self.device.type == "cuda"
        if self.cuda and limit:
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit * GB / total), self.device)
        self.proxy = load_proxy(folder / "proxy")
        self.pruning = ObsParameters(storage=arguments.storage)
        changes: dict[str, Any] = {
            "candidates": arguments.candidates,
            "rounds": arguments.rounds,
            "survivors": min(4, arguments.candidates),
            "projector_batch": arguments.projector_batch,
        }
        self.search_parameters = SearchParameters(**changes)
        self.machine = MachineParameters(workers=1)
        self.result: Any = None
        self.seconds: dict[str, float] = {}
        self.failed = False

    def phase(self, name: str, work: Callable[[], str]) -> None:
        """Run a phase and print its line, or why it failed."""
        import torch

        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        started = time.perf_counter()
        try:
            outcome = work()
        except Exception as error:
            traceback.print_exc()
            self.failed = True
            outcome = f"FAILED: {type(error).__name__}: {str(error).splitlines()[0]}"
        else:
            self.seconds[name] = time.perf_counter() - started
        self.wait()
        peak = "-"
        if self.cuda:
            allocated = torch.cuda.max_memory_allocated(self.device) / GB
            reserved = torch.cuda.max_memory_reserved(self.device) / GB
            peak = f"{allocated:.1f} ({reserved:.1f})"
        row = (_mode(self.limit), name, f"{time.perf_counter() - started:.1f}", peak, outcome)
        print(f"| {' | '.join(row)} |", flush=True)

    def wait(self) -> None:
        """Let the device finish."""
        import torch

        if self.cuda:
            torch.cuda.synchronize(self.device)

    def run(self) -> int:
        """All phases; 1 if one failed."""
        shutil.rmtree(self.folder / "database", ignore_errors=True)
        self.phase("database", self.database)
        self.phase("candidates", self.candidates)
        self.phase("sensitivity", self.sensitivity)
        self.phase("search", self.search)
        self.phase("prune", self.prune)
        whole = [
            self.seconds[name] for name in ("database", "search", "prune") if name in self.seconds
        ]
        summary = "database + search + prune" if len(whole) == 3 else "INCOMPLETE"
        print(f"| {_mode(self.limit)} | whole | {sum(whole):.1f} | | {summary} |", flush=True)
        return int(self.failed)

    def database(self) -> str:
        """Every matrix at every level."""
        from efficientllava.database.build import build_database
        from efficientllava.models.checkpoint import load_model
        from efficientllava.models.families import adapter_for
        from efficientllava.offload.blocks_on_disk import blocks_on_disk

        adapter = adapter_for(load_model(self.folder / "model"))
        target, times = self.folder / "database", [time.perf_counter()]

        def tell(event: Any) -> None:
            times.append(time.perf_counter())

        with blocks_on_disk(adapter, self.folder / "model", self.folder / "work", self.device):
            build_database(
                adapter, self.proxy, LEVELS, self.pruning, target, self.folder / "w", {}, tell
            )
        size = sum(file.stat().st_size for file in target.glob("*.safetensors")) / GB
        blocks = [after - before for before, after in zip(times, times[1:], strict=False)]
        formula = by_formula(adapter, self.proxy) / GB
        return f"{size:.1f} GB; a block {median(blocks):.2f} s; by formula {formula:.1f} GB"

    def offloaded(self) -> Any:
        """Model and database, where they fit."""
        from efficientllava.database.offloaded import Machine, offloaded

        machine, pairs = Machine(self.device, self.memory), self.search_parameters.projector_batch
        model, database = self.folder / "model", self.folder / "database"
        work, again = self.folder / "work", True
        return offloaded(model, database, self.proxy, machine, work, pairs, None, again, TOKENS)

    def candidates(self) -> str:
        """Candidates in turn with bare forward passes of the same tokens."""
        import random

        from efficientllava.allocation.scoring.evaluation import stitched_models
        from efficientllava.calibration.proxy_loss import ProxyLoss, mean_loss

        with self.offloaded() as opened:
            adapter = opened.adapter
            loss = ProxyLoss(adapter, self.proxy, "kl", "text")
            (stitched,) = stitched_models(adapter, opened.database, 1, opened.blocks)
            generator, times = random.Random(0), {"bare": [0.0], "candidate": [0.0]}

            def bare() -> None:
                mean_loss(adapter.language_model, loss.head, loss.text, "nll")

            def candidate() -> None:
                stitched.stitch([generator.choice(LEVELS) for _ in adapter.matrices])
                loss(adapter.language_model)

            for _ in range(self.arguments.candidates + 1):
                for name, work in (("candidate", candidate), ("bare", bare)):
                    self.wait()
                    started = time.perf_counter()
                    work()
                    self.wait()
                    times[name].append(time.perf_counter() - started)
            if self.arguments.profile:
                show_profile(candidate, self.cuda)
            one, other = (median(times[name][2:]) for name in ("candidate", "bare"))
            at = "mapped" if opened.placement is None else (
                f"blocks {opened.placement.blocks}, database {opened.placement.database}, by "
                f"formula {opened.placement.device_bytes / GB:.1f} GB"
            )  # fmt: skip
        return f"{at}; candidate {one:.3f} s, bare {other:.3f} s, ratio {one / other:.3f}"

    def sensitivity(self) -> str:
        """The gradients of `efficientllava_plus`, beside forward passes of the same tokens."""
        with self.offloaded() as opened:
            return sensitivity_pass(
                opened, self.proxy, LEVELS, self.folder / "sensitivity", self.wait
            )

    def search(self) -> str:
        """The whole search, with projector evolution."""
        from efficientllava.allocation.search.algorithm import Search, SearchGoal, SearchInputs

        shutil.rmtree(self.folder / "search", ignore_errors=True)
        rounds = [time.perf_counter()]

        def tell(event: Any) -> None:
            if event.name == "round":
                rounds.append(time.perf_counter())

        with self.offloaded() as opened:
            self.result = Search(
                SearchInputs(opened.adapter, self.proxy, opened.database, opened.blocks),
                SearchGoal(LEVELS, 0.5, self.search_parameters),
                self.machine,
                self.folder / "search",
                {},
                tell,
            ).run()
        times = [after - before for before, after in zip(rounds, rounds[1:], strict=False)]
        summary = self.result.summary
        return (
            f"{summary['rounds']} rounds, {summary['candidates']} candidates, projector moved "
            f"{summary['projector_rounds_kept']} times; a round {median(times):.2f} s"
        )

    def prune(self) -> str:
        """The final model, verified, saved and loaded again."""
        from efficientllava.allocation.context import Allocation, Risk
        from efficientllava.calibration.opened import OpenModel
        from efficientllava.database.solutions import Database, open_database
        from efficientllava.models.checkpoint import load_model, save_checkpoint
        from efficientllava.models.families import adapter_for
        from efficientllava.offload.blocks_on_disk import blocks_on_disk
        from efficientllava.parameters import Parameters
        from efficientllava.pruning.finalize import require_same_logits
        from efficientllava.pruning.masked import prune_masked

        dense, saved = self.folder / "model", self.folder / "pruned"
        adapter = adapter_for(load_model(dense))
        policy, projector = {matrix.name: 0.5 for matrix in adapter.matrices}, {}
        if self.result is not None:  # else the search failed; pruning is still timed
            policy = self.result.policy
            projector = {name: tensor.cpu() for name, tensor in self.result.projector.items()}
        database: Database | None = None
        if self.arguments.little_disk:
            shutil.rmtree(self.folder / "database", ignore_errors=True)
        else:
            database = open_database(self.folder / "database")
        with blocks_on_disk(adapter, dense, self.folder / "work", self.device) as kept:
            record = prune_masked(
                OpenModel(adapter, kept),
                self.proxy,
                "obs",
                Allocation(policy, "search", projector, risk=Risk("mean_log_norm", 0.5)),
                Parameters(obs=self.pruning, search=self.search_parameters),
                database,
            )
            save_checkpoint(adapter.model, dense, saved, save_weights=kept.save_weights)  # type: ignore[arg-type]
            again = load_model(saved)
            with blocks_on_disk(adapter_for(again), saved, self.folder / "again", self.device):
                require_same_logits(adapter.model, again, self.proxy)  # type: ignore[arg-type]
        shutil.rmtree(saved)
        return f"sparsity {record['achieved_sparsity']:.4f}, {record['chosen']}"


def _mode(limit: float) -> str:
    return f"{limit:g} GB" if limit else "no limit"


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        parents=[size_options(DecoderSize(4096, 11008, 32, 32000))],
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small-tower", action="store_true", help="no CLIP-L/14 of 336 pixels")
    parser.add_argument("--segments", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--projector-batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--storage", choices=("dense", "compact"), default="compact")
    parser.add_argument("--modes", type=float, nargs="+", default=[80.0, 22.0], help="GB; 0: all")
    parser.add_argument("--device-memory", type=float, help="one mode alone, in GB")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument(
        "--little-disk", action="store_true",
        help="the database goes after the search: no stitched model to compare in `prune`",
    )  # fmt: skip
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path(".work/bench-gpu"))
    parser.add_argument("--part", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Measure each mode in a process of its own."""
    arguments = options_of(options())
    if arguments.part == "build":
        save_random_inputs(arguments)
        return 0
    if arguments.part is not None:
        return Bench(arguments, arguments.folder, float(arguments.part)).run()

    from efficientllava.offload.devices import describe, require_device

    arguments.folder.mkdir(parents=True, exist_ok=True)
    # bytes a weight: model, blocks pruned and stitched, saved; the database
    weights = arguments.blocks * (4 * arguments.width**2 + 3 * arguments.width * arguments.mlp)
    solutions = 5.65 if arguments.storage == "compact" else 10.0
    per_weight = max(2 + solutions, 6.0) if arguments.little_disk else 8 + solutions
    needed = weights * per_weight * 1.05 / GB
    free = shutil.disk_usage(arguments.folder).free / GB
    say_conditions(arguments, device=describe(require_device(arguments.device)))
    if needed > free:
        print(f"{arguments.folder}: {needed:.0f} GB needed, {free:.0f} free: name another --folder")
        return 2
    command = [sys.executable, "-m", "bench", "gpu", *sys.argv[1:]]
    started, status = time.perf_counter(), 0
    try:
        subprocess.run([*command, "--part", "build"], check=True)
        print(f"model and proxy made in {time.perf_counter() - started:.0f} s", flush=True)
        print("| mode | phase | s | peak GB | |\n|---|---|---|---|---|", flush=True)
        modes = arguments.modes if arguments.device_memory is None else [arguments.device_memory]
        for mode in modes:
            status |= subprocess.run([*command, "--part", f"{mode:g}"], check=False).returncode
    finally:
        shutil.rmtree(arguments.folder, ignore_errors=True)
    return status
