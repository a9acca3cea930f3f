"""How a step of 16 rows is multiplied with a token, by the dtypes of weights and of arithmetic."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from efficientllava.sparse.cpu.arguments import GROUP, Call, Matrix
from efficientllava.sparse.cpu.processor import Path
from efficientllava.sparse.cpu.vectors import (
    BFLOATS,
    FLOAT,
    FLOATS,
    INT16,
    INT32,
    INT64,
    INTEGERS,
    POINTER,
    VOID,
    Code,
    integers,
)
from efficientllava.sparse.layout import LAYOUTS, dtype_name

WIDTH = {dtype_name(dtype): layout.columns for dtype, layout in LAYOUTS.items()}
"""Columns of a step by the weights' dtype: 4 bytes a row."""


def per_step(dtype: str, pairs: bool) -> int:
    """Numbers of 4 bytes that a token has for a step.

    Args:
        pairs: whether the token's numbers are pairs of bfloat16; float32 otherwise.
    """
    return 1 if pairs else WIDTH[dtype]


def token_step(code: Code, x: Any, step: Any, count: int) -> list[Any]:
    """The `count` numbers of a token that belong to a step, 16 times each."""
    first = code.mul(step, code.number(count))
    return [
        code.splat(code.read(x, INT32, code.add(first, code.number(each)))) for each in range(count)
    ]


def widened(code: Code, weights: Any, dtype: str) -> list[Any]:
    """A step of weights as float32, one vector of 16 rows per column."""
    if dtype == "float32":
        return [code.bitcast(weights, FLOATS)]
    if dtype == "bfloat16":
        low, high = code.shl(weights, integers(16)), code.and_(weights, integers(-65536))
        return [code.bitcast(each, FLOATS) for each in (low, high)]
    if dtype == "float16":
        return [_half(code, each) for each in (weights, code.lshr(weights, integers(16)))]
    columns = [code.shl(weights, integers(24 - 8 * column)) for column in range(3)] + [weights]
    return [code.sitofp(code.ashr(each, integers(24)), FLOATS) for each in columns]


def _half(code: Code, weights: Any) -> Any:
    """The lower 16 bits of 16 x int32, float16, as float32."""
    if "f16c" in code.path.has:
        halves = code.trunc(weights, ir.VectorType(INT16, GROUP))
        return code.fpext(code.bitcast(halves, ir.VectorType(ir.HalfType(), GROUP)), FLOATS)
    # bits moved to where float32 has them, times 2^112; infinities and NaN keep their exponent
    bits = code.shl(code.and_(weights, integers(0x7FFF)), integers(13))
    scaled = code.fmul(code.bitcast(bits, FLOATS), ir.Constant(FLOATS, [2.0**112] * GROUP))
    endless = code.icmp_unsigned(">=", bits, integers(0x0F800000))
    number = code.select(
        endless, code.or_(bits, integers(0x7F800000)), code.bitcast(scaled, INTEGERS)
    )
    sign = code.shl(code.and_(weights, integers(0x8000)), integers(16))
    return code.bitcast(code.or_(number, sign), FLOATS)


def add_product(
    code: Code, totals: list[Any], weights: Any, x: list[Any], dtype: str, pairs: bool
) -> None:
    """totals += weights * x, for a step of 16 rows; the vectors are added to one after the other.

    Args:
        totals: variables of 16 x float32.
        weights: 16 x int32.
        x: of `token_step`.
    """
    if pairs:
        code.store(multiply_pairs(code, weights, x[0], code.get(totals[0])), totals[0])
        return
    for place, (column, number) in enumerate(zip(widened(code, weights, dtype), x, strict=True)):
        total = totals[place % len(totals)]
        number = code.bitcast(number, FLOATS)
        code.store(code.multiply_add(column, number, code.get(total)), total)


def multiply_pairs(code: Code, weights: Any, x: Any, total: Any) -> Any:
    """total + weights * x, where both are pairs of bfloat16 in 16 x int32."""
    operands = [code.bitcast(each, BFLOATS) for each in (weights, x)]
    return code.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, [total, *operands])


def to_bfloat(code: Code, value: Any) -> Any:
    """Float32 rounded to the nearest bfloat16, of equal ones to the even; in the lower 16 bits."""
    kind = value.type
    whole = ir.VectorType(INT32, kind.count) if isinstance(kind, ir.VectorType) else INT32

    def constant(number: int) -> Any:
        return ir.Constant(whole, [number] * kind.count if whole is not INT32 else number)

    bits = code.bitcast(value, whole)
    odd = code.and_(code.lshr(bits, constant(16)), constant(1))
    rounded = code.lshr(code.add(bits, code.add(odd, constant(0x7FFF))), constant(16))
    quiet = code.or_(code.lshr(bits, constant(16)), constant(0x40))
    return code.select(code.fcmp_unordered("uno", value, value), quiet, rounded)


