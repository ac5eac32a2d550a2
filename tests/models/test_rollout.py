"""Who is on trial, and what too slow means."""

import numpy as np
import pytest

from models.rollout import FAST_S, MIN_CALLS, PairedTimes, is_in_share, rank_correlation

USERS = [f"user-{n}" for n in range(20_000)]


def chosen(version: str, share: float) -> set[str]:
    return {user for user in USERS if is_in_share(user, version, share)}


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_a_share_is_about_as_large_as_it_says(share: float) -> None:
    spread = (share * (1 - share) / len(USERS)) ** 0.5

    assert abs(len(chosen("a1", share)) / len(USERS) - share) < 4 * spread


def test_a_larger_share_holds_the_users_of_a_smaller_one() -> None:
    assert chosen("a1", 0.05) < chosen("a1", 0.1) < chosen("a1", 1.0) == set(USERS)


def test_another_model_is_tried_on_other_users() -> None:
    both = chosen("a1", 0.1) & chosen("b2", 0.1)

    assert len(both) / len(USERS) == pytest.approx(0.01, abs=0.003)


# As it was when the first trial was made: another split would move users between models.
WRITTEN_DOWN = [
    "user-11157",
    "user-14336",
    "user-14775",
    "user-18706",
    "user-19347",
    "user-2047",
    "user-3211",
    "user-3230",
    "user-6966",
    "user-80",
    "user-877",
    "user-9864",
    "user-9977",
]


def test_the_split_is_the_same_for_ever() -> None:
    assert sorted(chosen("a1", 0.0005)) == WRITTEN_DOWN


def times(*pairs: tuple[float, float], n: int = MIN_CALLS) -> PairedTimes:
    taken = PairedTimes()
    for place in range(n):
        taken.add(*pairs[place % len(pairs)])
    return taken


def test_a_model_that_takes_twice_as_long_is_slow_where_half_as_much_more_is_allowed() -> None:
    taken = times((0.002, 0.004))

    assert taken.is_slow(max_ratio=1.5)
    assert not taken.is_slow(max_ratio=2.5)


def test_too_few_calls_say_nothing() -> None:
    assert not times((0.002, 0.1), n=MIN_CALLS - 1).is_slow(max_ratio=1.5)


def test_nobody_waits_for_a_model_that_is_fast_however_much_faster_the_other_is() -> None:
    assert not times((FAST_S / 100, FAST_S / 2)).is_slow(max_ratio=1.5)


def test_one_call_in_a_thousand_does_not_make_a_model_slow() -> None:
    taken = times(*[(0.002, 0.002)] * (MIN_CALLS - 1), (0.002, 1.0))

    assert not taken.is_slow(max_ratio=1.5)


def test_scores_of_another_scale_are_the_same_order() -> None:
    scores = np.random.default_rng(0).normal(size=20)

    assert rank_correlation(scores, scores * 7 - 3) == 1.0
    assert abs(rank_correlation(scores, np.random.default_rng(1).normal(size=20))) < 0.6
