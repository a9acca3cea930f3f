"""Products with packed matrices on a GPU, in Triton: decode, prefill, and what they need.

Sums are made in one order, whatever runs first: no atomics. Places are 64-bit, but inside of one
group of 16 rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from efficientllava.sparse.triton.expand import ROWS, TILE, expand, ones, words


@triton.jit
def find_tiles(masks, firsts, steps, tiles, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the values of each tile begin within their group.

    Args:
        masks: [groups, steps].
        firsts: int32 [groups, tiles], written.
    """
    group = tl.program_id(0).to(tl.int64)
    one = tl.arange(0, 1)
    first = tl.zeros([1], tl.int32)
    for tile in range(tiles):
        tl.store(firsts + (group * tiles + tile) + one, first)
        first += tl.sum(ones(words(masks, group, one + tile, steps, WIDTH), WIDTH == 4), 1)


@triton.jit
def _even(values, offset, first, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Values at an offset, for 16-bit ones the even place before it; and `first` from there."""
    if WIDTH == 2:
        odd = offset & 1
        return values + (offset - odd), first + odd.to(tl.int32)
    else:
        return values + offset, first


@triton.jit
def decode(  # type: ignore[no-untyped-def]  # noqa: PLR0913 Triton passes each pointer and size
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
    steps,
    tiles,
    stride,
    WIDTH: tl.constexpr,
    TILES: tl.constexpr,
    TOKENS: tl.constexpr,
    PARTS: tl.constexpr,
    DOT: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
):
    """A group of rows times a few tokens: a program a group and part of its columns.

    TILES tiles at a time are one batched product, a warp each; their sums are added at the end.

    Args:
        x: [tokens, columns], `stride` from token to token.
        firsts: [groups, tiles], see `find_tiles`.
        scales: float32 [rows] if SCALED.
        bias: [rows] if BIAS.
        out: [PARTS, tokens, rows], float32 without scales and bias if there are several parts.
        TOKENS: at least as many as there are, a power of two.
        DOT: dtype of the product's operands.
    """
    group, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token, at = tl.arange(0, TOKENS), tl.arange(0, TILE * WIDTH)
    offset = tl.load(offsets + group)
    line = x + token.to(tl.int64)[None, :, None] * stride
    total = tl.zeros([TILES, ROWS, TOKENS], tl.float32)
    for begin in range(part * TILES, tiles, PARTS * TILES):
        tile = begin + tl.arange(0, TILES)
        word = words(masks, group, tile, steps, WIDTH)
        first = tl.load(firsts + (group * tiles + tile), mask=tile < tiles, other=0)
        base, first = _even(values, offset, first, WIDTH)
        weight = expand(base, word, first, WIDTH).to(DOT)
        column = (tile * (TILE * WIDTH))[:, None] + at[None, :]
        given = (token < tokens)[None, :, None] & (column < columns)[:, None, :]
        inputs = tl.load(line + column[:, None, :], mask=given, other=0.0).to(DOT)
        total = tl.dot(weight, tl.permute(inputs, (0, 2, 1)), total, input_precision="ieee")
    result = tl.sum(total, 0)
    row = group * ROWS + tl.arange(0, ROWS)
    if SCALED:
        result *= tl.load(scales + row, mask=row < rows, other=0.0)[:, None]
    if BIAS:
        result += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    place = out + (part * tokens + token).to(tl.int64)[None, :] * rows + row[:, None]
    there = (row < rows)[:, None] & (token < tokens)[None, :]
    tl.store(place, result.to(out.dtype.element_ty), mask=there)


@triton.jit
def add_parts(  # type: ignore[no-untyped-def]  # noqa: PLR0913 Triton passes each pointer and size
    parts,
    scales,
    bias,
    out,
    size,
    rows,
    PARTS: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Add the parts of `decode` in their order, then scales and bias.

    Args:
        parts: float32 [PARTS, size], where size is tokens * rows.
        out: [size].
    """
    at = tl.program_id(0).to(tl.int64) * STEP + tl.arange(0, STEP)
    there, row = at < size, at % rows
    total = tl.zeros([STEP], tl.float32)
    for _ in tl.static_range(PARTS):
        total += tl.load(parts + at, mask=there, other=0.0)
        parts += size
    if SCALED:
        total *= tl.load(scales + row, mask=there, other=0.0)
    if BIAS:
        total += tl.load(bias + row, mask=there, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=there)


@triton.jit
def prefill(  # type: ignore[no-untyped-def]  # noqa: PLR0913 Triton passes each pointer and size
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
    groups,
    steps,
    tiles,
    stride,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    TOKENS: tl.constexpr,
    DOT: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
):
    """GROUPS groups of rows times TOKENS tokens: tiles are expanded and multiplied as dense ones.

    Programs that share rows are neighbours, so that masks and values come from the second-level
    cache. The arguments are those of `decode`.
    """
    blocks = tl.cdiv(tokens, TOKENS)
    top = (tl.program_id(0) // blocks).to(tl.int64) * GROUPS
    token = (tl.program_id(0) % blocks) * TOKENS + tl.arange(0, TOKENS)
    at, group = tl.arange(0, TILE * WIDTH), top + tl.arange(0, GROUPS)
    exists = group < groups
    group = tl.where(exists, group, groups - 1)  # its rows are not stored
    offset = tl.load(offsets + group)
    line = x + token.to(tl.int64)[None, :] * stride
    total = tl.zeros([GROUPS * ROWS, TOKENS], tl.float32)
    for tile in range(tiles):
        word = words(masks, group[:, None], tl.full([GROUPS], tile, tl.int32), steps, WIDTH)
        base, first = _even(values, offset, tl.load(firsts + (group * tiles + tile)), WIDTH)
        weight = expand(base[None, :, None, None], word, first, WIDTH).to(DOT)
        column = tile * (TILE * WIDTH) + at
        given = (token < tokens)[None, :] & (column < columns)[:, None]
        inputs = tl.load(line + column[:, None], mask=given, other=0.0).to(DOT)
        flat = tl.reshape(weight, [GROUPS * ROWS, TILE * WIDTH])
        total = tl.dot(flat, inputs, total, input_precision="ieee")
    row = top * ROWS + tl.arange(0, GROUPS * ROWS)
    if SCALED:
        total *= tl.load(scales + row, mask=row < rows, other=0.0)[:, None]
    if BIAS:
        total += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    place = out + token.to(tl.int64)[None, :] * rows + row[:, None]
    there = (row < rows)[:, None] & (token < tokens)[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=there)
