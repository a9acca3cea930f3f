"""Section `machine`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from efficientllava.parameters.section import Section

DEVICE = r"^(cpu|cuda(:[0-9]+)?)$"


class MachineParameters(Section):
    """What the machine gives to every stage; results depend on `threads` and `device` alone."""

    threads: int = Field(
        1,
        ge=1, le=1024,
        description="threads of one process; results are bit-for-bit the same only at the same number",
    )
    device: str = Field(
        "cpu", pattern=DEVICE, description="what search (with its database), prune and evaluate compute on: cpu, cuda or cuda:N; another device gives the same results only to a tolerance"
    )
    device_memory: float | None = Field(
        None, gt=0.0, le=1_000_000.0, description="GiB of the GPU that may be used; null takes what is free. What does not fit is streamed; changes no result"
    )
    workers: int = Field(
        2, ge=1, le=1024, description="a search's candidates evaluated side by side, each with `threads` and its own copy of the language model; changes no result"
    )
    executor: Literal["threads", "processes", "dask"] = Field(
        "threads", description="who the workers are: threads of the search, processes, or Dask's processes; changes no result"
    )
    dask_address: str | None = Field(
        None, description="a running Dask scheduler, e.g. tcp://host:8786, whose workers read the same folders; null starts `workers` processes here; changes no result"
    )
    gradient_checkpointing: bool = Field(
        True, description="compute decoder blocks again in the projector's backward pass, where that saves more than 256 MiB: less memory, one more forward pass a step; changes no result"
    )