def finish_function(module: ir.Module, path: Path) -> Any:
    """finish(call, matrix, row, count, token, sums): scale, bias, round and store `count` rows.

    `sums` points to as many float32; 16 at once where they are 16.
    """
    code = Code.of(module, "finish", VOID, [POINTER, POINTER, INT64, INT64, INT64, POINTER], path)
    code.function.attributes.add("noinline")
    _, matrix, row, count, _, _ = code.arguments
    left = code.sub(code.read(matrix, INT64, int(Matrix.ROWS)), row)
    count = code.select(code.icmp_signed("<", left, count), left, count)
    group = code.icmp_signed("==", count, code.number(GROUP))
    with code.if_else(group) as (then, otherwise):
        with then:
            _finish_rows(code, code.number(0), FLOATS)
        with otherwise, code.loop(code.number(0), count) as each:
            _finish_rows(code, each, FLOAT)
    code.ret_void()
    return code.function


def _finish_rows(code: Code, each: Any, kind: Any) -> None:
    """Finish the row `each` after the first, or 16 where `kind` is a vector."""
    call, matrix, row, _, token, sums = code.arguments
    zero, here = code.number(0), code.add(row, each)
    vector = isinstance(kind, ir.VectorType)
    shorts, whole = (ir.VectorType(INT16, GROUP), INTEGERS) if vector else (INT16, INT32)
    scales, bias, bias_bfloat, rows, y = (
        code.read(matrix, INT64, int(which))
        for which in (
            *(Matrix.SCALES, Matrix.BIAS_FLOAT, Matrix.BIAS_BFLOAT, Matrix.ROWS, Matrix.Y),
        )
    )
    value = code.variable(code.read(sums, kind, each))
    with code.if_then(code.icmp_signed("!=", scales, zero)):
        scale = code.read(code.pointer(scales), kind, here)
        code.store(code.fmul(code.get(value), scale), value)
    with code.if_then(code.icmp_signed("!=", bias, zero)):
        added = code.read(code.pointer(bias), kind, here)
        code.store(code.fadd(code.get(value), added), value)
    with code.if_then(code.icmp_signed("!=", bias_bfloat, zero)):
        added = code.zext(code.read(code.pointer(bias_bfloat), shorts, here), whole)
        sixteen = integers(16) if vector else ir.Constant(INT32, 16)
        added = code.bitcast(code.shl(added, sixteen), kind)
        code.store(code.fadd(code.get(value), added), value)
    place, y = code.add(code.mul(token, rows), here), code.pointer(y)
    short = code.icmp_signed("!=", code.read(call, INT64, int(Call.BFLOAT_Y)), zero)
    with code.if_else(short) as (then, otherwise):
        with then:
            code.write(code.trunc(to_bfloat(code, code.get(value)), shorts), y, place)
        with otherwise:
            code.write(code.get(value), y, place)


def work_function(module: ir.Module, path: Path, block: Any) -> None:
    """work(call): take blocks of rows until there are none; several threads may run it at once.

    Args:
        block: a function block(call, matrix, number of the block within the matrix).
    """
    code = Code.of(module, "work", VOID, [POINTER], path)
    (call,) = code.arguments
    blocks = code.read(call, INT64, int(Call.BLOCKS))
    last = code.sub(code.read(call, INT64, int(Call.MATRICES)), code.number(1))
    head, body, find, found, end = (
        code.append_basic_block(name) for name in ("take", "which", "find", "found", "end")
    )
    matrix = code.variable(code.at(call, int(Call.SIZE), INT64))
    left = code.variable(last)
    code.branch(head)
    code.position_at_end(head)
    number = code.atomic_rmw(
        "add", code.at(call, int(Call.NEXT), INT64), code.number(1), "monotonic"
    )
    code.cbranch(code.icmp_signed("<", number, blocks), body, end)
    code.position_at_end(body)
    # a thread's numbers grow, so the matrix is never one before the last one's
    following = code.at(code.get(matrix), int(Matrix.SIZE), INT64)
    more = code.icmp_signed(">", code.get(left), code.number(0))
    code.cbranch(more, find, found)
    code.position_at_end(find)
    past = code.icmp_signed(">=", number, code.read(following, INT64, int(Matrix.FIRST_BLOCK)))
    with code.if_then(past):
        code.store(following, matrix)
        code.store(code.sub(code.get(left), code.number(1)), left)
        code.branch(body)
    code.branch(found)
    code.position_at_end(found)
    here = code.get(matrix)
    first = code.read(here, INT64, int(Matrix.FIRST_BLOCK))
    code.call(block, [call, here, code.sub(number, first)])
    code.branch(head)
    code.position_at_end(end)
    code.ret_void()
