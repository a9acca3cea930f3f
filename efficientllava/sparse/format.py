"""One pruned matrix: bitmasks, the values that are not zero, where each group of rows begins.

docs/sparse_format.md describes the layout for readers in other languages.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from efficientllava.errors import UserError
from efficientllava.sparse.layout import (
    LAYOUTS,
    PADDING,
    ROWS,
    Layout,
    dtype_name,
    layout_of,
    padding_of,
)

LARGEST_CODE = 127
"""int8: codes are -127 to 127."""


_UNSIGNED = {
    torch.int8: "uint8",
    torch.int16: "uint16",
    torch.int32: "uint32",
    torch.int64: "uint64",
}


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix [rows, columns] without its zeros.

    Rows are grouped by 16, columns by `layout.columns` to steps. Bit `layout.columns * r + j` of
    `masks[g, s]` says whether row 16 g + r, column `layout.columns * s + j` is kept; rows and
    columns that the matrix has not have no bit.

    Attributes:
        masks: [groups, steps], of `layout.mask`.
        values: the kept weights in the order of the bits, group after group, then 64 bytes of 0.
        offsets: int64 [groups + 1], where the values of a group begin and the last one's end.
        scales: float32 [rows] of int8 weights, which are `values * scales[row]`; None otherwise.
    """

    rows: int
    columns: int
    masks: torch.Tensor
    values: torch.Tensor
    offsets: torch.Tensor
    scales: torch.Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.values.dtype

    @property
    def layout(self) -> Layout:
        """How its dtype is laid out."""
        return layout_of(self.dtype)

    @property
    def kept(self) -> int:
        """How many weights it keeps."""
        return len(self.values) - padding_of(self.dtype)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by their names in a checkpoint."""
        tensors = {"masks": self.masks, "values": self.values, "offsets": self.offsets}
        return tensors if self.scales is None else tensors | {"scales": self.scales}

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def packed_bytes(rows: int, columns: int, kept: int, dtype: torch.dtype) -> int:
    """Bytes that a matrix with `kept` weights takes when it is packed."""
    layout = layout_of(dtype)
    groups, steps = -(-rows // ROWS), -(-columns // layout.columns)
    scales = 4 * rows if dtype == torch.int8 else 0
    masks = groups * steps * layout.mask.itemsize
    return masks + kept * dtype.itemsize + PADDING + 8 * (groups + 1) + scales


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Round a matrix to int8 codes with one scale a row, |largest of the row| / 127.

    Returns:
        codes int8 [rows, columns], scales float32 [rows], and the error: the root of the sum of
        squared differences over that of squared weights (0 for a matrix of zeros).
    """
    exact = weight.detach().float()
    largest = exact.abs().amax(dim=1) if exact.shape[1] else exact.new_zeros(len(exact))
    scales = largest / LARGEST_CODE
    # a row of zeros, or one so small that its scale is zero, has codes of zero
    divisor = torch.where(scales > 0, scales, torch.ones_like(scales))
    codes = (exact / divisor[:, None]).round_().clamp_(-LARGEST_CODE, LARGEST_CODE)
    codes = torch.where(scales[:, None] > 0, codes, torch.zeros_like(codes))
    whole = float(torch.linalg.vector_norm(exact, dtype=torch.float64))
    lost = float(torch.linalg.vector_norm(exact - codes * scales[:, None], dtype=torch.float64))
    return codes.to(torch.int8), scales, lost / whole if whole else 0.0


