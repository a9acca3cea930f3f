"""`machine.device` and `machine.device_memory` as the stages see them."""

from __future__ import annotations

import shutil
import time

import pytest
import torch

from efficientllava.allocation.scoring.executors import process_pool
from efficientllava.files import file_digest, folder_digest
from tests.tasks.conftest import Here, Workspace

CELL = ("--method", "efficientllava", "--ratio", "0.5")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize(
    "stage", [("tasks.questions",), ("tasks.search", *CELL), ("tasks.prune", *CELL)]
)
def test_a_missing_gpu_is_told_before_anything_is_done(
    workspace: Workspace, here: Here, stage: tuple[str, ...]
) -> None:
    workspace.set_parameters({"machine": {"device": "cuda"}})
    outcome = here(workspace.folder, *stage)
    assert outcome.status == 2
    assert "machine.device: cuda" in outcome.error and "compute on the cpu" in outcome.error
    assert not (workspace.folder / "artifacts").exists()


def test_a_limit_of_memory_changes_no_result(ready: Workspace, here: Here) -> None:
    """On a CPU too: blocks pass through two places, the search is placed by the formula."""
    found = []
    for limit in (None, 4.0):
        ready.set_parameters({"machine": {"device_memory": limit}})
        made = []
        shutil.rmtree(ready.folder / ".work", ignore_errors=True)
        for stage in (("tasks.search", *CELL), ("tasks.prune", *CELL), ("tasks.evaluate", *CELL)):
            outcome = here(ready.folder, *stage)
            assert outcome.status == 0, outcome.error
            name = stage[0].removeprefix("tasks.")
            folder = {"prune": "pruned", "evaluate": "evaluation"}.get(name, name)
            made.append(folder_digest(ready.folder / "artifacts" / folder))
        solutions = (ready.folder / ".work" / "database").rglob("*.safetensors")
        made.append(sorted(file_digest(path) for path in solutions))
        found.append(made)
    assert found[0] == found[1]


def test_a_limit_that_is_too_low_is_told(ready: Workspace, here: Here) -> None:
    ready.set_parameters({"machine": {"device_memory": 0.5}})
    outcome = here(ready.folder, "tasks.search", *CELL)
    assert outcome.status == 2
    assert "0.5 may be used" in outcome.error and "are missing" in outcome.error


def device_taken() -> str:
    """Which device this process has; slowly, so that another process takes the next question."""
    from efficientllava.allocation.scoring import workers

    time.sleep(2.0)
    return workers._device[0]


@pytest.mark.slow
def test_every_process_takes_a_device() -> None:
    with process_pool(["cpu", "cuda:1"]) as pool:
        seen = {future.result() for future in [pool.submit(device_taken) for _ in range(4)]}
    assert seen == {"cpu", "cuda:1"}
