"""Ids and rows: a table that answers as a dict and a list would."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.item_ids import ItemIds

IDS = st.lists(st.text(min_size=1, max_size=6), max_size=40, unique=True)


@given(IDS, st.integers(0, 40), IDS)
def test_ids_are_found_as_in_a_dict(ids: list[str], n_settled: int, others: list[str]) -> None:
    table, row_of = ItemIds(), {"": 0}
    for n, item_id in enumerate(ids):
        if n == n_settled:
            table.settle()
        table.settled(ids)  # what was asked for before it came is found all the same
        row_of[item_id] = table.add(item_id)
    assert [table.find(item_id) for item_id in ids] == list(range(1, len(ids) + 1))
    assert [table.find(item_id) for item_id in others] == [row_of.get(name, 0) for name in others]
    seen = n_settled if n_settled < len(ids) else 0
    assert table.settled(ids) == [n if n <= seen else 0 for n in range(1, len(ids) + 1)]
    assert list(table) == ["", *ids]


def test_many_ids_are_found_after_growth_and_after_they_moved() -> None:
    table = ItemIds()
    for n in range(5_000):
        table.add(f"item {n}")
    kept = np.concatenate([[0], np.arange(5_000, 0, -3)])
    wanted = table.named(kept)
    table.reorder(kept)
    assert list(table) == wanted
    assert [table.find(item_id) for item_id in wanted] == list(range(len(kept)))
    assert table.find("item 0") == 0
    table.add("item 0")
    assert table.find("item 0") == len(kept)
    assert table.named(np.array([len(kept), 1])) == ["item 0", wanted[1]]
