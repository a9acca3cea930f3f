"""The sparse format: what is packed comes back bit by bit, and nothing damaged passes the check."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientllava.errors import UserError
from efficientllava.sparse.format import (
    PackedMatrix,
    check,
    pack,
    packed_bytes,
    quantize,
    unpack,
)
from efficientllava.sparse.layout import LAYOUTS

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
WIDE = {torch.bfloat16: 2, torch.float16: 2, torch.float32: 1, torch.int8: 4}


@st.composite
def matrices(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = FLOATS) -> torch.Tensor:
    """Any bits, NaN, infinities and -0.0 among them, with any share of zeros."""
    rows, columns = draw(st.integers(0, 50)), draw(st.integers(0, 40))
    dtype, sparsity = draw(st.sampled_from(dtypes)), draw(st.sampled_from((0, 0.1, 0.5, 0.9, 1)))
    torch.manual_seed(draw(st.integers(0, 2**32)))
    size = 8 * dtype.itemsize
    bits = torch.randint(-(2 ** (size - 1)), 2 ** (size - 1), (rows, columns))
    bits[torch.rand(rows, columns) < 0.1] = -(2 ** (size - 1))  # -0.0
    bits[torch.rand(rows, columns) < sparsity] = 0
    return bits.to({8: torch.int8, 16: torch.int16, 32: torch.int32}[size]).view(dtype)


def bits_of(weight: torch.Tensor) -> list[list[int]]:
    return weight.view(BITS.get(weight.dtype, weight.dtype)).tolist()


def by_hand(weight: torch.Tensor) -> tuple[list[list[int]], list[int], list[int]]:
    """Masks, values and offsets by the words of the format, one weight after another."""
    rows, columns, wide = *weight.shape, WIDE[weight.dtype]
    bits, masks, values, offsets = bits_of(weight), [], [], [0]
    for top in range(0, rows, 16):
        masks.append([])
        for left in range(0, columns, wide):
            mask = 0
            for r in range(16):
                for j in range(wide):
                    inside = top + r < rows and left + j < columns
                    if inside and bits[top + r][left + j] != 0:
                        mask += 2 ** (wide * r + j)
                        values.append(bits[top + r][left + j])
            masks[-1].append(mask if mask < 2 ** (16 * wide - 1) else mask - 2 ** (16 * wide))
        offsets.append(len(values))
    return masks, values, offsets


@settings(max_examples=60, deadline=None)
@given(matrices((*FLOATS, torch.int8)))
def test_it_is_the_format_that_is_described(weight: torch.Tensor) -> None:
    scales = torch.ones(len(weight)) if weight.dtype == torch.int8 else None
    packed = pack(weight, scales)
    masks, values, offsets = by_hand(weight)
    assert packed.masks.tolist() == masks and packed.offsets.tolist() == offsets
    padding = [0] * (64 // weight.dtype.itemsize)
    assert packed.values.view(BITS.get(weight.dtype, torch.int8)).tolist() == values + padding
    assert packed.nbytes == packed_bytes(*weight.shape, len(values), weight.dtype)


@settings(max_examples=100, deadline=None)
@given(matrices())
def test_what_is_packed_comes_back_bit_by_bit(weight: torch.Tensor) -> None:
    packed = pack(weight)
    check(packed)
    back = unpack(packed)
    assert back.dtype == weight.dtype and back.shape == weight.shape
    assert bits_of(back) == bits_of(weight)


@settings(max_examples=60, deadline=None)
@given(matrices((torch.float32,)), st.floats(1e-30, 1e30))
def test_int8_rounds_to_the_nearest_of_255_steps_of_a_row(bits: torch.Tensor, size: float) -> None:
    numbers = bits.view(torch.int32)
    weight = (numbers.double() / 2**31 * size).float()
    codes, scales, error = quantize(weight)
    packed = pack(codes, scales)
    check(packed)
    back, lost = unpack(packed).double(), 0.0
    for row, exact in enumerate(weight.double()):
        step = float(exact.abs().max()) / 127 if len(exact) else 0.0
        for column, value in enumerate(exact.tolist()):
            assert abs(float(back[row, column]) - value) <= step * 0.50001
            lost += (float(back[row, column]) - value) ** 2
    whole = float((weight.double() ** 2).sum())
    assert error == pytest.approx((lost / whole) ** 0.5 if whole else 0.0, rel=1e-3, abs=1e-6)


def test_threads_change_nothing() -> None:
    torch.manual_seed(0)
    weight = torch.randn(333, 101) * (torch.rand(333, 101) < 0.4)
    one, four = pack(weight, threads=1), pack(weight, threads=4)
    assert all(torch.equal(one.tensors[name], four.tensors[name]) for name in one.tensors)
    assert torch.equal(unpack(one, threads=1), unpack(one, threads=4))


def test_half_of_a_bf16_matrix_takes_056_of_its_bytes() -> None:
    torch.manual_seed(0)
    weight = torch.randn(512, 2048).bfloat16()
    weight[torch.rand(512, 2048) < 0.5] = 0
    assert 0.56 < pack(weight).nbytes / weight.nbytes < 0.57


def packed_example(dtype: torch.dtype = torch.bfloat16) -> PackedMatrix:
    torch.manual_seed(0)
    weight = torch.randn(40, 21) * (torch.rand(40, 21) < 0.5)
    if dtype == torch.int8:
        codes, scales, _ = quantize(weight)
        return pack(codes, scales)
    return pack(weight.to(dtype))


def changed(packed: PackedMatrix, name: str, index: Any, value: Any) -> PackedMatrix:
    tensor = packed.tensors[name].clone()
    tensor[index] = value
    return replace(packed, **{name: tensor})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: replace(p, rows=60), "masks are int32"),
        (lambda p: replace(p, columns=23), "masks are int32"),
        (lambda p: replace(p, rows=39), "bits outside"),
        (lambda p: replace(p, masks=p.masks.long()), "masks are int64"),
        (lambda p: replace(p, masks=p.masks[:-1]), "masks are int32"),
        (lambda p: replace(p, offsets=p.offsets[:-1]), "offsets are int64"),
        (lambda p: replace(p, offsets=p.offsets.int()), "offsets are int32"),
        (lambda p: replace(p, values=p.values[:-1]), "offsets end at"),
        (lambda p: replace(p, values=p.values[:5]), "its values have the shape"),
        (lambda p: replace(p, values=p.values[None]), "its values have the shape"),
        (lambda p: changed(p, "masks", (0, 0), 0), "the masks of group 0 keep"),
        (lambda p: changed(p, "masks", (1, 10), -1), "bits outside"),
        (lambda p: changed(p, "masks", (2, 0), -1), "bits outside"),
        (lambda p: changed(p, "offsets", 0, 1), "begin at 0 and rise"),
        (lambda p: changed(p, "offsets", 1, 2**62), "begin at 0 and rise"),
        (lambda p: changed(p, "offsets", 1, -3), "begin at 0 and rise"),
        (lambda p: changed(p, "offsets", 1, p.offsets[1] + 1), "the masks of group 0 keep"),
        (lambda p: changed(p, "values", 7, 0), "value 7 is zero"),
        (lambda p: changed(p, "values", -1, 1), "the zeros at the end"),
        (lambda p: replace(p, scales=torch.ones(40)), "int8 codes have scales"),
        (lambda p: replace(p, values=p.values.double()), "weights of float64"),
    ],
)  # fmt: skip
def test_damage_is_found_and_named(change: Any, told: str) -> None:
    with pytest.raises(UserError, match=told) as raised:
        check(change(packed_example()), "model.layers.0.mlp.up_proj")
    assert told.startswith("weights of") or "model.layers.0.mlp.up_proj" in str(raised.value)


@pytest.mark.parametrize("scales", [torch.ones(39), torch.full((40,), float("nan")), None])
def test_damaged_scales_are_found(scales: torch.Tensor | None) -> None:
    with pytest.raises(UserError, match="scale"):
        check(replace(packed_example(torch.int8), scales=scales))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(tuple(LAYOUTS)), st.data())
def test_any_flipped_bit_of_masks_and_offsets_is_found(dtype: torch.dtype, data: Any) -> None:
    packed = packed_example(dtype)
    name = data.draw(st.sampled_from(("masks", "offsets")))
    tensor = packed.tensors[name].clone()
    flat = tensor.view(torch.uint8).view(-1)
    flat[data.draw(st.integers(0, len(flat) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(UserError):
        check(replace(packed, **{name: tensor}))
    with pytest.raises(UserError):
        unpack(replace(packed, **{name: tensor}))


@pytest.mark.parametrize(
    ("weight", "told"),
    [
        (torch.ones(3), "1 dimensions"),
        (torch.ones(3, 3, dtype=torch.float64), "weights of float64"),
        (torch.ones(3, 3, dtype=torch.int8), "int8 codes have scales"),
    ],
)
def test_what_cannot_be_packed_is_refused(weight: torch.Tensor, told: str) -> None:
    with pytest.raises(UserError, match=told):
        pack(weight)
