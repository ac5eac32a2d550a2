import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.features import EVENT_CODE, EVENT_TYPES
from models.recency import closed_and_seen, recent_rows
from models.sources import WEIGHT_UNIT

Rows = NDArray[np.int64]
DAY_S = 86_400
# Rows 1 to 40, and some that meet in one slot of any table.
ROWS = st.one_of(st.integers(0, 40), st.integers(1, 5).map(lambda n: n << 20))
EVENTS = st.tuples(ROWS, st.integers(1, len(EVENT_TYPES) - 1), st.integers(0, 12 * 365 * DAY_S))


def whole(values: list[int]) -> Rows:
    return np.array(values, np.int64)


def by_dict(events: list[tuple[int, int, int]]) -> tuple[list[int], list[int]]:
    """Return what `recent_rows` says, of rows, types and ages."""
    newest = {row: (kind, age_s) for row, kind, age_s in reversed(events) if row}
    order = dict.fromkeys(row for row, _, _ in events if row)
    says = {}
    for place, row in enumerate(order):
        kind, age_s = newest[row]
        days = min(max((age_s - events[0][2]) // DAY_S, 0), 3_649)
        weight = int(WEIGHT_UNIT * 0.99**place * 2.0 ** (-days / 365))
        if weight and EVENT_TYPES[kind] not in ("cart_remove", "refund"):
            says[row] = weight
    return list(says), list(says.values())


@settings(max_examples=300)
@given(st.lists(EVENTS, max_size=250))
def test_recent_rows_are_those_of_the_plain_form(events: list[tuple[int, int, int]]) -> None:
    columns = [whole(list(column)) for column in zip(*events, strict=True)] or [whole([])] * 3
    found = recent_rows(*columns)
    assert tuple(column.tolist() for column in found) == by_dict(events)
    assert all(column.dtype == np.int64 and column.flags.c_contiguous for column in found)


def test_of_what_was_had_again_the_newest_event_counts() -> None:
    put_back, cart = EVENT_CODE["cart_remove"], EVENT_CODE["cart"]
    events = whole([7, 8, 7, 8]), whole([put_back, cart, cart, put_back]), whole([0, 0, 9, 9])
    assert recent_rows(*events)[0].tolist() == [8]


def test_a_type_without_a_code_is_refused() -> None:
    with pytest.raises(IndexError):
        recent_rows(whole([7]), whole([len(EVENT_TYPES)]), whole([0]))


@given(*[st.lists(ROWS, max_size=200)] * 3)
def test_closed_and_seen_are_distinct_in_order(
    bought: list[int], history: list[int], cart: list[int]
) -> None:
    closed, seen = closed_and_seen(whole(bought), whole(history), whole(cart))
    assert closed.tolist() == list(dict.fromkeys(bought))
    assert seen.tolist() == list(dict.fromkeys(bought + history + cart))
