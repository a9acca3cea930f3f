"""safetensors files: their headers and tensors, errors with the file's name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from efficientllava.errors import UserError
from efficientllava.reading.regular import require_regular

if TYPE_CHECKING:
    # half of the stages write JSON and pictures alone: torch takes two seconds
    import torch

FLOATS = ("F16", "BF16", "F32", "F64")
"""dtypes of weights, by their names in a file."""
BUFFERS = ("_ids", "_index", "_indices", "_mask", "_tracked", "_counter")
"""How names of tensors end that are whole numbers and no weights."""


@contextmanager
def opened_tensors(path: Path, framework: str = "pt", backend: str | None = None) -> Iterator[Any]:
    """A safetensors file, opened by the library; what it raises inside names the file.

    Args:
        backend: "pread" reads without a mapping: what was read does not stay in memory.

    Raises:
        UserError: as `require_regular`; the file is truncated or no safetensors.
    """
    require_regular(path)
    options = {} if backend is None else {"backend": backend}
    with _named(path), safe_open(path, framework=framework, **options) as opened:
        yield opened


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What the library raises inside becomes an error that names the file."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"not a complete safetensors file ({error})",
            where=str(path),
            remedy="copy or download the file again; in a work folder remove it, it is made again",
        ) from error


class TensorReader:
    """Reads tensors of safetensors files, from any thread; opens each file once.

    It maps nothing: what was read does not stay in memory.
    """

    def __init__(self) -> None:
        self._opened: dict[Path, Any] = {}

    def tensor(self, path: Path, name: str, part: int | None = None) -> torch.Tensor:
        """A tensor of a file, or one part of it along its first dimension.

        Raises:
            UserError: as `opened_tensors`.
        """
        with _named(path):
            opened = self._opened.get(path)
            if opened is None:
                require_regular(path)
                opened = safe_open(path, framework="pt", backend="pread")
                self._opened[path] = opened
            tensor: torch.Tensor = (
                opened.get_tensor(name) if part is None else opened.get_slice(name)[part]
            )
        return tensor


def load_tensors(path: Path, framework: str = "pt") -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file.

    Raises:
        UserError: as `opened_tensors`; a tensor has a dtype that torch does not know.
    """
    with opened_tensors(path, framework) as opened:
        try:
            return {name: opened.get_tensor(name) for name in opened.keys()}
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"holds what cannot be read ({error})", where=str(path)) from error


def stored_numbers(path: Path) -> int:
    """How many numbers the tensors of a safetensors file hold, from its header alone.

    Raises:
        UserError: as `opened_tensors`.
    """
    with opened_tensors(path, "np") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())


def require_floats(path: Path) -> None:
    """Check that all weights of a file are floats of 16 bits or more, from its header alone.

    Raises:
        UserError: as `opened_tensors`; it names a tensor of another dtype. Whole numbers that are
            no weights, such as position ids, pass.
    """
    with opened_tensors(path, "np") as file:
        for name in file.keys():
            dtype = file.get_slice(name).get_dtype()
            buffer = dtype[0] in "IUB" and dtype != "BF16" and name.endswith(BUFFERS)
            if dtype not in FLOATS and not buffer:
                raise UserError(
                    f"{name} is {dtype}; weights are {', '.join(FLOATS)}",
                    where=str(path),
                    remedy="give the checkpoint of 16 or 32 bits that it was made from",
                )
