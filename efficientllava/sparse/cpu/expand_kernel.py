"""Groups of a packed matrix as dense rows, for products with many tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from efficientllava.sparse.cpu.arguments import GROUP, Call, Matrix
from efficientllava.sparse.cpu.processor import Path
from efficientllava.sparse.cpu.products import WIDTH, work_function
from efficientllava.sparse.cpu.vectors import (
    INT8,
    INT32,
    INT64,
    INTEGER,
    INTEGERS,
    POINTER,
    VOID,
    Code,
)

BLOCK = 1
"""Groups that a thread takes at a time."""


@dataclass(frozen=True)
class Expansion:
    """One compiled kernel, by the dtype of the weights."""

    dtype: str


def expand_module(kernel: Expansion, path: Path) -> ir.Module:
    """The code of a kernel: `work(call)` writes groups of 16 rows, each [steps] x 4 bytes, to Y."""
    module = ir.Module(f"expand {kernel} {path.name}")
    code = Code.of(module, "block", VOID, [POINTER, POINTER, INT64], path)
    call, matrix, group = code.arguments
    steps = code.read(call, INT64, int(Call.STEPS))
    width = WIDTH[kernel.dtype]
    size, mask_type = 4 // width, INTEGER[GROUP * width]
    masks, values, offsets, rows = (
        code.pointer(code.read(matrix, INT64, int(each)))
        for each in (Matrix.WEIGHT, Matrix.VALUES, Matrix.OFFSETS, Matrix.Y)
    )
    masks = code.at(masks, code.mul(group, steps), mask_type)
    first = code.mul(group, code.mul(steps, code.number(GROUP)))
    rows = code.at(rows, first, INT32)
    begin = code.mul(code.read(offsets, INT64, group), code.number(size))
    place = code.variable(code.at(values, begin, INT8))

    def expanded(index: Any) -> Any:
        mask = code.read(masks, mask_type, index)
        here = code.get(place)
        moved = code.mul(code.count(mask), code.number(size))
        code.store(code.at(here, moved, INT8), place)
        return code.expand(here, mask)

    whole = code.and_(steps, code.number(-GROUP))
    with code.loop(code.number(0), whole, GROUP) as index:
        square = [expanded(code.add(index, code.number(each))) for each in range(GROUP)]
        for row, vector in enumerate(_transposed(code, square)):
            code.write(vector, code.at(rows, code.mul(steps, code.number(row)), INT32), index)
    with code.loop(whole, steps) as index:
        vector = expanded(index)
        for row in range(GROUP):
            element = code.extract_element(vector, ir.Constant(INT32, row))
            code.write(element, code.at(rows, code.mul(steps, code.number(row)), INT32), index)
    code.ret_void()
    work_function(module, path, code.function)
    return module


def _transposed(code: Code, square: list[Any]) -> list[Any]:
    """16 vectors of 16 x int32, transposed by exchanging blocks of 1, 2, 4 and 8."""
    lanes = range(GROUP)
    for apart in (1, 2, 4, 8):
        low = [lane if not lane & apart else GROUP + lane - apart for lane in lanes]
        high = [lane + apart if not lane & apart else GROUP + lane for lane in lanes]
        for row in (row for row in lanes if not row & apart):
            pair = square[row], square[row + apart]
            square[row], square[row + apart] = (
                code.shuffle_vector(*pair, ir.Constant(INTEGERS, order)) for order in (low, high)
            )
    return square
