"""Prefect's Dask task runner starts one cluster for the searches of a run, and ends it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from efficientllava.allocation.scoring.executors import dask_executor
from efficientllava.errors import UserError
from efficientllava.parameters import MachineParameters
from flows.pipeline import pipeline
from flows.runner.graph import Node
from flows.server.cluster import SearchCluster
from flows.server.workspaces import changed, make_workspace
from tasks.runtime.environment import DASK_SCHEDULER
from tasks.runtime.stage import read_values
from tests.flows.conftest import ROOT, enter
from tests.flows.shared_servers import free_port
from tests.page_commands import commands

pytest.importorskip("prefect_dask")
distributed = pytest.importorskip("distributed")


def node(name: str) -> Node:
    return Node(name, ())


def test_no_cluster_where_none_is_wanted() -> None:
    with SearchCluster(MachineParameters()) as cluster:
        assert cluster.environment(node("search@m-0.5")) == {}
    with SearchCluster(MachineParameters(executor="dask")) as cluster:
        assert cluster.environment(node("prune@m-0.5")) == {}


def test_searches_share_a_cluster_that_ends_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = MachineParameters(executor="dask", workers=1)
    with SearchCluster(parameters) as cluster:
        variables = cluster.environment(node("search@m-0.5"))
        assert cluster.environment(node("search@n-0.5")) == variables
        address = variables[DASK_SCHEDULER]
        assert address.startswith("tcp://127.0.0.1:")
        monkeypatch.setenv(DASK_SCHEDULER, address)
        with dask_executor(parameters) as executor:
            assert executor.submit(divmod, 7, 2).result() == (3, 1)
        # another run is told the address, and leaves the cluster as it is
        named = MachineParameters(executor="dask", dask_address=address)
        with SearchCluster(named) as other:
            assert other.environment(node("search@m-0.5")) == variables
        with dask_executor(parameters) as executor:
            assert executor.submit(divmod, 9, 2).result() == (4, 1)
        with pytest.raises(ValueError, match="No clients found"):
            distributed.default_client()


def test_a_scheduler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import dask

    named = MachineParameters(executor="dask", dask_address="tcp://127.0.0.1:9")
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        with pytest.raises(UserError, match="no Dask scheduler answers"):
            with SearchCluster(named) as cluster:
                cluster.environment(node("search@m-0.5"))


@pytest.mark.slow
def test_the_team_page_s_workers_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A scheduler and workers as docs/team.md starts them, on this machine."""
    shown = [command for command in commands("team.md") if command.startswith("dask ")]
    address = f"127.0.0.1:{free_port()}"
    host, _, port = address.partition(":")
    processes = []
    try:
        for command in shown:
            line = command.replace("10.0.0.1:8786", address).replace("10.0.0.1", host)
            words = line.replace("8786", port).split()
            processes.append(subprocess.Popen([sys.executable, "-m", *words], cwd=tmp_path))
        named = MachineParameters(executor="dask", dask_address=f"tcp://{address}")
        with distributed.Client(named.dask_address, timeout=120) as client:
            client.wait_for_workers(2, timeout=120)
            # a user's own process finds the cluster by the parameter alone
            monkeypatch.delenv(DASK_SCHEDULER, raising=False)
            with SearchCluster(named) as cluster:
                assert cluster.environment(node("search@m-0.5"))
                with dask_executor(named) as executor:
                    assert executor.submit(divmod, 7, 2).result() == (3, 1)
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(30)


@pytest.mark.slow
def test_a_flow_on_dask_finds_what_threads_find(
    tmp_path: Path, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for executor in ("threads", "dask"):
        values = read_values(ROOT / "tests" / "smallest_params.yaml")
        values = changed(values, {"machine.executor": executor, "methods": ["efficientllava"]})
        make_workspace(ROOT, tmp_path / executor, values)
        enter(tmp_path / executor, monkeypatch)
        state = pipeline(until=["search"], return_state=True)
        folder = tmp_path / executor / "artifacts" / "search" / "efficientllava-0.5"
        names = ("policy.json", "history.jsonl", "projector.safetensors")
        found.append([(folder / name).read_bytes() for name in names])
    assert found[0] == found[1], state
