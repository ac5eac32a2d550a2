"""Factors of items, on planted tastes."""

import numpy as np
import pytest

from models.factors import item_factors

N_TASTES, OF_TASTE, N_USERS, N_EVENTS = 5, 12, 200, 8
N_ROWS = N_TASTES * OF_TASTE


@pytest.fixture(scope="module")
def had() -> tuple[np.ndarray, np.ndarray]:
    """Return users and rows: each user has items of one taste, row % 5."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(N_USERS), N_EVENTS)
    rows = [N_TASTES * rng.permutation(OF_TASTE)[:N_EVENTS] + n % N_TASTES for n in range(N_USERS)]
    return users, np.concatenate(rows)


def test_items_of_one_taste_go_together(had: tuple[np.ndarray, np.ndarray]) -> None:
    factors = item_factors(*had, N_ROWS, width=8, seed=0)
    together = factors @ factors.T
    is_same = np.arange(N_ROWS)[:, None] % N_TASTES == np.arange(N_ROWS) % N_TASTES
    assert together[is_same].min() > 2 * np.abs(together[~is_same]).max()


def test_a_pair_counts_once_and_an_order_of_events_does_not(
    had: tuple[np.ndarray, np.ndarray],
) -> None:
    once = item_factors(*had, N_ROWS, width=8, seed=0)
    thrice = item_factors(*(np.tile(column[::-1], 3) for column in had), N_ROWS, width=8, seed=0)
    assert thrice @ thrice.T == pytest.approx(once @ once.T, abs=1e-9)


def test_what_nobody_had_has_no_direction(had: tuple[np.ndarray, np.ndarray]) -> None:
    factors = item_factors(*had, N_ROWS + 3, width=8, seed=0)
    assert factors.shape == (N_ROWS + 3, 8)
    assert not factors[N_ROWS:].any()
    assert factors[:N_ROWS].any(axis=1).all()


def test_more_columns_than_there_are_items_and_no_events_at_all() -> None:
    wide = item_factors(np.array([0, 0, 1]), np.array([0, 1, 1]), 2, width=6, seed=0)
    assert wide.shape == (2, 6)
    assert np.isfinite(wide).all()
    none = np.zeros(0, np.int64)
    assert not item_factors(none, none, 3, width=4, seed=0).any()


def test_of_many_users_some_tell_what_goes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.factors.MOST_USERS", 300)
    users = np.repeat(np.arange(3_000), 2)
    pairs = np.array([[0, 1], [2, 3], [0, 1]])[np.arange(3_000) % 3]
    factors = item_factors(users, pairs.ravel(), 4, width=2, seed=0)
    together = factors @ factors.T
    assert together[0, 1] > 10 * abs(together[0, 2])
    # As strong as 300 users make it: of all 3,000 it would be 0.26, the penalty counting less.
    assert together[0, 1] < 0.15
