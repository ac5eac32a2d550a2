"""Lists by row: what was put is what is taken, and gaps do not pile up."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.ragged import Ragged

PUTS = st.lists(
    st.tuples(st.integers(0, 40), st.lists(st.integers(-9, 9), max_size=12)), max_size=60
)


@given(PUTS, st.permutations(range(0, 60, 3)))
def test_the_last_values_of_a_row_are_its_values(puts, asked) -> None:
    lists, wanted = Ragged(np.int32), {}
    for row, values in puts:
        lists.put(row, values)
        wanted[row] = values
    [values], lengths = lists.take(np.array(asked, np.int64))
    assert values.tolist() == [value for row in asked for value in wanted.get(row, [])]
    assert lengths.tolist() == [len(wanted.get(row, [])) for row in asked]
    assert all(lists.get(row)[0].tolist() == wanted.get(row, []) for row in range(60))


@given(PUTS, st.lists(st.integers(0, 40), unique=True))
def test_rows_that_are_kept_take_their_values_along(puts, kept) -> None:
    lists, wanted = Ragged(np.int32), {}
    for row, values in puts:
        lists.put(row, values)
        wanted[row] = values
    lists.reorder(np.array(kept, np.int64))
    for new, old in enumerate(kept):
        assert lists.get(new)[0].tolist() == wanted.get(old, [])
    lists.put(len(kept), [1, 2])
    assert lists.get(len(kept))[0].tolist() == [1, 2]


def test_the_room_is_bounded_whatever_is_put() -> None:
    lists, rng = Ragged(np.int32), np.random.default_rng(0)
    for n in rng.integers(0, 100, 20_000).tolist():
        lists.put(n % 50, np.full(n, n))
    [values], lengths = lists.take(np.arange(50))
    assert len(lists.values[0]) <= 2 * 4_096 + 4 * lengths.sum()
    assert (np.repeat(lengths, lengths) == values).all()


def test_the_parts_of_a_value_stay_together() -> None:
    lists = Ragged(np.int32, np.float16)
    lists.put(1, [5, 6], [0.5, 0.25])
    lists.put(3, [7], [2.0])
    lists.reorder(np.array([3, 1]))
    [numbers, shares], lengths = lists.take(np.array([1, 0]))
    assert (numbers.tolist(), shares.tolist()) == ([5, 6, 7], [0.5, 0.25, 2.0])
    assert lengths.tolist() == [2, 1]
