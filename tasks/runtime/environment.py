"""The environment of every process of the pipeline, set before anything heavy starts.

Nothing here overrides what the user has set.
"""

from __future__ import annotations

import os
from pathlib import Path

from efficientllava.loopback import reach_loopback

DASK_SCHEDULER = "EFFICIENTLLAVA_DASK_SCHEDULER"
"""Set by the flow for a search's process: address of the cluster that its searches share."""

# tools that would write to the home folder or /var/tmp write inside the clone instead
FOLDERS = {
    "DVC_GLOBAL_CONFIG_DIR": ".work/caches/dvc",
    "DVC_SITE_CACHE_DIR": ".dvc/tmp/site",  # as .dvc/config says for plain `dvc repro`
    "HF_HOME": ".work/caches/huggingface",
    "MPLCONFIGDIR": ".work/caches/matplotlib",
    "NUMBA_CACHE_DIR": ".work/caches/numba",
    "TORCHINDUCTOR_CACHE_DIR": ".work/caches/inductor",
}
SETTINGS = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers draws a bar per loaded file otherwise
    "MLFLOW_DISABLE_TELEMETRY": "true",  # MLflow ignores `1`
    "NM_DISABLE_ANALYTICS": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime would keep a data base in ~/.cache/Microsoft
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
    # the number of threads decides the bits of a sum: never let a library lower it by itself
    "OMP_DYNAMIC": "FALSE",
    "MKL_DYNAMIC": "FALSE",
}


def prepare(root: Path | None = None) -> None:
    """Set the defaults for this process and those it starts.

    Args:
        root: the workspace; the current folder when not given.
    """
    root = (root or Path.cwd()).resolve()
    for name, folder in FOLDERS.items():
        os.environ.setdefault(name, str(root / folder))
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    reach_loopback()


def thread_settings(threads: int) -> dict[str, str]:
    """The variables that give a process `threads` threads for its arithmetic."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def use_threads(threads: int) -> None:
    """Give this process `threads` threads for its arithmetic; call it before torch is imported."""
    os.environ.update(thread_settings(threads))
