"""On what a measurement on a card was made: card, clocks, driver, torch, commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIELDS = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.limit",
    "memory.total",
    "temperature.gpu",
)
"""What nvidia-smi is asked for; `python -m bench card` asks again after each part."""


def conditions(device: str) -> dict[str, str]:
    """The device, what it runs with, and this code's commit."""
    import torch
    import triton

    found = {
        "device": "CPU" if device == "cpu" else torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": triton.__version__,
        "commit": commit(),
    }
    return found | clocks(device)


def clocks(device: str) -> dict[str, str]:
    """What nvidia-smi says of a card; why it says nothing where it does not."""
    if device == "cpu":
        return {}
    import torch

    number = torch.device(device).index or 0
    # CUDA may number what nvidia-smi shows in another order
    identity = str(torch.cuda.get_device_properties(number).uuid)
    command = ["nvidia-smi", f"--id=GPU-{identity}", f"--query-gpu={','.join(FIELDS)}"]
    try:
        done = subprocess.run(
            [*command, "--format=csv,noheader"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"nvidia-smi": f"not run: {error}"}
    if done.returncode:
        return {"nvidia-smi": (done.stdout + done.stderr).strip()}
    return dict(zip(FIELDS, (each.strip() for each in done.stdout.split(",")), strict=False))


def commit() -> str:
    """The commit that is checked out, with "+" where files have been changed."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown: {error}"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
