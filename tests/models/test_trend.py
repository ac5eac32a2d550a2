"""Lists of what is popular: those that follow changes are those that are made anew."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import trend
from models.item_rows import ItemRows
from models.trend import blend, top_of, top_of_category, top_of_country, top_of_week

N = 40
SEGMENTS = (
    top_of,
    top_of_week,
    lambda items, limit: top_of_category(items, 1, limit),
    lambda items, limit: top_of_country(items, 2, limit),
)


def set_row(items: ItemRows, row: int, rng: np.random.Generator) -> None:
    """Give a row values of which many are equal, and say so."""
    items.is_listed[row] = True
    items.is_servable[row] = rng.random() < 0.8
    items.trend[row], items.trend_week[row] = rng.integers(0, 6, 2)
    items.category[row] = rng.integers(0, 3)
    items.country[row, :2] = rng.permutation(3)[:2]
    items.country_trend[row, :2] = rng.integers(0, 6, 2)
    items.touch(row)


def anew(items: ItemRows) -> list[list[int]]:
    items.top_lists.clear()
    return [top(items, 8).tolist() for top in SEGMENTS]


@pytest.fixture(autouse=True)
def short_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trend, "TOP", 8)
    monkeypatch.setattr(trend, "_DEPTH", 12)


@settings(max_examples=60)
@given(st.integers(0, 1_000), st.lists(st.lists(st.integers(0, N), max_size=6), max_size=8))
def test_lists_that_follow_changes_are_those_made_anew(seed, rounds) -> None:
    rng, items = np.random.default_rng(seed), ItemRows()
    for n in range(N):
        set_row(items, items.add(f"i{n}"), rng)
    items.settle()
    followed = [[top(items, 8).tolist() for top in SEGMENTS]]
    wanted = [anew(items)]
    for changed in rounds:
        for n in changed:
            set_row(items, items.add(f"i{n}"), rng)
        items.settle()
        followed.append([top(items, 8).tolist() for top in SEGMENTS])
        kept = dict(items.top_lists)
        wanted.append(anew(items))
        items.top_lists.update(kept)
    assert followed == wanted


def test_a_longer_list_than_is_kept_is_made_from_all_rows() -> None:
    rng, items = np.random.default_rng(0), ItemRows()
    for n in range(N):
        set_row(items, items.add(f"i{n}"), rng)
    items.settle()
    every = top_of(items, N)
    assert sorted(every.tolist()) == np.flatnonzero(items.is_servable[: N + 1]).tolist()
    assert every[:8].tolist() == top_of(items, 8).tolist()


def test_a_blend_adds_the_reciprocal_ranks() -> None:
    items = ItemRows()
    for n in range(5):
        items.add(f"i{n}")
    items.settle()
    lists = [np.array([1, 2, 3]), np.array([3, 4]), np.array([2, 3])]
    assert blend(items, lists, 3).tolist()[:2] == [3, 2]
    assert sorted(blend(items, lists, 9).tolist()) == [1, 2, 3, 4]
    assert blend(items, [], 9).tolist() == []
