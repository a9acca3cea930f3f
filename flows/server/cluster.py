"""The Dask cluster of a pipeline run: Prefect's Dask task runner starts it, searches share it.

Stages are processes that hold the workspace's lock and do not go to Dask; their candidates do.
"""

from __future__ import annotations

from contextlib import ExitStack

from efficientllava.errors import UserError
from efficientllava.parameters import MachineParameters
from flows.runner.graph import Node
from tasks.runtime.environment import DASK_SCHEDULER

LOOPBACK = "127.0.0.1"


class SearchCluster(ExitStack[None]):
    """Starts at the first search that runs, ends with the block.

    Workers are processes on this machine, of one thread each, reached over the loopback interface
    only; or those of the scheduler that `machine.dask_address` names, which are left running.
    """

    def __init__(self, machine: MachineParameters) -> None:
        super().__init__()
        self.machine = machine
        self._address: str | None = None

    def environment(self, node: Node) -> dict[str, str]:
        """Variables for a stage's process: where its candidates go.

        Raises:
            UserError: Dask is not installed, or its scheduler cannot be reached.
        """
        if self.machine.executor != "dask" or not node.name.startswith("search@"):
            return {}
        if self._address is None:
            self._address = self._start()
        return {DASK_SCHEDULER: self._address}

    def _start(self) -> str:
        try:
            from prefect_dask import DaskTaskRunner
        except ImportError as error:
            raise UserError(
                "prefect-dask is not installed",
                where="machine.executor: dask",
                remedy="pip install 'efficientllava[dask]'",
            ) from error
        from efficientllava.allocation.scoring.executors import scheduler_of  # imports torch

        named = self.machine.dask_address
        if named is not None:
            runner = DaskTaskRunner(address=named)
        else:
            runner = DaskTaskRunner(
                cluster_kwargs={
                    "n_workers": self.machine.workers,
                    "threads_per_worker": 1,
                    "processes": True,
                    "host": LOOPBACK,
                    "dashboard_address": None,
                    "memory_limit": 0,
                }
            )
        with scheduler_of(named):
            address: str = self.enter_context(runner).client.scheduler.address
        return address
