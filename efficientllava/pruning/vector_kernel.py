"""The inner loop of spreading errors, written in LLVM's terms because numba cannot hold vectors.

A row of weights changes by a sum over the columns that were pruned in it. Half of the products of
a dense matrix multiplication would be with zeros; here only the others are formed, with four
vectors of sums in registers. LLVM turns the 16-wide vectors into whatever the processor has.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

PANEL = 64
"""Columns that are summed together: with 128 errors a panel of U is 32 KiB, a first-level cache."""
LANES = 16

_float, _int32, _int64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_vector = ir.VectorType(_float, LANES)


@intrinsic
def spread_row(  # type: ignore[no-untyped-def]
    typing_context, panel, index, value, count, weight, ahead, coming
):
    """weight[:64] -= sum over k < count of value[k] * panel[index[k], :64].

    The products are added one after the other by fused multiply-add, and their sum is then
    subtracted: what a matrix multiplication does when its depth is not cut. All arguments are
    pointers to float32 (index: uint16) but `ahead`: how many floats ahead the row lies that is
    asked for in advance. So are the 32 floats at `coming`, for the second-level cache.
    """
    floats = types.CPointer(types.float32)
    signature = types.void(
        floats, types.CPointer(types.uint16), floats, types.intp, floats, types.intp, floats
    )

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        panel, index, value, count, weight, ahead, coming = arguments
        fused = _declare(builder, "llvm.fma.v16f32", _vector, [_vector] * 3)
        fetch = _declare(
            builder,
            "llvm.prefetch.p0",
            ir.VoidType(),
            [_float.as_pointer(), _int32, _int32, _int32],
        )
        parts = [ir.Constant(_int64, start) for start in range(0, PANEL, LANES)]
        write, keep, data = (ir.Constant(_int32, number) for number in (1, 3, 1))
        for part in parts:
            builder.call(
                fetch, [builder.gep(weight, [builder.add(ahead, part)]), write, keep, data]
            )
        read, second = (ir.Constant(_int32, number) for number in (0, 2))
        for part in parts[:2]:
            builder.call(fetch, [builder.gep(coming, [part]), read, second, data])
        sums = [cgutils.alloca_once(builder, _vector) for _ in parts]
        for each in sums:
            builder.store(ir.Constant(_vector, [0.0] * LANES), each)
        undefined = ir.Constant(_vector, ir.Undefined)
        everywhere = ir.Constant(ir.VectorType(_int32, LANES), [0] * LANES)
        with cgutils.for_range(builder, count) as loop:
            chosen = builder.zext(builder.load(builder.gep(index, [loop.index])), _int64)
            row = builder.gep(panel, [builder.mul(chosen, ir.Constant(_int64, PANEL))])
            single = builder.load(builder.gep(value, [loop.index]))
            single = builder.insert_element(undefined, single, ir.Constant(_int32, 0))
            error = builder.shuffle_vector(single, undefined, everywhere)
            for part, each in zip(parts, sums, strict=True):
                factor = _load(builder, builder.gep(row, [part]))
                builder.store(builder.call(fused, [error, factor, builder.load(each)]), each)
        for part, each in zip(parts, sums, strict=True):
            place = builder.gep(weight, [part])
            changed = builder.fsub(_load(builder, place), builder.load(each))
            builder.store(changed, builder.bitcast(place, _vector.as_pointer())).align = 4
        return context.get_dummy_value()

    return signature, codegen


def _load(builder: Any, place: Any) -> Any:
    loaded = builder.load(builder.bitcast(place, _vector.as_pointer()))
    loaded.align = 4
    return loaded


def _declare(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)
