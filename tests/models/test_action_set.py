"""The action set, against the plain NumPy form and in the cases that it is about."""

import numpy as np
import pytest

from models.action_set import best_places

NONE = np.zeros(9, np.bool_)


def plain(scores: np.ndarray, is_explored: np.ndarray, n_explored: int, size: int) -> np.ndarray:
    """Return what `best_places` does, by whole arrays."""
    order = np.argsort(-scores, kind="stable")
    worth = 1 / (60 + np.argsort(order)) + 2 / (60 + np.arange(len(scores)))
    order = np.argsort(-worth, kind="stable")
    is_new = is_explored[order]
    is_first = is_new & (np.cumsum(is_new) <= n_explored)
    return order[np.sort(np.argsort(~is_first, kind="stable")[:size])]


@pytest.mark.parametrize("seed", range(50))
def test_the_set_is_that_of_whole_arrays(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for n in (0, 1, 19, 20, 21, 100):
        scores = rng.normal(size=n).astype(np.float32).round(rng.integers(0, 3))  # some are equal
        is_explored = rng.random(n) < rng.choice([0.0, 0.1, 1.0])
        n_explored = int(rng.integers(0, 21))
        found = best_places(scores, is_explored, n_explored, 20)
        assert found.tolist() == plain(scores, is_explored, n_explored, 20).tolist()


def test_equal_scores_keep_the_candidates_own_order() -> None:
    assert best_places(np.zeros(9, np.float32), NONE, 0, 4).tolist() == [0, 1, 2, 3]


def test_what_is_explored_takes_its_places_from_the_last_of_the_others() -> None:
    scores = np.arange(9, 0, -1, dtype=np.float32)
    assert best_places(scores, np.arange(9) >= 6, 2, 4).tolist() == [0, 1, 6, 7]
    assert best_places(scores, np.arange(9) == 8, 2, 4).tolist() == [0, 1, 2, 8]
    assert best_places(scores, np.arange(9) < 3, 1, 4).tolist() == [0, 1, 2, 3]
