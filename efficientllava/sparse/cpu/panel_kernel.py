"""The product of a packed matrix with many tokens: a tile of weights is expanded into the cache.

A group of 16 rows goes through the columns a tile at a time; the tile meets all tokens, in panels
of as many as the registers hold sums of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from efficientllava.sparse.cpu.arguments import GROUP, Call, Matrix
from efficientllava.sparse.cpu.processor import Path
from efficientllava.sparse.cpu.products import (
    WIDTH,
    finish_function,
    multiply_pairs,
    per_step,
    widened,
    work_function,
)
from efficientllava.sparse.cpu.vectors import (
    FLOAT,
    FLOATS,
    INT8,
    INT32,
    INT64,
    INTEGER,
    INTEGERS,
    POINTER,
    VOID,
    Code,
)

TILE = 128
"""Vectors of a tile: 8 KiB, beside 12 KiB of tokens in a first-level cache."""
LINE = 64
"""Bytes of a cache's line."""


@dataclass(frozen=True)
class PanelProduct:
    """One compiled kernel; see `sparse_kernel.SparseProduct`.

    Tokens lie in panels, [panels, numbers of 4 bytes, width]; the last panels may lack one token.

    Attributes:
        width: tokens of a panel.
    """

    dtype: str
    pairs: bool
    width: int


def widest(path: Path) -> int:
    """Tokens of a panel at most: registers for their sums, the weights and a token."""
    return 24 if path.wide else 6


def panel_module(kernel: PanelProduct, path: Path) -> ir.Module:
    """The code of a kernel: `work(call)` computes y of every matrix of a call."""
    module = ir.Module(f"panels {kernel} {path.name}")
    widths = {kernel.width, kernel.width - 1} - {0}
    panels = {width: _panel_function(module, kernel, path, width) for width in sorted(widths)}
    panels.setdefault(0, panels[kernel.width])
    block = _block_function(module, kernel, path, panels)
    work_function(module, path, block)
    return module


def _panel_function(module: ir.Module, kernel: PanelProduct, path: Path, width: int) -> Any:
    """panel(tile, x, y, count): y[width, 16] += the tile's vectors times the panel's numbers."""
    name = f"panel_{width}"
    code = Code.of(module, name, VOID, [POINTER, POINTER, POINTER, INT64], path)
    tile, x, y, count = code.arguments
    sums = [code.variable(code.read(y, FLOATS, code.number(GROUP * t))) for t in range(width)]

    def step(index: Any) -> None:
        weights = code.read(tile, INTEGERS, code.mul(index, code.number(GROUP)))
        numbers = code.at(x, code.mul(index, code.number(kernel.width)), INT32)
        for token, total in enumerate(sums):
            number = code.splat(code.read(numbers, INT32, code.number(token)))
            if kernel.pairs:
                code.store(multiply_pairs(code, weights, number, code.get(total)), total)
            else:
                operands = (code.bitcast(each, FLOATS) for each in (weights, number))
                code.store(code.multiply_add(*operands, code.get(total)), total)

    whole = code.and_(count, code.number(-2))
    with code.loop(code.number(0), whole, 2) as index:
        step(index)
        step(code.add(index, code.number(1)))
    with code.loop(whole, count) as index:
        step(index)
    for token, total in enumerate(sums):
        code.write(code.get(total), y, code.number(GROUP * token))
    code.ret_void()
    return code.function


def _block_function(module: ir.Module, kernel: PanelProduct, path: Path, panels: Any) -> Any:
    """block(call, matrix, group): 16 rows of y for all tokens."""
    finish = finish_function(module, path)
    code = Code.of(module, "block", VOID, [POINTER, POINTER, INT64], path)
    call, matrix, group = code.arguments
    steps, tokens, count = (
        code.read(call, INT64, int(each)) for each in (Call.STEPS, Call.TOKENS, Call.PANELS)
    )
    x = code.pointer(code.read(call, INT64, int(Call.X)))
    planes, mask_type = per_step(kernel.dtype, kernel.pairs), INTEGER[GROUP * WIDTH[kernel.dtype]]
    size = 4 // WIDTH[kernel.dtype]
    masks, values, offsets = (
        code.pointer(code.read(matrix, INT64, int(each)))
        for each in (Matrix.WEIGHT, Matrix.VALUES, Matrix.OFFSETS)
    )
    masks = code.at(masks, code.mul(group, steps), mask_type)
    begin = code.mul(code.read(offsets, INT64, group), code.number(size))
    place = code.variable(code.at(values, begin, INT8))
    tile = code.alloca(INT32, code.number(GROUP * TILE))
    sums = code.alloca(INT32, code.mul(tokens, code.number(GROUP)))
    tile.type = sums.type = POINTER
    with code.loop(code.number(0), tokens) as token:
        code.write(ir.Constant(INTEGERS, None), sums, code.mul(token, code.number(GROUP)))
    zero, width = code.number(0), code.number(kernel.width)
    # count panels of width - 1 and a token more in the first of them
    longer = code.sub(tokens, code.mul(count, code.number(kernel.width - 1)))
    of_panel = code.mul(code.mul(steps, code.number(planes)), width)
    at_once = TILE // planes
    with code.loop(zero, steps, at_once) as first:
        left = code.sub(steps, first)
        many = code.number(at_once)
        many = code.select(code.icmp_signed("<", left, many), left, many)
        _expand_tile(code, kernel, masks, first, many, place, tile)
        vectors = code.mul(many, code.number(planes))
        skipped = code.mul(code.mul(first, code.number(planes)), width)
        sum_of = code.variable(sums)
        for low, high, tall in ((zero, longer, kernel.width), (longer, count, kernel.width - 1)):
            with code.loop(low, high) as panel:
                numbers = code.at(x, code.add(code.mul(panel, of_panel), skipped), INT32)
                code.call(panels[tall], [tile, numbers, code.get(sum_of), vectors])
                code.store(code.at(code.get(sum_of), GROUP * tall, FLOAT), sum_of)
    row = code.mul(group, code.number(GROUP))
    with code.loop(zero, tokens) as token:
        here = code.at(sums, code.mul(token, code.number(GROUP)), FLOAT)
        code.call(finish, [call, matrix, row, code.number(GROUP), token, here])
    code.ret_void()
    return code.function


def _expand_tile(
    code: Code, kernel: PanelProduct, masks: Any, first: Any, many: Any, place: Any, tile: Any
) -> None:
    """Expand `many` steps from `first` into the tile; ask for the weights of the next tile."""
    size, planes = 4 // WIDTH[kernel.dtype], per_step(kernel.dtype, kernel.pairs)
    with code.loop(code.number(0), many) as index:
        mask = code.read(masks, INTEGER[GROUP * WIDTH[kernel.dtype]], code.add(first, index))
        here = code.get(place)
        weights = code.expand(here, mask)
        moved = code.mul(code.count(mask), code.number(size))
        code.store(code.at(here, moved, INT8), place)
        vectors = [weights] if kernel.pairs else widened(code, weights, kernel.dtype)
        for plane, vector in enumerate(vectors):
            target = code.add(code.mul(index, code.number(planes)), code.number(plane))
            code.write(vector, tile, code.mul(target, code.number(GROUP)))
    with code.loop(code.number(0), many) as index:
        line = code.at(code.get(place), code.mul(index, code.number(LINE)), INT8)
        code.prefetch(line)
