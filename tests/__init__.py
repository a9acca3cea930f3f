"""The tests mirror the tree; importing `tasks` keeps what tools write inside the clone."""

import os

# small tensors: a second thread costs more than it gives, and much more on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")

import tasks  # noqa: F401
