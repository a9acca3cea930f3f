"""The innermost loops of OBS, written in LLVM's terms because numba cannot hold vectors.

LLVM turns the vectors of 16 into whatever the processor has; on every processor the same numbers
are added in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

PANEL = 64
"""Columns that are summed together: with 128 errors a panel of U is 32 KiB, a first-level cache."""
LANES = 16
STRIP = 2 * LANES
"""Rows that go through a block of columns together: 16 KiB of weights and as much of errors."""
MEMBERS = 3 if "+avx512f" in get_host_cpu_features() else 1
"""Levels of a matrix whose rows are summed together: 32 registers hold the sums of three."""

compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True, error_model="numpy")
"""Without leave to reorder sums, so that a run repeats another bit for bit."""

_float, _int16, _int32, _int64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_vector, _integers = ir.VectorType(_float, LANES), ir.VectorType(_int32, LANES)
_floats, _shorts = types.CPointer(types.float32), types.CPointer(types.uint16)


def _spread_rows(members: int) -> Callable[..., Any]:
    """Spread the errors of one row of a matrix at `members` levels to a panel of columns."""

    @intrinsic
    def spread_rows(  # type: ignore[no-untyped-def]  # noqa: PLR0913 an intrinsic's pointers and sizes
        typing_context, panel, index, value, apart, count, weight, gap, ahead, coming
    ):
        """weight[m, :64] -= sum over k < count of value[m, k] * panel[index[k], :64].

        Products are added one after the other by fused multiply-add, and their sum is then
        subtracted: what a matrix multiplication does when its depth is not cut. A zero among
        the values changes no sum, so members share the list of columns: their masks nearly nest,
        and a vector of U is loaded once for all of them.

        Args:
            panel, value, weight: pointers to float32; index: to uint16.
            apart, gap: floats from one member's values and weights to the next one's.
            ahead: floats from here to the weights that are asked for in advance.
            coming: 64 floats that are fetched into the second-level cache.
        """
        signature = types.void(
            *(_floats, _shorts, _floats, types.intp, types.intp),
            *(_floats, types.intp, types.intp, _floats),
        )

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            panel, index, value, apart, count, weight, gap, ahead, coming = arguments
            parts = range(0, PANEL, LANES)
            rows = [_at(builder, weight, _times(builder, gap, m)) for m in range(members)]
            values = [_at(builder, value, _times(builder, apart, m)) for m in range(members)]
            for row in rows:
                for part in parts:
                    _fetch(builder, _at(builder, row, ahead, part), write=True, level=3)
            for part in parts:
                _fetch(builder, _at(builder, coming, part), write=False, level=2)
            sums = [[cgutils.alloca_once(builder, _vector) for _ in parts] for _ in rows]
            for total in (total for of_row in sums for total in of_row):
                builder.store(ir.Constant(_vector, [0.0] * LANES), total)
            with cgutils.for_range(builder, count) as loop:
                column = builder.zext(builder.load(_at(builder, index, loop.index)), _int64)
                line = _at(builder, panel, _times(builder, column, PANEL))
                factors = [_load(builder, _at(builder, line, part)) for part in parts]
                for value, of_row in zip(values, sums, strict=True):
                    error = _everywhere(builder, builder.load(_at(builder, value, loop.index)))
                    for factor, total in zip(factors, of_row, strict=True):
                        added = _fused(builder, error, factor, builder.load(total))
                        builder.store(added, total)
            for row, of_row in zip(rows, sums, strict=True):
                for part, total in zip(parts, of_row, strict=True):
                    pointer = _at(builder, row, part)
                    changed = builder.fsub(_load(builder, pointer), builder.load(total))
                    _store(builder, changed, pointer)
            return context.get_dummy_value()

        return signature, codegen

    return spread_rows


def _spread_columns(errors: int) -> Callable[..., Any]:
    """Spread the errors of `errors` columns of a strip to columns on their right."""

    @intrinsic
    def spread_columns(typing_context, weight, error, factor, step, count):  # type: ignore[no-untyped-def]
        """weight[c] -= error[0] * factor[c, 0], then error[1] * factor[c, 1], ... for c < count.

        Product and difference are rounded one by one, as in the eager path.

        Args:
            weight, error: pointers to columns of a strip, 32 float32 each.
            factor: pointer to U with its columns as rows, `step` floats apart.
        """
        signature = types.void(_floats, _floats, _floats, types.intp, types.intp)

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            weight, error, factor, step, count = arguments
            for part in range(0, STRIP, LANES):  # a product with memory is faster than two shared
                lost = [
                    _load(builder, _at(builder, error, number * STRIP + part))
                    for number in range(errors)
                ]
                with cgutils.for_range(builder, count) as loop:
                    pointer = _at(builder, weight, _times(builder, loop.index, STRIP), part)
                    factors = _at(builder, factor, builder.mul(loop.index, step))
                    value = _load(builder, pointer)
                    for number, vector in enumerate(lost):
                        single = builder.load(_at(builder, factors, number))
                        product = builder.fmul(vector, _everywhere(builder, single))
                        value = builder.fsub(value, product)
                    _store(builder, value, pointer)
            return context.get_dummy_value()

        return signature, codegen

    return spread_columns


def _list_columns(members: int) -> Callable[..., Any]:
    """Add the columns in which one of `members` rows has an error to their list."""

    @intrinsic
    def list_columns(typing_context, error, gap, first, width, index, value, apart):  # type: ignore[no-untyped-def]
        """Write the columns, and the errors of all members in them; return where their list ends.

        Args:
            error: pointer to the first member's errors, `gap` floats before the next one's;
                `width`, a multiple of 16, of each.
            first: where in `index` and `value` the list of this row begins; 16 entries past its
                end are overwritten.
            apart: floats from one member's values to the next one's.
        """
        signature = types.intp(
            *(_floats, types.intp, types.intp, types.intp, _shorts, _floats, types.intp)
        )

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            error, gap, first, width, index, value, apart = arguments
            count = cgutils.alloca_once_value(builder, first)
            columns = cgutils.alloca_once_value(builder, ir.Constant(_integers, list(range(LANES))))
            with cgutils.for_range(builder, builder.lshr(width, ir.Constant(_int64, 4))) as loop:
                left, pointer = _times(builder, loop.index, LANES), builder.load(count)
                lost = [
                    _load(builder, _at(builder, error, _times(builder, gap, m), left))
                    for m in range(members)
                ]
                zero = ir.Constant(_vector, [0.0] * LANES)
                kept = [builder.fcmp_unordered("!=", vector, zero) for vector in lost]
                taken = kept[0]
                for vector in kept[1:]:
                    taken = builder.or_(taken, vector)
                for number, vector in enumerate(lost):
                    target = _at(builder, value, _times(builder, apart, number), pointer)
                    _store(builder, _compress(builder, _vector, vector, taken), target)
                now = builder.load(columns)
                short = ir.VectorType(_int16, LANES)
                packed = builder.trunc(_compress(builder, _integers, now, taken), short)
                target = builder.bitcast(_at(builder, index, pointer), short.as_pointer())
                builder.store(packed, target).align = 2
                builder.store(builder.add(now, ir.Constant(_integers, [LANES] * LANES)), columns)
                number = builder.ctpop(builder.bitcast(taken, _int16))
                builder.store(builder.add(pointer, builder.zext(number, _int64)), count)
            return builder.load(count)

        return signature, codegen

    return list_columns


@intrinsic
def transpose_square(typing_context, source, step, target, target_step):  # type: ignore[no-untyped-def]
    """Write 16 rows of 16 float32, `step` floats apart, as columns, `target_step` floats apart."""
    signature = types.void(_floats, types.intp, _floats, types.intp)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, step, target, target_step = arguments
        square = [
            _load(builder, _at(builder, source, _times(builder, step, number)))
            for number in range(LANES)
        ]
        half = LANES // 2
        low = [index for lane in range(half) for index in (lane, LANES + lane)]
        for _ in range(4):  # riffling the rows four times turns the square
            square = [
                _shuffle(builder, first, second, [half * upper + lane for lane in low])
                for first, second in zip(square[:half], square[half:], strict=True)
                for upper in (0, 1)
            ]
        for number, vector in enumerate(square):
            _store(builder, vector, _at(builder, target, _times(builder, target_step, number)))
        return context.get_dummy_value()

    return signature, codegen


spread_row, spread_two_rows, spread_three_rows = (_spread_rows(members) for members in (1, 2, 3))
spread_column, spread_four_columns, spread_eight_columns = map(_spread_columns, (1, 4, 8))
list_row, list_two_rows, list_three_rows = (_list_columns(members) for members in (1, 2, 3))


def _at(builder: Any, pointer: Any, *steps: Any) -> Any:
    for step in steps:
        offset = ir.Constant(_int64, step) if isinstance(step, int) else step
        pointer = builder.gep(pointer, [offset])
    return pointer


def _times(builder: Any, value: Any, factor: int) -> Any:
    return builder.mul(value, ir.Constant(_int64, factor))


def _load(builder: Any, pointer: Any) -> Any:
    loaded = builder.load(builder.bitcast(pointer, _vector.as_pointer()))
    loaded.align = 4
    return loaded


def _store(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, builder.bitcast(pointer, _vector.as_pointer())).align = 4


def _everywhere(builder: Any, single: Any) -> Any:
    undefined = ir.Constant(_vector, ir.Undefined)
    first = builder.insert_element(undefined, single, ir.Constant(_int32, 0))
    return _shuffle(builder, first, undefined, [0] * LANES)


def _shuffle(builder: Any, first: Any, second: Any, lanes: Sequence[int]) -> Any:
    return builder.shuffle_vector(first, second, ir.Constant(_integers, list(lanes)))


def _fused(builder: Any, *arguments: Any) -> Any:
    return builder.call(_declare(builder, "llvm.fma.v16f32", _vector, [_vector] * 3), arguments)


def _compress(builder: Any, kind: Any, values: Any, taken: Any) -> Any:
    """The chosen values first, side by side."""
    name = f"llvm.experimental.vector.compress.v16{'f32' if kind == _vector else 'i32'}"
    function = _declare(builder, name, kind, [kind, taken.type, kind])
    return builder.call(function, [values, taken, ir.Constant(kind, ir.Undefined)])


def _fetch(builder: Any, pointer: Any, write: bool, level: int) -> None:
    """Ask for a line of the cache in advance; level 3 is the first, 2 the second."""
    kinds = [_float.as_pointer(), _int32, _int32, _int32]
    fetch = _declare(builder, "llvm.prefetch.p0", ir.VoidType(), kinds)
    builder.call(
        fetch, [pointer, *(ir.Constant(_int32, vector) for vector in (int(write), level, 1))]
    )


def _declare(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)
