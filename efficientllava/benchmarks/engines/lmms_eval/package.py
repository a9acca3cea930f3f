"""The package lmms-eval, imported where it is installed, without what it changes for others."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from efficientllava.benchmarks.judge.redaction import without_secrets
from efficientllava.errors import UserError

VERSION = "0.7.3"
"""Of lmms-eval: the one that this engine was tried with."""
INSTALL = f"pip install 'efficientllava[lmms]', then pip install --no-deps lmms-eval=={VERSION}"
SECRET = ("_KEY", "_TOKEN", "_SECRET", "PASSWORD")
"""Ends of the names of variables that hold a secret."""
SHORTEST_SECRET = 8


def require_package() -> None:
    """Import the package; what it logs from then on goes to stderr, from warnings upwards.

    Its metrics come from the package: `evaluate` fetches no script of a metric from the hub, which
    it would run, unless the user sets HF_EVALUATE_OFFLINE=0.

    Raises:
        UserError: the package, or one that it needs, is not installed.
    """
    from PIL import ImageFile

    os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
    truncated = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        import lmms_eval.evaluator  # noqa: F401
        from loguru import logger
    except ImportError as error:
        missing = (error.name or str(error)).partition(".")[0]
        raise UserError(
            f"the package {missing.replace('lmms_eval', 'lmms-eval')} is not installed",
            where="evaluation.engine: lmms_eval",
            remedy=f"{INSTALL} (docs/evaluate.md says why apart)",
        ) from error
    finally:  # broken pictures stay an error for our own benchmarks
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated
    logger.remove()
    logger.add(_log, level="WARNING", format="lmms-eval: {message}", diagnose=False)


@contextmanager
def truncated_pictures() -> Iterator[None]:
    """Cut-off pictures are read as far as they go, as lmms-eval reads those of its tasks."""
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _log(message: str) -> None:
    sys.stderr.write(redacted(str(message)))


def redacted(text: str) -> str:
    """A text without the secrets of the environment and without the hub's token."""
    from huggingface_hub import get_token

    values = [value for name, value in os.environ.items() if name.upper().endswith(SECRET)]
    secrets = [value for value in (*values, get_token() or "") if len(value) >= SHORTEST_SECRET]
    return without_secrets(text, secrets) if secrets else text


def first_line(error: BaseException) -> str:
    """Kind and first line of an error, of its cause where the package tried several times."""
    attempt = getattr(error, "last_attempt", None)
    cause = (attempt.exception() if attempt is not None else None) or error
    line = (str(cause).strip().splitlines() or [""])[0][:300]
    return redacted(f"{type(cause).__name__}{line and ': '}{line}")
