"""Rows: what was changed lately, sums by row, and what they cost."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.item_rows import ItemRows


def rows_of(n: int) -> ItemRows:
    items = ItemRows()
    for i in range(n):
        row = items.add(f"i{i}")
        items.is_listed[row] = True
    items.settle()
    return items


def test_what_was_touched_since_a_version_is_told() -> None:
    items = rows_of(10)
    first = items.version
    for row in (3, 5):
        items.touch(row)
    items.settle()
    items.touch(5)
    items.touch(1)
    items.settle()
    told = [items.changed_since(version) for version in (first, first + 1, first + 2)]
    assert [rows.tolist() for rows in told if rows is not None] == [[1, 3, 5], [1, 5], []]


def test_more_changes_than_are_worth_following_are_told_as_everything() -> None:
    items = rows_of(1_000)
    version = items.version
    for row in range(1, 900):
        items.touch(row)
    items.settle()
    assert items.changed_since(version) is None
    for _ in range(300):
        items.settle()
    assert items.changed_since(version + 1) is None
    assert items.changed_since(items.version - 5) is not None


def test_rows_that_moved_are_told_as_everything() -> None:
    items = rows_of(4_000)
    items.is_listed[1:3_000] = False
    version = items.version
    assert items.settle() is not None
    assert items.changed_since(version) is None


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9), unique=True))
def test_membership_leaves_nothing_behind(rows, chosen) -> None:
    items = rows_of(9)
    for _ in range(2):
        among = items.is_among(np.array(rows, np.int64), np.array(chosen, np.int64))
        assert among.tolist() == [row in chosen for row in rows]


def test_an_item_without_an_end_is_open_for_ever() -> None:
    items = rows_of(2)
    items.is_servable[1:3] = True
    items.until_ms[2] = 5
    items.settle()
    rows = np.arange(3)
    assert items.is_open(rows, 4).tolist() == [False, True, True]
    assert items.is_open(rows, 2**61).tolist() == [False, True, False]
