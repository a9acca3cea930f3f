"""The Dask cluster of a pipeline run: Prefect's Dask task runner starts it, searches share it.

Stages are processes that hold the workspace's lock and do not go to Dask; their candidates do.
"""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from efficientllava.errors import UserError
from efficientllava.parameters import SearchParameters
from flows.runner.graph import Node
from tasks.runtime.executors import DASK_SCHEDULER

LOOPBACK = "127.0.0.1"


class SearchCluster:
    """Starts at the first search that runs, ends with the block.

    Workers are processes on this machine, of one thread each, reached over the loopback interface
    only; or those of the scheduler that `search.dask_address` names, which are left running.
    """

    def __init__(self, search: SearchParameters) -> None:
        self.search = search
        self._address: str | None = None
        self._stack = ExitStack()

    def __enter__(self) -> SearchCluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def environment(self, node: Node) -> dict[str, str]:
        """Variables for a stage's process: where its candidates go.

        Raises:
            UserError: Dask is not installed, or its scheduler cannot be reached.
        """
        if self.search.executor != "dask" or not node.name.startswith("search@"):
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
                where="search.executor: dask",
                remedy="pip install 'efficientllava[dask]'",
            ) from error
        if self.search.dask_address is not None:
            runner = DaskTaskRunner(address=self.search.dask_address)
        else:
            runner = DaskTaskRunner(
                cluster_kwargs={
                    "n_workers": self.search.workers,
                    "threads_per_worker": 1,
                    "processes": True,
                    "host": LOOPBACK,
                    "dashboard_address": None,
                    "memory_limit": 0,
                }
            )
        try:
            address: str = self._stack.enter_context(runner).client.scheduler.address
        except (OSError, TimeoutError) as error:
            raise UserError(
                f"no Dask scheduler answers ({error})",
                where=f"search.dask_address: {self.search.dask_address}",
                remedy="start it (`dask scheduler`, `dask worker --nthreads 1`), or set it to null",
            ) from error
        return address
