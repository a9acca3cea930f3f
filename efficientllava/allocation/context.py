"""What a method works with, and the ratios that it gives: the two ends of `Method.allocate`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientllava.allocation.unfinished import unfinished
from efficientllava.files import folder_digest, read_sealed, value_digest
from efficientllava.models.source import CHECKPOINT_FILES
from efficientllava.parameters import Parameters
from efficientllava.progress import Progress, silent

if TYPE_CHECKING:
    # torch is imported when weights are needed: for the same ratio everywhere they are not
    import torch

    from efficientllava.data.proxy import ProxyData
    from efficientllava.database.solutions import Database


@dataclass(frozen=True)
class Context:
    """A dense model, the data to prune it with, and everything that is asked for.

    Attributes:
        model: folder of the dense checkpoint.
        proxy_folder: folder of the proxy data (`save_proxy`).
        ratio: target sparsity, the share of the prunable weights that go.
        parameters: all of them; `ratios` are those that one database shall serve.
        work: folder for databases, unfinished work and temporary files.
        scheduler: address of a running Dask scheduler for a search's candidates, or None.
    """

    model: Path
    proxy_folder: Path
    ratio: float
    parameters: Parameters
    work: Path
    progress: Progress = silent
    scheduler: str | None = None

    @cached_property
    def proxy(self) -> ProxyData:
        """The proxy data, read once."""
        from efficientllava.data.proxy import load_proxy

        return load_proxy(self.proxy_folder)

    @cached_property
    def digests(self) -> dict[str, str]:
        """sha256 of the dense checkpoint and of the proxy data.

        A user's model folder may hold other things beside it, the work folder among them.
        """
        model = folder_digest(self.model, CHECKPOINT_FILES)
        return {"model": model, "proxy": self.proxy.digest}

    def row_importance(self) -> Mapping[str, torch.Tensor]:
        """How much every row of every matrix counts, [out] by name; measured once, resumable.

        The samples are those that give the costs of `sensitivity`.

        Raises:
            UserError: see `measure_rows`; the model does not fit on the device.
        """
        from efficientllava.allocation.gradients.row_importance import measure_rows, measured_rows
        from efficientllava.allocation.gradients.samples import split
        from efficientllava.database.offloaded import Machine, offloaded
        from efficientllava.database.solutions import Database
        from efficientllava.offload.devices import open_device

        machine, sensitivity = self.parameters.machine, self.parameters.sensitivity
        data = self.parameters.search.fitness_data
        key = value_digest({**self._row_samples, **self.digests})[:16]
        folder = unfinished(self.work, "rows", machine) / key
        if (found := measured_rows(folder)) is not None:
            return found
        with offloaded(
            self.model,
            Database({}, {}),
            self.proxy,
            Machine(open_device(machine.device), machine.device_memory),
            # a method that is applied has its model's blocks in the work folder itself
            folder,
            gradient_checkpointing=True,
            gradient_tokens=sensitivity.tokens,
        ) as opened:
            measure_rows(
                opened.adapter,
                split(self.proxy, sensitivity, data).gradients,
                sensitivity.seed,
                folder,
                opened.blocks is not None,
                self.progress,
            )
        return self.row_importance()

    @property
    def _row_samples(self) -> dict[str, Any]:
        """What `row_importance` depends on beside the model and the proxy data."""
        chosen = self.parameters.sensitivity.model_dump(include={"tokens", "pairs", "seed"})
        return {"data": self.parameters.search.fitness_data, **chosen}

    def database(self, levels: Sequence[float], by_importance: bool = False) -> Database:
        """The OBS database with these levels, opened; what it lacks is built."""
        from efficientllava.database.solutions import open_database

        return open_database(self.database_folders(levels, (), by_importance), levels)

    def database_folders(
        self,
        levels: Sequence[float],
        others: Collection[float] = (),
        by_importance: bool = False,
    ) -> list[Path]:
        """The folders that together hold the OBS solutions at these levels.

        Levels that no earlier run has built are built now, together with the `others` that are
        missing, in one pass of the model. A killed build resumes.

        Args:
            others: levels that further ratios will need.
            by_importance: whether the rows of a matrix count by `row_importance`, or all alike.

        Raises:
            UserError: see `build_database` and `row_importance`; the model does not fit on the
                device.
        """
        from efficientllava.calibration.opened import block_by_block
        from efficientllava.database.build import build_database

        parameters, root = self.parameters, self._databases(by_importance)
        at = self.built_levels(by_importance)
        if any(round(level, 4) not in at for level in levels):
            missing = sorted({round(level, 4) for level in {*others, *levels}} - at.keys())
            folder, unfinished_databases = root / value_digest(missing)[:16], root / "unfinished"
            importance = self.row_importance() if by_importance else None
            with block_by_block(
                self.model,
                # a method that is applied has its model's blocks in the work folder itself
                unfinished_databases,
                self.proxy,
                parameters.machine,
                levels=len(missing),
                block_size=parameters.obs.block_size,
            ) as opened:
                build_database(
                    opened.adapter,
                    self.proxy,
                    missing,
                    parameters.obs,
                    folder,
                    unfinished_databases,
                    self.digests,
                    self.progress,
                    importance,
                )
            at |= dict.fromkeys(missing, folder)
        return sorted({at[round(level, 4)] for level in levels})

    def _databases(self, by_importance: bool) -> Path:
        folder = unfinished(self.work, "database", self.parameters.machine)
        return folder / self.database_key(by_importance)

    def built_levels(self, by_importance: bool = False) -> dict[float, Path]:
        """The folder of every level whose OBS solutions are there already."""
        from efficientllava.database.solutions import MANIFEST

        return {
            level: manifest.parent
            for manifest in sorted(self._databases(by_importance).glob(f"*/{MANIFEST}"))
            for level in read_sealed(manifest)["levels"]
        }

    def database_key(self, by_importance: bool = False) -> str:
        """What decides the solutions: the model, the proxy data and how matrices are pruned."""
        decides: dict[str, Any] = {"obs": self.parameters.obs.model_dump(mode="json")}
        if by_importance:
            decides["rows"] = self._row_samples
        return value_digest({**decides, **self.digests})[:16]


@dataclass(frozen=True)
class Risk:
    """How a search weighs the structural risk: `search.complexity` and `search.eta`.

    Attributes:
        decides: whether it is minimised; False records it beside the loss, which is.
    """

    complexity: str
    eta: float
    decides: bool = True


@dataclass(frozen=True)
class Allocation:
    """The ratio of every matrix, and how it was found.

    Attributes:
        policy: ratio by name of the matrix.
        kind: "uniform", "outliers", "search" or another method's own word.
        projector: state of the evolved vision projector; empty for the model's own.
        history: one row per candidate that was scored.
        summary: numbers about it (mean_sparsity among them).
        risk: what the search minimised beside the loss; None where nothing was searched.
        levels: ratios that a matrix could take; empty where the method has no levels.
        gain: of the policy over the uniform one, stitched, on tokens that neither its costs nor its
            corrections saw: `uniform_kl`, `kl`, `difference`, `error`, `positions`; how many
            policies were `compared`, the `uniform_ratios` (above 1 where levels cannot meet the
            target with one), and the shares of zeros, `uniform_zeros` and `zeros`. None where it
            was not measured.
    """

    policy: Mapping[str, float]
    kind: str
    projector: Mapping[str, torch.Tensor] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    risk: Risk | None = None
    levels: Sequence[float] = ()
    gain: Mapping[str, float] | None = None
