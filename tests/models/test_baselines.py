"""Baselines: what each finds where the answer is known, and how ties are settled."""

import numpy as np
import pytest

from models.baselines import GRIDS, Interactions, lists_of, make, matrix_of, settings_of

NEVER = float("inf")
N_ROWS = 9  # rows 1 to 8: users of one group have 1 to 4, those of the other 5 to 8


def groups() -> Interactions:
    """Return forty users who each had three of their group's four items."""
    had = [
        (user, 4 * (user % 2) + item + 1)
        for user in range(40)
        for item in range(4)
        if item != (user // 2) % 4
    ]
    user, row = np.array(had).T
    return Interactions(user, row, np.zeros(len(user)), 40)


def lists(name: str, options: dict[str, float], pasts: Interactions, k: int = 3) -> list[list[int]]:
    baseline = make(name, options, seed=0)
    baseline.fit(matrix_of(groups(), N_ROWS, baseline.half_life))
    had = matrix_of(pasts, N_ROWS).toarray() > 0

    def may_propose(part: slice) -> np.ndarray:
        is_new = ~had[part]
        is_new[:, 0] = False
        return is_new

    return lists_of(baseline, pasts, may_propose, np.arange(N_ROWS), k).tolist()


def had(*rows: int) -> Interactions:
    return Interactions(np.zeros(len(rows), int), np.array(rows), np.zeros(len(rows)), 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("item-CF", {"half_life": NEVER, "shrink": 0.0, "neighbours": 100.0}),
        (
            "ALS",
            {"factors": 2.0, "regularization": 0.01, "alpha": 5.0, "half_life": NEVER},
        ),
    ],
)
def test_a_user_of_a_group_is_proposed_what_the_group_has(
    name: str, options: dict[str, float]
) -> None:
    [first] = lists(name, options, had(2))
    [second] = lists(name, options, had(6))
    assert sorted(first) == [1, 3, 4]
    assert sorted(second) == [5, 7, 8]


def test_of_equally_popular_items_the_first_in_the_order_of_ties_is_first() -> None:
    assert lists("popularity", {"half_life": NEVER}, had(1)) == [[2, 3, 4]]


def test_fading_prefers_what_was_had_lately() -> None:
    baseline = make("popularity", {"half_life": 7.0}, seed=0)
    rows, ages = np.array([1, 1, 2]), np.array([30.0, 30.0, 0.0])
    known = Interactions(np.array([0, 1, 0]), rows, ages, 2)
    baseline.fit(matrix_of(known, 3, baseline.half_life))
    scores = baseline.scores(matrix_of(had(1), 3))
    assert scores[0].round(3).tolist() == [0.0, 0.103, 1.0]


def test_a_list_is_padded_where_too_little_may_be_proposed() -> None:
    assert lists("popularity", {"half_life": NEVER}, had(*range(1, 8)), k=3) == [[8, 0, 0]]


def test_random_does_not_depend_on_what_was_had() -> None:
    assert lists("random", {}, had(1), 8)[0] != lists("popularity", {"half_life": NEVER}, had(1), 8)
    assert sorted(lists("random", {}, had(1), 7)[0]) == [2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("name", GRIDS)
def test_settings_are_drawn_without_repeats_and_the_same_for_a_seed(name: str) -> None:
    drawn = [tuple(options.items()) for options in settings_of(name, 24, seed=3)]
    assert len(set(drawn)) == len(drawn) <= 24
    assert drawn == [tuple(options.items()) for options in settings_of(name, 24, seed=3)]
