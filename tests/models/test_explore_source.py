"""Exploration: who is new, and draws that a replay repeats."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.explore_source import FEW_PUSHES, NEW_S, ExploreSource, explored_places
from tests.models.moments import NOW_MS, ids_by, items_of, query, rows_of

DAY_MS = 86_400_000
MANY = [f"i{n:03d}" for n in range(200)]


def test_new_items_that_few_were_told_of_are_drawn() -> None:
    old_ms = NOW_MS - NEW_S * 1_000 - DAY_MS
    items = items_of(
        ["new", "pushed", "old", "seen-first-now", "unknown", "sold-out"],
        created_ms=[NOW_MS - DAY_MS, NOW_MS - DAY_MS, old_ms, 0, 0, NOW_MS - DAY_MS],
        first_seen_ms=[0, 0, NOW_MS, NOW_MS - DAY_MS, 0, 0],
        pushes=[FEW_PUSHES - 1, FEW_PUSHES, 0, 0, 0, 0],
        is_servable=[True, True, True, True, True, False],
    )
    asked = query(items, seed=1)
    assert set(ids_by(ExploreSource(limit=100), asked)) == {"new", "seen-first-now", "unknown"}


def test_what_the_user_has_met_is_not_explored() -> None:
    items = items_of(["a", "b"])
    assert ids_by(ExploreSource(limit=50), query(items, seen=rows_of(items, "a"))) == ["b"]


def test_draws_follow_from_the_seed_and_not_from_the_batch_or_the_rows() -> None:
    items, mirrored = items_of(MANY), items_of(MANY[::-1])
    seeds = range(40)
    together = ExploreSource().propose([query(items, seed=seed) for seed in seeds])
    ids = [[items.item_ids[row] for row in rows.tolist()] for rows in together]
    assert ids == [ids_by(ExploreSource(), query(items, seed=seed)) for seed in seeds]
    assert ids == [ids_by(ExploreSource(), query(mirrored, seed=seed)) for seed in seeds]
    assert len(set(map(tuple, ids))) == len(ids)


def test_rows_that_moved_draw_the_same_items() -> None:
    items = items_of(MANY[:100])
    before = ids_by(ExploreSource(), query(items, seed=3))
    late = items_of(MANY[50:100])
    rows = [late.add(item_id) for item_id in MANY[:50]]
    late.is_listed[rows] = late.is_servable[rows] = True
    late.settle()
    assert ids_by(ExploreSource(), query(late, seed=3)) == before


def test_the_list_follows_what_comes_and_goes_and_no_other_change() -> None:
    items, source = items_of(MANY[:3]), ExploreSource(limit=50)
    asked = query(items)
    assert set(ids_by(source, asked)) == set(MANY[:3])
    for name, column, value in (("i000", "pushes", 99), ("i001", "views", 7)):
        getattr(items, column)[items.row(name)] = value
        items.touch(items.row(name))
        items.settle()
        assert set(ids_by(source, asked)) == {"i001", "i002"}
    row = items.add("late")
    items.is_listed[row] = items.is_servable[row] = True
    items.touch(row)
    items.settle()
    assert set(ids_by(source, asked)) == {"i001", "i002", "late"}


def test_all_new_items_are_drawn_alike() -> None:
    items, source = items_of(MANY[:50]), ExploreSource(limit=1)
    drawn = Counter(name for s in range(5_000) for name in ids_by(source, query(items, seed=s)))
    # 100 each is expected, with a standard deviation of 10.
    assert len(drawn) == 50
    assert 50 < min(drawn.values()) <= max(drawn.values()) < 150


def test_nothing_new_gives_nothing() -> None:
    items = items_of(["a"], pushes=[FEW_PUSHES])
    assert ids_by(ExploreSource(), query(items)) == []
    assert ids_by(ExploreSource(limit=0), query(items_of(["a"]))) == []
    assert ExploreSource().propose([]) == []


@pytest.mark.parametrize(("share", "size"), [(0.05, 100), (0.05, 20), (0.03, 20), (0.01, 20)])
def test_the_share_of_explored_places_is_kept_on_average(share: float, size: int) -> None:
    places = explored_places(range(20_000), share, size)
    # The standard deviation of the mean is at most 0.5 / 141.
    assert np.mean(places) == pytest.approx(share * size, abs=0.02)
    assert set(places) <= {int(share * size), int(share * size) + 1}


def test_no_share_and_the_whole_share_are_exact() -> None:
    assert set(explored_places(range(100), 0.0, 20)) == {0}
    assert set(explored_places(range(100), 1.0, 20)) == {20}


class Short(ExploreSource):
    """One whose list is soon full."""

    _LISTED = 5


CHANGES = st.lists(
    st.lists(st.tuples(st.integers(1, 60), st.booleans(), st.integers(0, 9)), max_size=3),
    max_size=12,
)


@given(CHANGES)
def test_a_list_that_was_followed_is_that_of_a_new_process(changes) -> None:
    items, source = items_of(MANY[:60], created_ms=[NOW_MS - n * 9_999 for n in range(60)]), Short()
    asked = query(items, seed=7)
    ids_by(source, asked)
    for step in changes:
        for row, is_servable, age in step:
            items.is_servable[row] = is_servable
            items.created_ms[row] = NOW_MS - age * 50_000
            items.touch(row)
        items.settle()
        assert ids_by(source, asked) == ids_by(Short(), asked)
