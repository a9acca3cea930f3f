"""How the rows of OBS are cut up: bundles of levels, batches, tiles."""

from __future__ import annotations

from itertools import chain, combinations

import torch
from hypothesis import given
from hypothesis import strategies as st

from efficientllava.kernels.cpu import sections
from efficientllava.kernels.cpu.error_lists import TILE
from efficientllava.kernels.cpu.sections import COST, Section, Tiles, batches_of, bundles_of


def levels_of(weight: torch.Tensor, densities: list[float]) -> list[Section]:
    return [Section(weight, [], 0, density) for density in densities]


def cost(densities: list[list[float]]) -> float:
    """Time of the products of bundles: every row takes the list of the densest."""
    return sum(len(bundle) * COST[len(bundle)] * max(bundle) for bundle in densities)


def test_neighbouring_levels_share_a_list() -> None:
    first, second = torch.zeros(5, 8), torch.zeros(3, 8)
    given = levels_of(first, [0.6, 0.4, 0.5, 0.45, 0.55]) + levels_of(second, [0.1, 0.9])
    bundles = bundles_of(given, 3)
    # 0.4 and 0.45 | 0.5, 0.55 and 0.6; a list of 0.9 would cost the row at 0.1 nine times as much
    assert bundles == [[1, 3], [2, 4, 0], [5], [6]]
    assert bundles_of(given, 1) == [[1], [3], [2], [4], [0], [5], [6]]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(1, 3))
def test_no_other_cut_is_cheaper(densities: list[float], most: int) -> None:
    chosen = [
        [densities[i] for i in b] for b in bundles_of(levels_of(torch.zeros(1, 1), densities), most)
    ]
    assert sorted(chain(*chosen)) == sorted(densities)
    ordered, count = sorted(densities), len(densities)
    ways = [
        [ordered[a:b] for a, b in zip((0, *cuts), (*cuts, count), strict=True)]
        for number in range(count)
        for cuts in combinations(range(1, count), number)
    ]
    allowed = [way for way in ways if max(map(len, way)) <= most]
    assert cost(chosen) <= min(map(cost, allowed)) + 1e-9


def test_tiles_cover_every_row_once() -> None:
    """A tile is the same rows of all members; they lie `gaps` rows apart."""
    tall, low = torch.zeros(2 * TILE + 44, 8), torch.zeros(7, 8)
    bundles = [levels_of(tall, [0.4, 0.5, 0.6]), levels_of(low, [0.4, 0.5]), levels_of(low, [0.9])]
    tiles = Tiles(bundles)
    assert len(tiles.section) == 3 + 1 + 1
    seen = [
        (section + member, row + member * gap - tiles.rows[section + member])
        for (top, bottom), section, members, gap in zip(
            tiles.bounds, tiles.section, tiles.members, tiles.gaps, strict=True
        )
        for member in range(members)
        for row in range(top, bottom)
    ]
    expected = [(i, row) for i, s in enumerate(tiles.sections) for row in range(len(s.weight))]
    assert sorted(seen) == expected


def test_a_batch_ends_with_a_bundle() -> None:
    tall = torch.zeros(sections.ROWS // 2 + 1, 1)
    bundles = [levels_of(tall, [0.4, 0.5]), levels_of(tall, [0.9]), levels_of(tall, [0.6, 0.7])]
    batches = list(batches_of(bundles))
    assert [len(batch) for batch in batches] == [1, 2]
    assert list(chain(*batches)) == bundles
