"""The product of a dense matrix, row by row as torch holds it, with a few tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from efficientllava.sparse.cpu.arguments import GROUP, Call, Matrix
from efficientllava.sparse.cpu.processor import Path
from efficientllava.sparse.cpu.products import (
    add_product,
    finish_function,
    per_step,
    work_function,
)
from efficientllava.sparse.cpu.vectors import (
    FLOAT,
    FLOATS,
    INT32,
    INT64,
    INTEGERS,
    POINTER,
    VOID,
    Code,
)

BLOCK = 32
"""Rows that a thread takes at a time."""


@dataclass(frozen=True)
class DenseProduct:
    """One compiled kernel; see `sparse_kernel.SparseProduct`.

    float32 tokens lie in planes: [tokens, columns of a step, steps], so that a vector of them meets
    16 steps of a row. Steps are a multiple of 16.
    """

    dtype: str
    pairs: bool
    tokens: int


def dense_module(kernel: DenseProduct, path: Path) -> ir.Module:
    """The code of a kernel: `work(call)` computes y of every matrix of a call."""
    module = ir.Module(f"dense {kernel} {path.name}")
    finish = finish_function(module, path)
    many = 4 if path.wide and kernel.tokens <= 4 else 2
    sums = {count: _sum_function(module, kernel, path, count, finish) for count in (1, many)}
    code = Code.of(module, "block", VOID, [POINTER, POINTER, INT64], path)
    call, matrix, number = code.arguments
    rows = code.read(matrix, INT64, int(Matrix.ROWS))
    first = code.mul(number, code.number(BLOCK))
    end = code.add(first, code.number(BLOCK))
    end = code.select(code.icmp_signed("<", rows, end), rows, end)
    tail = code.add(first, code.and_(code.sub(end, first), code.number(-many)))
    with code.loop(first, tail, many) as row:
        code.call(sums[many], [call, matrix, row])
    with code.loop(tail, end) as row:
        code.call(sums[1], [call, matrix, row])
    code.ret_void()
    work_function(module, path, code.function)
    return module


def _sum_function(
    module: ir.Module, kernel: DenseProduct, path: Path, many: int, finish: Any
) -> Any:
    """sum(call, matrix, row): y of `many` rows for all tokens."""
    code = Code.of(module, f"sum_{many}", VOID, [POINTER, POINTER, INT64], path)
    call, matrix, row = code.arguments
    steps = code.read(call, INT64, int(Call.STEPS))
    x = code.pointer(code.read(call, INT64, int(Call.X)))
    weights = code.pointer(code.read(matrix, INT64, int(Matrix.WEIGHT)))
    planes = per_step(kernel.dtype, kernel.pairs)
    gap = code.mul(steps, code.number(planes))
    tokens = [code.at(x, code.mul(gap, code.number(t)), FLOAT) for t in range(kernel.tokens)]
    rows = [
        code.at(weights, code.mul(code.add(row, code.number(each)), steps), INT32)
        for each in range(many)
    ]
    chains = max(1, 8 // (many * kernel.tokens))
    zero = ir.Constant(FLOATS, None)
    totals = [[[code.variable(zero) for _ in range(chains)] for _ in tokens] for _ in rows]

    def step(index: Any, turn: int) -> None:
        numbers = [
            [
                code.read(token, INTEGERS, code.add(code.mul(steps, code.number(plane)), index))
                for plane in range(planes)
            ]
            for token in tokens
        ]
        for of_row, place in zip(totals, rows, strict=True):
            loaded = code.read(place, INTEGERS, index)
            for sums, number in zip(of_row, numbers, strict=True):
                turned = sums[turn % chains :] + sums[: turn % chains]
                add_product(code, turned, loaded, number, kernel.dtype, kernel.pairs)

    unrolled = 4
    whole = code.and_(steps, code.number(-GROUP * unrolled))
    with code.loop(code.number(0), whole, GROUP * unrolled) as index:
        for turn in range(unrolled):
            step(code.add(index, code.number(GROUP * turn)), turn)
    with code.loop(whole, steps, GROUP) as index:
        step(index, 0)
    _finish(code, finish, totals)
    return code.function


def _finish(code: Code, finish: Any, totals: Any) -> None:
    call, matrix, row = code.arguments
    many = len(totals)
    sums = code.variable(ir.Constant(ir.ArrayType(FLOAT, many), None))
    for token in range(len(totals[0])):
        for each, of_row in enumerate(totals):
            total = code.get(of_row[token][0])
            for other in of_row[token][1:]:
                total = code.fadd(total, code.get(other))
            code.write(_added_up(code, total), sums, code.number(each))
        code.call(finish, [call, matrix, row, code.number(many), code.number(token), sums])
    code.ret_void()


def _added_up(code: Code, vector: Any) -> Any:
    """The sum of 16 float32, half to half."""
    width = GROUP
    while width > 1:
        width //= 2
        halves = [
            ir.Constant(ir.VectorType(INT32, width), list(range(first, first + width)))
            for first in (0, width)
        ]
        nothing = ir.Constant(vector.type, ir.Undefined)
        low, high = (code.shuffle_vector(vector, nothing, half) for half in halves)
        vector = code.fadd(low, high)
    return code.extract_element(vector, ir.Constant(INT32, 0))
