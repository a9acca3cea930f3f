"""Products with packed matrices on CUDA: which kernel, how many programs, where tiles begin.

Decode reads masks and values once: 11008 x 4096 bf16 weights at 50 % are 50.7 MB, 15 us at the
3.35 TB/s of an H100, where the dense 90.2 MB take 27 us. The kernel's instructions (`expand`) take
18 us there at 1.755 GHz if every slot is used. These are estimates; docs/internal/performance.md
has more. Everything else is chosen by the shapes alone, so that a product has the same bits on
every run.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Lock

import torch
import triton
from torch.multiprocessing.reductions import StorageWeakRef

from efficientllava.errors import UserError
from efficientllava.sparse.layout import ROWS, dtype_name, layout_of
from efficientllava.sparse.triton import product_kernels as kernels
from efficientllava.sparse.triton.expand import TILE

DECODED = 16
"""Tokens up to which a product is bound by the bytes of the weights."""
WARPS = 8
"""Tiles that a program of `decode` expands at the same time, a warp each."""
PROGRAMS = 256
"""Columns are split until there are so many programs: about two for each multiprocessor."""
WIDEST = 2**31 // ROWS
"""Columns from which places inside of a group would not fit 32 bits."""
_ADDED = 1024
_DOTS = {
    torch.float16: triton.language.float16,
    torch.bfloat16: triton.language.bfloat16,
    torch.float32: triton.language.float32,
}


class _Firsts:
    """Where each tile's values begin, made once for each matrix and kept as long as its masks.

    It is derived and not stored: 4 bytes for 16 x 64 x columns-of-a-step weights (0.2 %).
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], tuple[StorageWeakRef, int, torch.Tensor]] = {}
        self._lock = Lock()

    def of(self, masks: torch.Tensor, width: int) -> torch.Tensor:
        """int32 [groups, tiles] for masks [groups, steps]."""
        storage = masks.untyped_storage()
        key = (int(storage._cdata), int(masks.storage_offset()))
        version = 0 if masks.is_inference() else masks._version
        with self._lock:
            # a storage whose number is held by a weak reference cannot be another one
            known = self._kept.get(key)
        if known is not None and known[1] == version and len(known[2]) == len(masks):
            return known[2]
        if masks.is_cuda and torch.cuda.is_current_stream_capturing():
            return _find(masks, width)  # belongs to the graph, which makes it anew on every replay
        firsts = _find_apart(masks, width) if masks.is_cuda else _find(masks, width)
        with self._lock:
            self._kept = {k: v for k, v in self._kept.items() if not v[0].expired()}
            self._kept[key] = (StorageWeakRef(storage), version, firsts)
        return firsts


_FIRSTS = _Firsts()


def _find(masks: torch.Tensor, width: int) -> torch.Tensor:
    groups, steps = masks.shape
    tiles = triton.cdiv(steps, TILE.value)
    firsts = torch.empty(groups, tiles, dtype=torch.int32, device=masks.device)
    kernels.find_tiles[(groups,)](masks, firsts, steps, tiles, WIDTH=width, num_warps=1)
    return firsts


def _find_apart(masks: torch.Tensor, width: int) -> torch.Tensor:
    """As `_find`, but no graph's pool of memory holds the result.

    While torch.compile warms up a graph, all that this thread allocates comes from a pool that is
    used again for something else; so another thread allocates it, on the default stream.
    """
    asking, default = torch.cuda.current_stream(), torch.cuda.default_stream()

    def find() -> torch.Tensor:
        with torch.cuda.device(masks.device), torch.cuda.stream(default):
            default.wait_stream(asking)
            return _find(masks, width)

    with ThreadPoolExecutor(1) as thread:
        firsts = thread.submit(find).result()
    asking.wait_stream(default)
    return firsts


def sparse_linear(
    x: torch.Tensor,
    masks: torch.Tensor,
    values: torch.Tensor,
    offsets: torch.Tensor,
    scales: torch.Tensor | None,
    bias: torch.Tensor | None,
    rows: int,
    columns: int,
) -> torch.Tensor:
    """x times the transpose of a packed matrix, sums in float32, without waiting for the device.

    Args:
        x: [..., columns], of the dtype of the values; bfloat16 or float16 for int8.
        masks, values, offsets, scales: of a `PackedMatrix` that `check` accepts, of the sizes that
            `operators.require_fit` wants.
        bias: [rows].

    Returns:
        [..., rows], contiguous, in x's dtype.

    Raises:
        UserError: x has another dtype, device or width, or the matrix is too wide.
    """
    _require(x, values, columns)
    for tensor in (masks, values, offsets, scales, bias):
        if tensor is not None and tensor.device != x.device:
            raise UserError(
                f"the matrix is on {tensor.device}, the inputs on {x.device}",
                where="sparse_linear on CUDA",
                remedy="move both to one device",
            )
    lines = x.reshape(-1, columns)
    if lines.stride(1) != 1 and columns > 1:
        lines = lines.contiguous()
    out = x.new_empty(*x.shape[:-1], rows)
    if out.numel() == 0:
        return out
    if columns == 0:
        return out.zero_() if bias is None else out.copy_(bias)
    width = layout_of(values.dtype).columns
    # Triton launches on the current card, which need not be the tensors'
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        firsts = _FIRSTS.of(masks, width)
        tensors = (lines, masks, values, offsets, firsts, scales, bias)
        multiply = _decode if len(lines) <= DECODED else _prefill
        multiply(tensors, out, rows, columns, width)
    return out


