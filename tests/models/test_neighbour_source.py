"""Neighbours: what is found fast is what the sum of all that is said would find."""

from collections import defaultdict
from functools import cache

import numpy as np
import pytest

from models.item_rows import ItemRows
from models.neighbour_source import NeighbourSource
from models.retrieval_kernels import WEIGHT_UNIT
from models.sources import Query
from tests.models.moments import items_of, query


@cache
def shop(n: int, most: int, servable: float = 0.9) -> ItemRows:
    """Return n items with up to `most` neighbours, of which a share can be had."""
    rng = np.random.default_rng(n)
    items = items_of(
        [f"i{i}" for i in range(n)],
        is_servable=rng.random(n) < servable,
        rarity=rng.random(n).astype(np.float32),
    )
    for row in range(1, n + 1):
        # A few are everybody's neighbours, with strengths that tie.
        others = np.minimum(rng.integers(1, n + 1, most), rng.integers(1, n + 1, most))
        items.neighbours.put(row, np.unique(others), rng.integers(0, 8, len(np.unique(others))) / 4)
    return items


def moments(items: ItemRows, n: int) -> list[Query]:
    rng = np.random.default_rng(1)
    queries = []
    for b in range(n):
        recent = rng.permutation(items.n_rows - 1)[: b * 7 % 50] + 1
        weights = np.sort(rng.integers(0, WEIGHT_UNIT, len(recent)))[::-1]
        queries.append(query(items, recent=recent, weights=weights, seen=recent[::2]))
    return queries


def plain(asked: Query, limit: int) -> list[int]:
    """Return what the source should, said one by one."""
    items, said = asked.items, defaultdict(list)
    for row, weight in zip(asked.recent.tolist(), asked.weights.tolist(), strict=True):
        for other, strength in zip(*items.neighbours.get(row), strict=True):
            said[int(other)].append(float(strength) * weight)
    strongest = max(
        (float(s) for row in asked.recent for s in items.neighbours.get(row)[1]), default=1.0
    )
    scale = 2.0**23 / (WEIGHT_UNIT * strongest)
    sums = {row: sum(round(value * scale) for value in own) for row, own in said.items()}
    known = [row for row, total in sums.items() if total > 0]
    known = [row for row in known if not asked.is_seen(np.array([row]))[0]]
    keys = {row: (round(sums[row] * float(items.rarity[row])), items.id_hash[row]) for row in known}
    return sorted(known, key=lambda row: keys[row], reverse=True)[:limit]


# Few items, so that sums are taken of all rows, and many, so that they are of some.
@pytest.mark.parametrize(("n", "most"), [(60, 8), (500, 100), (3_000, 30)])
@pytest.mark.parametrize("limit", [5, 100])
def test_it_finds_what_adding_one_by_one_finds(n: int, most: int, limit: int) -> None:
    queries = moments(shop(n, most), 11)
    found = NeighbourSource(limit).propose(queries)
    assert [rows.tolist() for rows in found] == [plain(one, limit) for one in queries]


@pytest.mark.parametrize("servable", [0.0, 0.03])
def test_what_is_left_is_found_where_nearly_all_of_the_best_are_refused(servable: float) -> None:
    queries = moments(shop(1_000, 60, servable), 11)
    found = NeighbourSource(20).propose(queries)
    assert [rows.tolist() for rows in found] == [plain(one, 20) for one in queries]


def test_a_query_does_not_feel_the_others_of_its_batch() -> None:
    queries = moments(shop(2_000, 80), 37)
    together = NeighbourSource().propose(queries)
    for size in (1, 2, 32):
        parts = [queries[at : at + size] for at in range(0, len(queries), size)]
        apart = [rows for part in parts for rows in NeighbourSource().propose(part)]
        assert [rows.tobytes() for rows in apart] == [rows.tobytes() for rows in together]


def test_users_of_whom_little_is_known_and_much_is_ruled_out_get_what_there_is() -> None:
    items = shop(300, 100)
    everything = np.arange(1, 301)
    weights = np.full(20, WEIGHT_UNIT)
    seen = np.delete(everything, [5, 50, 150, 200])
    asked = query(items, recent=everything[:20], weights=weights, seen=seen)
    [rows] = NeighbourSource().propose([asked])
    assert rows.tolist() == plain(asked, 100)
    assert set(rows.tolist()) <= {6, 51, 151, 201}
    assert [own.tolist() for own in NeighbourSource().propose([query(items)])] == [[]]
