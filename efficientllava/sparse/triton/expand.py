"""Tiles of a packed matrix in registers: 16 rows of a group, 64 steps, a warp each.

Eight lanes (bf16, fp16; fp32: four, int8: sixteen) share a step, so that a load of a warp touches
neighbouring values; each lane expands four bits. Where its values begin is the tile's first place,
a running sum over the steps before, and the bits before its own in the mask (popc: LLVM knows the
arithmetic in `_ones` for what it is). Dimensions are [high steps, tiles, low steps, lanes]: Triton
gives each warp a tile and keeps the high steps in registers, so that the running sums and the way
to the matrix product stay within a warp.

Compiled by ptxas for sm_90 (H100), bf16, one token, eight warps: 740 instructions for the 64
weights of a lane, 11.6 a weight, 80 registers, nothing spilled.
"""

from __future__ import annotations

import triton
import triton.language as tl

ROWS: tl.constexpr = tl.constexpr(16)
"""Rows of a group, as `layout.ROWS`."""
TILE: tl.constexpr = tl.constexpr(64)
"""Steps of a tile."""


@triton.jit
def ones(word, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The number of set bits of unsigned words: of 64 bits if WIDE, otherwise of 32."""
    if WIDE:
        word = word - ((word >> 1) & 0x5555555555555555)
        word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333)
        word = (word + (word >> 4)) & 0x0F0F0F0F0F0F0F0F
        word = (word * 0x0101010101010101) >> 56
    else:
        word = word - ((word >> 1) & 0x55555555)
        word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
        word = (word + (word >> 4)) & 0x0F0F0F0F
        word = (word * 0x01010101) >> 24
    return word.to(tl.int32)


@triton.jit
def words(masks, group, tile, steps, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """The masks [tiles, TILE] of the given tiles, unsigned; 0 past the last step.

    Args:
        group: int64, a scalar or [tiles, 1].
        tile: [tiles].
    """
    step = tile[:, None] * TILE + tl.arange(0, TILE)[None, :]
    word = tl.load(masks + (group * steps + step), mask=step < steps, other=0)
    if WIDTH == 1:
        return word.to(tl.uint16, bitcast=True).to(tl.uint32)
    elif WIDTH == 2:
        return word.to(tl.uint32, bitcast=True)
    else:
        return word.to(tl.uint64, bitcast=True)


@triton.jit
def _by_lane(part, HIGH: tl.constexpr, LOW: tl.constexpr):  # type: ignore[no-untyped-def]
    """[tiles, TILE] as [HIGH, tiles, LOW, 1]."""
    return tl.permute(tl.reshape(part, [part.shape[0], HIGH, LOW]), (1, 0, 2))[:, :, :, None]


@triton.jit
def _halves(base, place, own):  # type: ignore[no-untyped-def]
    """Four weights of 16 bits a lane, [..., 2, 2].

    By shifts, for a lane has too few predicates to select by them. Three aligned words of 32 bits
    hold the four values that may be the lane's. A pair of weights is the next two values, one
    further up if the first bit is zero, without the second if that is.
    """
    place = place.to(tl.uint32)
    pairs = base.to(tl.pointer_type(tl.uint32), bitcast=True) + (place >> 1)
    one, two, three = tl.load(pairs), tl.load(pairs + 1), tl.load(pairs + 2)
    odd = ((place << 4) & 16).to(tl.uint64)
    low = ((one.to(tl.uint64) | (two.to(tl.uint64) << 32)) >> odd).to(tl.uint32)
    high = ((two.to(tl.uint64) | (three.to(tl.uint64) << 32)) >> odd).to(tl.uint32)
    # each bit as a shift: 16 or 0
    bits = own << 4
    b0, b1, b2, b3 = bits & 16, (bits >> 1) & 16, (bits >> 2) & 16, (bits >> 3) & 16
    left = low.to(tl.uint64) | (high.to(tl.uint64) << 32)
    rest = (left >> (b0 + b1).to(tl.uint64)).to(tl.uint32)
    first = (low << (b0 ^ 16)) & (b1 * 0x0FFFF000 + 0xFFFF)
    second = (rest << (b2 ^ 16)) & (b3 * 0x0FFFF000 + 0xFFFF)
    both = tl.join(first, second)
    half = tl.join((both & 0xFFFF).to(tl.uint16), (both >> 16).to(tl.uint16))
    return half.to(base.dtype.element_ty, bitcast=True)


@triton.jit
def _fours(base, place, own):  # type: ignore[no-untyped-def]
    """Four weights of 32 or 8 bits a lane, [..., 2, 2], each loaded if its bit is set."""
    b0, b1, b2, b3 = own & 1, (own >> 1) & 1, (own >> 2) & 1, (own >> 3) & 1
    v0 = tl.load(base + place, mask=b0 != 0, other=0)
    v1 = tl.load(base + (place + b0), mask=b1 != 0, other=0)
    v2 = tl.load(base + (place + b0 + b1), mask=b2 != 0, other=0)
    v3 = tl.load(base + (place + b0 + b1 + b2), mask=b3 != 0, other=0)
    return tl.join(tl.join(v0, v2), tl.join(v1, v3))


@triton.jit
def expand(base, word, first, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """The weights of tiles, [tiles, ROWS, TILE * WIDTH], in the dtype of the values.

    Args:
        base: pointer to values, a scalar or [1, tiles, 1, 1]; of 16-bit values to an even place.
        word: [tiles, TILE], see `words`.
        first: int32 [tiles], where each tile's values begin, from base.
        WIDTH: columns of a step.
    """
    TILES: tl.constexpr = word.shape[0]
    LANES: tl.constexpr = ROWS * WIDTH // 4
    LOW: tl.constexpr = 32 // LANES
    HIGH: tl.constexpr = TILE // LOW
    WIDE: tl.constexpr = WIDTH == 4
    count = ones(word, WIDE)
    start = _by_lane(first[:, None] + tl.cumsum(count, 1) - count, HIGH, LOW)
    word = _by_lane(word, HIGH, LOW)
    bit = (tl.arange(0, LANES) * 4).to(word.dtype)[None, None, None, :]
    before = (tl.full([1, 1, 1, 1], 1, word.dtype) << bit) - 1
    place = start + ones(word & before, WIDE)
    own = word >> bit
    if WIDTH == 2:
        four = _halves(base, place, own.to(tl.uint32))
    else:
        four = _fours(base, place, own.to(tl.int32))
    # bit 4 lane + 2 a + b of a mask is [high step, tile, low step, lane, a, b]
    if WIDTH == 1:
        part = tl.permute(four, (1, 3, 4, 5, 0, 2))
    elif WIDTH == 2:
        part = tl.permute(four, (1, 3, 4, 0, 2, 5))
    else:
        part = tl.permute(four, (1, 3, 0, 2, 4, 5))
    return tl.reshape(part, [TILES, ROWS, TILE * WIDTH])