def _require(x: torch.Tensor, values: torch.Tensor, columns: int) -> None:
    # int8 with float32 inputs would want 256 KB of shared memory
    halves = [torch.bfloat16, torch.float16]
    allowed = halves if values.dtype == torch.int8 else [values.dtype]
    if x.dtype not in allowed:
        names = " or ".join(dtype_name(dtype) for dtype in allowed)
        raise UserError(
            f"weights packed as {dtype_name(values.dtype)} were given inputs of "
            f"{dtype_name(x.dtype)}",
            where="sparse_linear on CUDA",
            remedy=f"convert the inputs to {names}",
        )
    if x.shape[-1:] != (columns,):
        raise UserError(
            f"the inputs are {list(x.shape)}, the matrix wants [..., {columns}]",
            where="sparse_linear on CUDA",
        )
    if columns >= WIDEST or values.data_ptr() % 4:
        what = f"has {columns} columns" if columns >= WIDEST else "begins at an odd address"
        raise UserError(f"a matrix {what}: the CUDA kernels cannot read it", "sparse_linear")


_Tensors = tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor | None,
    torch.Tensor | None,
]


def _dot(x: torch.Tensor) -> triton.language.dtype:
    # the interpreter, which numpy's lack of bfloat16 hinders, multiplies in float32
    return _DOTS[x.dtype if x.is_cuda or x.dtype != torch.bfloat16 else torch.float32]


def parts_of(rows: int, tiles: int) -> tuple[int, int]:
    """(tiles at the same time, parts of the columns) of `decode`, by the shape alone."""
    together = min(WARPS, triton.next_power_of_2(tiles))
    groups, parts = triton.cdiv(rows, ROWS), 1
    while groups * parts < PROGRAMS and parts * together < tiles:
        parts *= 2
    return together, parts


def _decode(tensors: _Tensors, out: torch.Tensor, rows: int, columns: int, width: int) -> None:
    x, masks, values, offsets, firsts, scales, bias = tensors
    together, parts = parts_of(rows, firsts.shape[1])
    tokens, split = len(x), parts > 1
    into = out.new_empty(parts, tokens, rows, dtype=torch.float32) if split else out
    kernels.decode[(len(masks), parts)](
        x,
        masks,
        values,
        offsets,
        firsts,
        scales,
        bias,
        into,
        tokens,
        rows,
        columns,
        masks.shape[1],
        firsts.shape[1],
        x.stride(0),
        WIDTH=width,
        TILES=together,
        TOKENS=triton.next_power_of_2(tokens),
        PARTS=parts,
        DOT=_dot(x),
        SCALED=scales is not None and not split,
        BIAS=bias is not None and not split,
        num_warps=together,
        num_stages=1,
    )
    if split:
        size = tokens * rows
        kernels.add_parts[(triton.cdiv(size, _ADDED),)](
            into,
            scales,
            bias,
            out,
            size,
            rows,
            PARTS=parts,
            SCALED=scales is not None,
            BIAS=bias is not None,
            STEP=_ADDED,
        )


def prefill_tile(tokens: int, width: int) -> tuple[int, int, int]:
    """(groups of rows, tokens, warps) of a program of `prefill`.

    A tile of weights and one of inputs lie in 96 KB of shared memory, and nothing is spilled:
    tests/sparse/test_triton.py compiles all of them.
    """
    if tokens <= 64:
        return 2, 32 if tokens <= 32 else 64, 4
    if width == 2:
        return 4, 128 if tokens <= 128 else 256, 8
    return (4, 64, 8) if width == 4 else (8, 128, 8)


def _prefill(tensors: _Tensors, out: torch.Tensor, rows: int, columns: int, width: int) -> None:
    x, masks, values, offsets, firsts, scales, bias = tensors
    tokens = len(x)
    groups, block, warps = prefill_tile(tokens, width)
    grid = triton.cdiv(len(masks), groups) * triton.cdiv(tokens, block)
    kernels.prefill[(grid,)](
        x,
        masks,
        values,
        offsets,
        firsts,
        scales,
        bias,
        out,
        tokens,
        rows,
        columns,
        len(masks),
        masks.shape[1],
        firsts.shape[1],
        x.stride(0),
        WIDTH=width,
        GROUPS=groups,
        TOKENS=block,
        DOT=_dot(x),
        SCALED=scales is not None,
        BIAS=bias is not None,
        num_warps=warps,
        num_stages=1,
    )