def pack(
    weight: torch.Tensor, scales: torch.Tensor | None = None, threads: int | None = None
) -> PackedMatrix:
    """Pack a matrix; a weight whose bits are all zero goes, so that -0.0 stays.

    Args:
        weight: [rows, columns], bfloat16, float16, float32, or int8 codes (see `quantize`).
        scales: float32 [rows] of int8 codes.
        threads: torch's own number if left out; the result does not depend on it.

    Raises:
        UserError: another dtype, no matrix, or scales that do not fit.
    """
    layout = layout_of(weight.dtype)
    if weight.dim() != 2:
        raise UserError(f"a tensor of {weight.dim()} dimensions is no matrix", "sparse format")
    if (scales is not None) != (weight.dtype == torch.int8):
        raise UserError("int8 codes have scales, and other weights none", where="sparse format")
    from efficientllava.sparse.packing import count_kept, pack_groups

    rows, columns = weight.shape
    groups, steps = -(-rows // ROWS), -(-columns // layout.columns)
    bits = _bits(weight)
    offsets = torch.zeros(groups + 1, dtype=torch.int64)
    counts = offsets.numpy()[1:]
    _shared(lambda first, last: count_kept(bits, counts, first, last), groups, threads)
    counts[:] = counts.cumsum()
    masks = torch.zeros((groups, steps), dtype=layout.mask)
    values = torch.zeros(int(offsets[-1]) + padding_of(weight.dtype), dtype=weight.dtype)
    packed = (_bits(masks), _bits(values), offsets.numpy())
    work = pack_groups[layout.columns]
    _shared(lambda first, last: work(bits, packed, first, last), groups, threads)
    if scales is not None:
        scales = scales.detach().to("cpu", torch.float32).clone()
    matrix = PackedMatrix(rows, columns, masks, values, offsets, scales)
    _require_scales(matrix)
    return matrix


def unpack(packed: PackedMatrix, threads: int | None = None) -> torch.Tensor:
    """The matrix [rows, columns]: bit by bit what was packed, or of int8 codes * scales in float32.

    Raises:
        UserError: as `check`, but the values are not looked at.
    """
    _check_places(packed)
    from efficientllava.sparse.packing import unpack_groups

    weight = torch.empty((packed.rows, packed.columns), dtype=packed.dtype)
    tensors, bits, work = _arrays(packed), _bits(weight), unpack_groups[packed.layout.columns]
    _shared(lambda first, last: work(tensors, bits, first, last), len(packed.masks), threads)
    if packed.scales is not None:
        weight = weight.float().mul_(packed.scales.cpu()[:, None])
    return weight.to(packed.values.device)


def check(packed: PackedMatrix, where: str = "packed matrix") -> None:
    """Check that a packed matrix is what `pack` would give, so that no reader leaves its tensors.

    Args:
        where: how a message names it.

    Raises:
        UserError: a dtype, a size, the offsets, a bit outside of the matrix, or scales are wrong;
            masks and offsets disagree; a kept value is zero; the zeros at the end are not.
    """
    _check_places(packed, where)
    from efficientllava.sparse.packing import first_zero

    kept = packed.kept
    if (zero := first_zero(_bits(packed.values)[:kept])) >= 0:
        _damaged(f"value {zero} is zero", where)
    if _bits(packed.values)[kept:].any():
        _damaged("the zeros at the end of its values are not zero", where)


def _check_places(packed: PackedMatrix, where: str = "packed matrix") -> None:
    """As `check`, without a look at the values."""
    _check_sizes(packed, where)
    masks, _, offsets = _arrays(packed)
    if len(offsets) == 0 or offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any():
        _damaged("its offsets do not begin at 0 and rise", where)
    if offsets[-1] != packed.kept:
        _damaged(
            f"its offsets end at {offsets[-1]}, it holds {packed.kept} values and their padding",
            where,
        )
    from efficientllava.sparse.packing import count_bits, first_outside

    columns, groups = packed.layout.columns, len(masks)
    lines = (1 << columns * (packed.rows - ROWS * (groups - 1))) - 1
    row = (1 << (packed.columns - 1) % columns + 1) - 1
    step = sum(row << columns * line for line in range(ROWS))
    if (group := first_outside(masks, _unsigned(lines), _unsigned(step))) >= 0:
        _damaged(f"group {group} has bits outside of the matrix", where)
    counts = offsets[1:].copy()
    _shared(lambda first, last: count_bits(masks, counts, first, last), groups, None)
    wrong = counts != offsets[1:] - offsets[:-1]
    if wrong.any():
        group = int(wrong.argmax())
        _damaged(
            f"the masks of group {group} keep {counts[group]} weights, "
            f"its offsets {offsets[group + 1] - offsets[group]}",
            where,
        )


def _check_sizes(packed: PackedMatrix, where: str) -> None:
    layout = layout_of(packed.dtype)
    groups, steps = -(-packed.rows // ROWS), -(-packed.columns // layout.columns)
    expected = {"masks": (layout.mask, (groups, steps)), "offsets": (torch.int64, (groups + 1,))}
    for name, (dtype, shape) in expected.items():
        tensor = packed.tensors[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            _damaged(
                f"its {name} are {dtype_name(tensor.dtype)} {list(tensor.shape)}, "
                f"not {dtype_name(dtype)} {list(shape)}",
                where,
            )
    if packed.values.dim() != 1 or packed.kept < 0:
        _damaged(f"its values have the shape {list(packed.values.shape)}", where)
    _require_scales(packed, where)


def _require_scales(packed: PackedMatrix, where: str = "packed matrix") -> None:
    scales = packed.scales
    if (scales is not None) != (packed.dtype == torch.int8):
        _damaged("int8 codes have scales, and other weights none", where)
    if scales is None:
        return
    if scales.dtype != torch.float32 or tuple(scales.shape) != (packed.rows,):
        _damaged(f"its scales are {dtype_name(scales.dtype)} {list(scales.shape)}", where)
    if not bool(((scales >= 0) & torch.isfinite(scales)).all()):
        _damaged("a scale is negative, NaN or infinite", where)


def _damaged(what: str, where: str) -> NoReturn:
    raise UserError(what, where, "the file is damaged: get it again, or pack the model again")


def _arrays(packed: PackedMatrix) -> tuple[Any, Any, Any]:
    """Masks and values as bits, and offsets, for compiled loops."""
    return _bits(packed.masks), _bits(packed.values), packed.offsets.detach().cpu().numpy()


def _bits(tensor: torch.Tensor) -> Any:
    """A numpy array of unsigned integers over a tensor's own memory, if that is contiguous."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.is_floating_point():
        tensor = tensor.view(LAYOUTS[tensor.dtype].bits)
    return tensor.numpy().view(_UNSIGNED[tensor.dtype])


def _unsigned(word: int) -> Any:
    import numpy as np

    return np.uint64(word & 2**64 - 1)


def _shared(work: Callable[[int, int], Any], groups: int, threads: int | None) -> None:
    """Call work(first, last) on parts of the groups, at the same time."""
    parts = max(1, min(groups, torch.get_num_threads() if threads is None else threads))
    bounds = [groups * part // parts for part in range(parts + 1)]
    if parts == 1:
        work(0, groups)
        return
    with ThreadPoolExecutor(parts) as pool:
        for done in [pool.submit(work, *bounds[part : part + 2]) for part in range(parts)]:
            done.result()
