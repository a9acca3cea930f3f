"""The commands `efficientllava pack` and `unpack`: what they print."""

from __future__ import annotations

from pathlib import Path

from efficientllava.models.weight_files import weight_files
from efficientllava.offload.devices import enough_memory
from efficientllava.sparse.checkpoint import pack_checkpoint, unpack_checkpoint
from efficientllava.sparse.record import Settings
from efficientllava.sparse.tensor_file import entries_of

MB = 10**6
REMEDY = "free some, or use fewer threads (OMP_NUM_THREADS): each takes a matrix or two"


def pack(folder: Path, out: Path, dtype: str | None) -> str:
    """Pack, and say how many matrices and bytes.

    Raises:
        UserError: see `pack_checkpoint`; memory runs out.
    """
    with enough_memory("cpu", REMEDY):
        settings = pack_checkpoint(folder, out, dtype)
    before, after = _megabytes(folder), _megabytes(out)
    packed = _bytes_of(settings, out) / _bytes_of(settings, folder)
    lines = [
        f"{out}: {len(settings.modules)} matrices packed in {settings.dtype}, "
        f"to {packed:.3f} of their bytes; {after:,.1f} MB of weights for {before:,.1f} MB in all "
        f"({after / before:.3f})"
    ]
    if settings.errors:
        lines.append(
            f"int8 is lossy: relative error of a matrix up to {max(settings.errors.values()):.4f}; "
            "all are in config.json"
        )
    return "\n".join(lines)


def unpack(folder: Path, out: Path) -> str:
    """Unpack, and say how many bytes.

    Raises:
        UserError: see `unpack_checkpoint`; memory runs out.
    """
    with enough_memory("cpu", REMEDY):
        unpack_checkpoint(folder, out)
    return f"{out}: {_megabytes(out):,.1f} MB of weights; digests.json is not written"


def _bytes_of(settings: Settings, folder: Path) -> int:
    """Bytes of the matrices that were packed, in either folder."""
    return sum(
        entry.nbytes
        for file in weight_files(folder)
        for name, entry in entries_of(file).items()
        if name.rpartition(".")[0] in settings.modules and not name.endswith(".bias")
    )


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in weight_files(folder)) / MB
