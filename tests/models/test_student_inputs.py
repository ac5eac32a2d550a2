import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.dataset import gap_buckets, time_bucket
from models.features import HISTORY, N_CONTEXT
from models.student_inputs import LENGTHS, MAX_ROWS, StudentInputs, oldest_first

DIM = 6
N_ITEMS = 20
USERS = st.lists(st.integers(0, HISTORY), min_size=1, max_size=MAX_ROWS)
ALL = np.array(LENGTHS)


def asked(n_items: list[int], seed: int) -> list[NDArray[np.generic]]:
    """Return rows, types, ages and contexts of users with so many items."""
    rng = np.random.default_rng(seed)
    shape = (len(n_items), HISTORY)
    is_item = np.arange(HISTORY) >= HISTORY - np.array(n_items)[:, None]
    rows = rng.integers(1, N_ITEMS + 1, shape) * is_item
    ages = np.exp2(rng.uniform(-3, 40, shape)).astype(np.float32)  # in no order: gaps below 0 too
    types = rng.integers(1, 12, shape) * is_item
    return [rows, types, ages * is_item, rng.random((len(n_items), N_CONTEXT), np.float32)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@given(users=USERS, seed=st.integers(0, 9))
def test_inputs_are_those_of_the_functions_that_training_reads(
    users: list[int], seed: int, dtype: type
) -> None:
    table = np.random.default_rng(seed).normal(size=(N_ITEMS + 1, DIM)).astype(dtype)
    table[0], table[1, 0] = 0, 2.0**-24  # a float16 without a leading one
    rows, types, age_s, context = asked(users, seed)
    inputs = StudentInputs(DIM)
    length = inputs.fill(table, rows, types, age_s, context, ALL)
    assert length == (min(n for n in LENGTHS if n >= max(users)) if min(users) else HISTORY)
    found = inputs.first(len(users), length)
    assert (found["table"][found["rows"]] == table[rows[:, -length:]]).all()
    assert ((found["rows"] > 0) == (rows[:, -length:] > 0)).all()
    assert found["types"].tolist() == types[:, -length:].tolist()
    assert found["gaps"].tolist() == gap_buckets(rows, age_s)[:, -length:].tolist()
    ages = np.where(rows[:, -1] > 0, time_bucket(age_s[:, -1]), 0)
    assert found["age"].tolist() == ages.tolist()
    assert found["context"].tobytes() == context.tobytes()


def test_what_others_left_in_the_arrays_is_not_read() -> None:
    table = np.random.default_rng(0).normal(size=(N_ITEMS + 1, DIM)).astype(np.float16)
    table[0] = 0
    used, new = StudentInputs(DIM), StudentInputs(DIM)
    used.fill(table, *asked([HISTORY] * MAX_ROWS, 1), ALL)
    found = []
    for inputs in (used, new):
        length = inputs.fill(table, *asked([3, 1], 2), ALL)
        own = inputs.first(2, length)
        found.append({**own, "table": own["table"][own["rows"]]})
    again, first = ({name: of.tobytes() for name, of in own.items()} for own in found)
    assert again == first


def test_a_row_beyond_the_table_is_refused() -> None:
    rows, types, age_s, context = asked([2], 0)
    rows[0, -1] = N_ITEMS + 1
    for dtype in (np.float16, np.float32):
        table = np.zeros((N_ITEMS + 1, DIM), dtype)
        with pytest.raises(IndexError):
            StudentInputs(DIM).fill(table, rows, types, age_s, context, ALL)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(0, 2**31))))
def test_the_newest_known_events_come_last(events: list[tuple[int, int, int]]) -> None:
    columns = np.array(events, np.int64).reshape(-1, 3).T
    rows, types = np.zeros((2, 5), np.int64)
    age_s = np.zeros(5, np.float32)
    oldest_first(*(np.ascontiguousarray(column) for column in columns), rows, types, age_s)
    known = [event for event in events if event[0]][:5][::-1]
    wanted = np.array([(0, 0, 0)] * (5 - len(known)) + known)
    assert [rows.tolist(), types.tolist()] == wanted[:, :2].T.tolist()
    assert age_s.tolist() == wanted[:, 2].astype(np.float32).tolist()
