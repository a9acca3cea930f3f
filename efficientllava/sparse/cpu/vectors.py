"""LLVM code in vectors of 16: loops, loads, and the expansion of packed weights by a mask."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from efficientllava.sparse.cpu.arguments import GROUP
from efficientllava.sparse.cpu.processor import Path

BIT, INT8, INT16, INT32, INT64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
FLOAT, VOID, POINTER = ir.FloatType(), ir.VoidType(), ir.PointerType()
INTEGER = {8: INT8, 16: INT16, 32: INT32, 64: INT64}
INTEGERS, FLOATS = ir.VectorType(INT32, GROUP), ir.VectorType(FLOAT, GROUP)


class BFloat(ir.types.Type):
    """LLVM's bfloat, which llvmlite does not have."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)


BFLOATS = ir.VectorType(BFloat(), 2 * GROUP)


def integers(value: int) -> ir.Constant:
    """16 times a 32-bit integer."""
    return ir.Constant(INTEGERS, [value] * GROUP)


class Code(ir.IRBuilder):
    """A builder of the body of one function; `path` decides which instructions it names.

    Attributes:
        arguments: of the function.
    """

    def __init__(self, function: ir.Function, path: Path) -> None:
        super().__init__(function.append_basic_block("entry"))
        self.path, self.arguments = path, function.args
        self._entry = self.block

    @classmethod
    def of(
        cls, module: ir.Module, name: str, result: Any, arguments: Sequence[Any], path: Path
    ) -> Code:
        """The body of a new function; all but `work` are known in the module alone."""
        function = ir.Function(module, ir.FunctionType(result, arguments), name)
        if name != "work":
            function.linkage = "internal"
        return cls(function, path)

    def variable(self, start: Any) -> ir.Instruction:
        """A local variable with a first value; LLVM keeps it in a register."""
        with self.goto_block(self._entry):
            place = self.alloca(start.type)
            place.type = POINTER  # llvmlite gives it a typed one
        self.store(start, place)
        return place

    def get(self, variable: Any) -> Any:
        """The value of a variable."""
        return self.load(variable, typ=variable.allocated_type)

    def number(self, value: int) -> ir.Constant:
        """A 64-bit integer."""
        return ir.Constant(INT64, value)

    def at(self, pointer: Any, index: Any, kind: Any) -> Any:
        """Address of an element."""
        index = self.number(index) if isinstance(index, int) else index
        return self.gep(pointer, [index], source_etype=kind)

    def read(self, pointer: Any, kind: Any, index: Any = 0) -> Any:
        """An element, or a vector where `kind` is one, at any address."""
        element = kind.element if isinstance(kind, ir.VectorType) else kind
        place = (
            pointer if isinstance(index, int) and not index else self.at(pointer, index, element)
        )
        return self.load(place, align=1 if kind is not INT64 else 8, typ=kind)

    def write(self, value: Any, pointer: Any, index: Any = 0) -> None:
        """Store an element or a vector at any address; the index counts elements."""
        kind = value.type
        element = kind.element if isinstance(kind, ir.VectorType) else kind
        place = (
            pointer if isinstance(index, int) and not index else self.at(pointer, index, element)
        )
        self.store(value, place, align=1)

    def pointer(self, address: Any) -> Any:
        """An address that came as an integer."""
        return self.inttoptr(address, POINTER)

    def splat(self, value: Any) -> Any:
        """16 times a value."""
        kind = ir.VectorType(value.type, GROUP)
        nothing = ir.Constant(kind, ir.Undefined)
        first = self.insert_element(nothing, value, ir.Constant(INT32, 0))
        return self.shuffle_vector(first, nothing, ir.Constant(INTEGERS, [0] * GROUP))

    def intrinsic(self, name: str, result: Any, arguments: Sequence[Any]) -> Any:
        """Call one of LLVM's own functions."""
        kind = ir.FunctionType(result, [each.type for each in arguments])
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        return self.call(function, arguments)

    def prefetch(self, pointer: Any) -> None:
        """Ask for the cache line at an address, which need not be anybody's memory."""
        flags = [ir.Constant(INT32, each) for each in (0, 2, 1)]  # to read, soon, data
        self.intrinsic("llvm.prefetch.p0", VOID, [pointer, *flags])

    @contextmanager
    def loop(self, start: Any, end: Any, step: int = 1) -> Iterator[Any]:
        """While start < end, start += step; yields the index."""
        index = self.variable(start)
        head, body, after = (self.append_basic_block(name) for name in ("head", "body", "after"))
        self.branch(head)
        self.position_at_end(head)
        current = self.get(index)
        self.cbranch(self.icmp_signed("<", current, end), body, after)
        self.position_at_end(body)
        yield current
        self.store(self.add(current, self.number(step)), index)
        self.branch(head)
        self.position_at_end(after)

    def count(self, mask: Any) -> Any:
        """Bits of a mask that are one, as a 64-bit integer."""
        found = self.intrinsic(f"llvm.ctpop.i{mask.type.width}", mask.type, [mask])
        return found if mask.type is INT64 else self.zext(found, INT64)

    def multiply_add(self, one: Any, other: Any, total: Any) -> Any:
        """one * other + total; fused where the processor does it fast."""
        return self.intrinsic("llvm.fmuladd.v16f32", FLOATS, [one, other, total])

    def expand(self, values: Any, mask: Any) -> Any:
        """The next packed weights at the one bits of a mask and zeros elsewhere.

        Args:
            values: pointer; the 64 bytes from it on can be read.
            mask: an integer of 16 bits (weights of 4 bytes), 32 (2 bytes) or 64 (1 byte).

        Returns:
            16 x int32, the 64 bytes of a step: row by row, a row's columns side by side.
        """
        bits = mask.type.width
        if self.path.expands(64 // bits):
            # vpexpand waits for what was in its register, though it overwrites all of it; zeroing
            # it first ends that. Without it the loop takes twice as long on a Zen 4
            name = {16: "vpexpandd", 32: "vpexpandw", 64: "vpexpandb"}[bits]
            chosen = ir.VectorType(BIT, bits)
            assembly = ir.InlineAsm(
                ir.FunctionType(INTEGERS, [POINTER, chosen]),
                f"vpxord $0, $0, $0\n\t{name} ($1), $0 {{$2}} {{z}}",
                "=&v,r,^Yk",
                side_effect=False,
            )
            return self.call(assembly, [values, self.bitcast(mask, chosen)])
        if "avx2" in self.path.has:
            return self._shuffled(values, mask)
        return self.call(_one_by_one(self.module, mask.type, self.path), [values, mask])

    def _shuffled(self, values: Any, mask: Any) -> Any:
        """Expand eight weights at a time by a table of 256 orders."""
        bits = mask.type.width
        size, parts = 64 // bits, []
        table = _orders(self.module, size)
        for low in range(0, bits, 8):
            below = self.and_(mask, ir.Constant(mask.type, (1 << low) - 1))
            place = self.at(values, self.mul(self.count(below), self.number(size)), INT8)
            eight = self.and_(
                self.lshr(mask, ir.Constant(mask.type, low)), ir.Constant(mask.type, 255)
            )
            eight = eight if mask.type is INT64 else self.zext(eight, INT64)
            order = self.at(table, self.mul(eight, self.number(len(_order(0, size)))), INT8)
            parts.append(self._ordered(place, order, size))
        width = parts[0].type.count
        while len(parts) > 1:
            width *= 2
            both = ir.Constant(ir.VectorType(INT32, width), list(range(width)))
            parts = [
                self.shuffle_vector(a, b, both)
                for a, b in zip(parts[::2], parts[1::2], strict=True)
            ]
        return self.bitcast(parts[0], INTEGERS)

    def _ordered(self, place: Any, order: Any, size: int) -> Any:
        """Eight weights in an order: <8 x i32>, <8 x i16> or <8 x i8>."""
        if size == 4:
            eight = ir.VectorType(INT32, 8)
            index, present = (self.read(order, eight, first) for first in (0, 8))
            weights = self.read(place, ir.VectorType(FLOAT, 8))
            moved = self.intrinsic("llvm.x86.avx2.permps", weights.type, [weights, index])
            return self.and_(self.bitcast(moved, eight), present)
        kind = ir.VectorType(INT8, 16)
        if size == 2:
            index, weights = self.read(order, kind), self.read(place, kind)
        else:
            index, weights = (self._low(self.read(each, INT64)) for each in (order, place))
        moved = self.intrinsic("llvm.x86.ssse3.pshuf.b.128", kind, [weights, index])
        if size == 2:
            return self.bitcast(moved, ir.VectorType(INT16, 8))
        low = ir.Constant(ir.VectorType(INT32, 8), list(range(8)))
        return self.shuffle_vector(moved, ir.Constant(kind, ir.Undefined), low)

    def _low(self, eight: Any) -> Any:
        pair = ir.Constant(ir.VectorType(INT64, 2), [0, 0])
        pair = self.insert_element(pair, eight, ir.Constant(INT32, 0))
        return self.bitcast(pair, ir.VectorType(INT8, 16))


def _orders(module: ir.Module, size: int) -> Any:
    """The `_order` of every mask of eight bits."""
    name = f"orders_{size}"
    if name in module.globals:
        return module.globals[name]
    table = bytearray(b"".join(_order(mask, size) for mask in range(256)))
    values = ir.Constant(ir.ArrayType(INT8, len(table)), table)
    orders = ir.GlobalVariable(module, values.type, name)
    orders.initializer, orders.global_constant, orders.linkage, orders.align = (
        values, True, "internal", 64,
    )  # fmt: skip
    return orders


def _order(mask: int, size: int) -> bytes:
    """Which of eight packed weights comes to which place.

    Of 4 bytes: which weight, 8 x int32, then -1 where there is one and 0 elsewhere, 8 x int32.
    Others: which byte comes to a byte, 0x80 where none does.
    """
    places = [place for place in range(8) if mask >> place & 1]
    if size == 4:
        order, present = [0] * 8, [0] * 8
        for taken, place in enumerate(places):
            order[place], present[place] = taken, -1
        return struct.pack("<16i", *order, *present)
    moved = bytearray([0x80] * (8 * size))
    for taken, place in enumerate(places):
        moved[size * place : size * (place + 1)] = range(size * taken, size * (taken + 1))
    return bytes(moved)


def _one_by_one(module: ir.Module, mask_type: Any, path: Path) -> Any:
    """A function that expands bit by bit; for processors without the instructions."""
    name = f"expand_{mask_type.width}"
    if name in module.globals:
        return module.globals[name]
    element = INTEGER[512 // mask_type.width]
    code = Code.of(module, name, INTEGERS, [POINTER, mask_type], path)
    code.function.attributes.add("noinline")
    values, mask = code.arguments
    result, left = code.variable(ir.Constant(INTEGERS, None)), code.variable(mask)
    with code.loop(code.number(0), code.count(mask)) as taken:
        rest = code.get(left)
        place = code.intrinsic(
            f"llvm.cttz.i{mask_type.width}", mask_type, [rest, ir.Constant(BIT, 1)]
        )
        place = place if mask_type is INT64 else code.zext(place, INT64)
        code.write(code.read(values, element, taken), result, place)
        code.store(code.and_(rest, code.sub(rest, ir.Constant(mask_type, 1))), left)
    code.ret(code.get(result))
    return code.function
