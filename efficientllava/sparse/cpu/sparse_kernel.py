"""The product of a packed matrix with a few tokens: weights are expanded in registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from efficientllava.sparse.cpu.arguments import GROUP, Call, Matrix
from efficientllava.sparse.cpu.processor import Path
from efficientllava.sparse.cpu.products import (
    WIDTH,
    add_product,
    finish_function,
    per_step,
    token_step,
    work_function,
)
from efficientllava.sparse.cpu.vectors import (
    FLOAT,
    FLOATS,
    INT8,
    INT64,
    INTEGER,
    POINTER,
    VOID,
    Code,
)

BLOCK = 4
"""Groups that a thread takes at a time."""
FETCHED_LINES = 8
LINE = 64
"""Bytes of a cache's line."""


@dataclass(frozen=True)
class SparseProduct:
    """One compiled kernel.

    Attributes:
        dtype: of the weights.
        pairs: whether tokens are pairs of bfloat16, multiplied by the processor's dot products;
            otherwise they are float32 and the weights are widened.
        tokens: rows of x.
    """

    dtype: str
    pairs: bool
    tokens: int


def together(kernel: SparseProduct, path: Path) -> int:
    """Groups that go side by side: their independent sums hide the latency of the expansion."""
    if not path.wide:  # 16 registers hold few sums
        return 2 if "avx2" in path.has and (kernel.dtype, kernel.tokens) == ("float32", 1) else 1
    return 4 if kernel.tokens <= 4 else 2


def sparse_module(kernel: SparseProduct, path: Path) -> ir.Module:
    """The code of a kernel: `work(call)` computes y of every matrix of a call."""
    module = ir.Module(f"sparse {kernel} {path.name}")
    finish = finish_function(module, path)
    many = together(kernel, path)
    sums = {count: _sum_function(module, kernel, path, count, finish) for count in {1, many}}
    code = Code.of(module, "block", VOID, [POINTER, POINTER, INT64], path)
    call, matrix, number = code.arguments
    rows = code.read(matrix, INT64, int(Matrix.ROWS))
    groups = code.ashr(code.add(rows, code.number(GROUP - 1)), code.number(4))
    first = code.mul(number, code.number(BLOCK))
    end = code.add(first, code.number(BLOCK))
    end = code.select(code.icmp_signed("<", groups, end), groups, end)
    tail = first
    if many > 1:
        full = code.and_(code.sub(end, first), code.number(-many))
        tail = code.add(first, full)
        with code.loop(first, tail, many) as group:
            code.call(sums[many], [call, matrix, group])
    with code.loop(tail, end) as group:
        code.call(sums[1], [call, matrix, group])
    code.ret_void()
    work_function(module, path, code.function)
    return module


def _sum_function(
    module: ir.Module, kernel: SparseProduct, path: Path, many: int, finish: Any
) -> Any:
    """sum(call, matrix, group): y of `many` groups of 16 rows for all tokens."""
    code = Code.of(module, f"sum_{many}", VOID, [POINTER, POINTER, INT64], path)
    call, matrix, group = code.arguments
    steps = code.read(call, INT64, int(Call.STEPS))
    x = code.pointer(code.read(call, INT64, int(Call.X)))
    size = 4 // WIDTH[kernel.dtype]
    mask_type = INTEGER[GROUP * WIDTH[kernel.dtype]]
    masks, values, offsets = (
        code.pointer(code.read(matrix, INT64, int(each)))
        for each in (Matrix.WEIGHT, Matrix.VALUES, Matrix.OFFSETS)
    )
    count = per_step(kernel.dtype, kernel.pairs)
    gap = code.mul(steps, code.number(count))
    tokens = [code.at(x, code.mul(gap, code.number(t)), FLOAT) for t in range(kernel.tokens)]
    rows_of_masks, places = [], []
    for each in range(many):
        here = code.add(group, code.number(each))
        rows_of_masks.append(code.at(masks, code.mul(here, steps), mask_type))
        begin = code.mul(code.read(offsets, INT64, here), code.number(size))
        places.append(code.variable(code.at(values, begin, INT8)))
    _fetch_next(code, masks, values, offsets, kernel, many)
    chains = _chains(kernel, many)
    zero = ir.Constant(FLOATS, None)
    totals = [[[code.variable(zero) for _ in range(chains)] for _ in tokens] for _ in range(many)]

    def step(index: Any, turn: int) -> None:
        numbers = [token_step(code, token, index, count) for token in tokens]
        for each in range(many):
            mask = code.read(rows_of_masks[each], mask_type, index)
            place = code.get(places[each])
            weights = code.expand(place, mask)
            moved = code.mul(code.count(mask), code.number(size))
            code.store(code.at(place, moved, INT8), places[each])
            for sums, number in zip(totals[each], numbers, strict=True):
                turned = sums[turn % chains :] + sums[: turn % chains]
                add_product(code, turned, weights, number, kernel.dtype, kernel.pairs)

    unrolled = 4 if path.wide else 2 // many
    whole = code.and_(steps, code.number(-unrolled))
    with code.loop(code.number(0), whole, unrolled) as index:
        for turn in range(unrolled):
            step(code.add(index, code.number(turn)), turn)
    with code.loop(whole, steps) as index:
        step(index, 0)
    _finish(code, finish, totals, chains)
    return code.function


def _fetch_next(
    code: Code, masks: Any, values: Any, offsets: Any, kernel: SparseProduct, many: int
) -> None:
    """Ask for the first lines of the next groups: the processor itself notices them late."""
    call, matrix, group = code.arguments
    width = WIDTH[kernel.dtype]
    steps = code.read(call, INT64, int(Call.STEPS))
    rows = code.read(matrix, INT64, int(Matrix.ROWS))
    for each in range(many, 2 * many):
        following = code.add(group, code.number(each))
        inside = code.icmp_signed("<", code.mul(following, code.number(GROUP)), rows)
        following = code.select(inside, following, group)
        begin = code.mul(code.read(offsets, INT64, following), code.number(4 // width))
        begin = code.at(values, begin, INT8)
        mask = code.at(masks, code.mul(following, steps), INTEGER[GROUP * width])
        for line in range(FETCHED_LINES):
            code.prefetch(code.at(begin, LINE * line, INT8))
            if line < FETCHED_LINES // 2:
                code.prefetch(code.at(mask, LINE * line, INT8))


def _finish(code: Code, finish: Any, totals: Any, chains: int) -> None:
    call, matrix, group = code.arguments
    sums = code.variable(ir.Constant(FLOATS, None))
    for each, of_group in enumerate(totals):
        row = code.mul(code.add(group, code.number(each)), code.number(GROUP))
        for token, of_token in enumerate(of_group):
            total = code.get(of_token[0])
            for other in of_token[1:]:
                total = code.fadd(total, code.get(other))
            code.store(total, sums)
            code.call(finish, [call, matrix, row, code.number(GROUP), code.number(token), sums])
    code.ret_void()


def _chains(kernel: SparseProduct, many: int) -> int:
    """Sums of a row that are added up at the end: enough that no addition waits for the last."""
    return max(1, 8 // (many * kernel.tokens))
