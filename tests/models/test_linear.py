"""Weights from item to item, on planted tastes."""

import numpy as np
import pytest

from models.linear import KEPT, PENALTY, among, item_weights, matrix_of
from models.linear_weights import UNIT, ItemWeights, by_row

N_TASTES, OF_TASTE, N_USERS, N_EVENTS = 5, 12, 1_000, 8
N_ROWS = N_TASTES * OF_TASTE

Had = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def had() -> Had:
    """Return users and rows: each user has items of one taste, row % 5."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(N_USERS), N_EVENTS)
    rows = [N_TASTES * rng.permutation(OF_TASTE)[:N_EVENTS] + n % N_TASTES for n in range(N_USERS)]
    return users, np.concatenate(rows)


def test_only_items_of_one_taste_say_anything_of_each_other(had: Had) -> None:
    weights = matrix_of(item_weights(*had, N_ROWS, seed=0)).toarray()
    is_same = np.arange(N_ROWS)[:, None] % N_TASTES == np.arange(N_ROWS) % N_TASTES
    is_other = ~np.eye(N_ROWS, dtype=np.bool_)
    assert weights[is_same & is_other].min() > 0.03
    assert weights[~is_same].max() == 0.0
    assert not weights.diagonal().any()


def test_weights_are_those_of_the_regression_with_a_penalty(had: Had) -> None:
    found = matrix_of(item_weights(*had, N_ROWS, seed=0)).toarray()
    x = np.zeros((N_USERS, N_ROWS))
    x[had] = 1.0
    wanted, others = 7, [n for n in range(N_ROWS) if n != 7]
    own = x[:, others]
    solved = np.linalg.solve(own.T @ own + PENALTY * np.eye(len(others)), own.T @ x[:, wanted])
    assert found[others, wanted] == pytest.approx(solved.clip(0), abs=0.5 / UNIT + 1e-9)


def test_what_two_items_say_alike_is_said_once() -> None:
    # Who has 0 has 1 and 2 as well, whose owners are the same; 3 and 4 go together by themselves.
    users = np.concatenate([np.repeat(np.arange(2_000), 3), np.repeat(np.arange(2_000, 4_000), 2)])
    rows = np.concatenate([np.tile([0, 1, 2], 2_000), np.tile([3, 4], 2_000)])
    weights = matrix_of(item_weights(users, rows, 5, seed=0)).toarray()
    assert weights[1, 0] == weights[2, 0] == pytest.approx(weights[3, 4] / 2, rel=0.15)


def test_a_pair_counts_once_and_an_order_of_events_does_not(had: Had) -> None:
    once = item_weights(*had, N_ROWS, seed=0)
    thrice = item_weights(*(np.tile(column[::-1], 3) for column in had), N_ROWS, seed=0)
    for part, other in zip(once, thrice, strict=True):
        np.testing.assert_array_equal(part, other)


def test_an_item_is_explained_by_few_and_an_items_strongest_weights_come_first() -> None:
    rng = np.random.default_rng(1)
    users = np.repeat(np.arange(400), 30)
    weights = item_weights(users, rng.integers(0, 200, len(users)), 200, seed=0)
    assert np.bincount(weights.others).max() == KEPT
    first = weights.steps[weights.starts[3] : weights.starts[4]].astype(np.int64)
    assert len(first) > 1
    assert (np.diff(first) <= 0).all()


def test_items_of_few_users_or_beyond_the_bound_say_nothing(
    had: Had, monkeypatch: pytest.MonkeyPatch
) -> None:
    users, rows = (np.concatenate(pair) for pair in zip(had, ([0, 0], [N_ROWS, 0]), strict=True))
    weights = item_weights(users, rows, N_ROWS + 3, seed=0)
    assert weights.n_items == N_ROWS + 3
    assert (np.diff(weights.starts)[N_ROWS:] == 0).all()
    assert weights.others.max() < N_ROWS
    monkeypatch.setattr("models.linear.MOST_ITEMS", 20)
    few = item_weights(*had, N_ROWS, seed=0)
    assert np.count_nonzero(np.diff(few.starts)) == 20


def test_of_many_users_some_are_looked_at(had: Had, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = matrix_of(item_weights(*had, N_ROWS, seed=0)).max()
    monkeypatch.setattr("models.linear.MOST_USERS", 300)
    assert 0 < matrix_of(item_weights(*had, N_ROWS, seed=0)).max() < whole


def test_no_events_at_all() -> None:
    none = np.zeros(0, np.int64)
    assert [part.tolist() for part in item_weights(none, none, 2, seed=0)] == [[0, 0, 0], [], []]


def test_rows_of_a_catalogue_have_the_weights_of_their_items(had: Had) -> None:
    weights = among(item_weights(*had, N_ROWS, seed=0), np.arange(10))  # of tastes 0 to 4, twice
    # Rows 1 to 9 are items 8 to 0, the others are not known; item 9 is not in the catalogue.
    lists = by_row(weights, np.array([10, *range(8, -1, -1), 10, 10]))
    [rows, strengths], lengths = lists.take(np.array([4, 11, 9, 5]))
    assert lengths.tolist() == [1, 0, 1, 0]  # of row 5, item 4, item 9 alone is told
    assert rows.tolist() == [9, 4]  # items 5 and 0 name each other
    assert strengths == pytest.approx(weights.steps[[5, 0]] / UNIT, rel=1e-3)


@pytest.mark.parametrize(
    ("row", "said"),
    [([0, 3, 9], "other items"), ([-1, 0, 9], "other items"), ([0, 1], "3 columns")],
)
def test_a_table_of_other_things_is_refused(row: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ItemWeights.of_table(np.float32([row]), 3)
