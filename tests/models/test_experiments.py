"""Arms are compared as they are; a split that is not as set is found."""

import numpy as np
import pytest

from models.experiments import Compared, check_split, chi_square_tail, compare

N = 4_000


def simulated(rng: np.random.Generator, effect: float = 0.0, share: float = 0.3) -> Compared:
    """Rewards as a push system has them: mostly small, a few opens, rare opt-outs."""
    is_treated = rng.random(N) < share
    activity = rng.gamma(1.0, size=N)
    is_open = rng.random(N) < 0.1 + 0.05 * np.minimum(activity, 3)
    y = np.where(rng.random(N) < 0.004, -5.0, np.where(is_open, 1.0, -0.05)) + effect * is_treated
    return compare(y, np.log1p(activity), is_treated, ~is_treated, planned=2_000)


def test_arms_alike_are_not_told_apart_at_any_look(rng: np.random.Generator) -> None:
    left, n_runs = 0, 200
    for _ in range(n_runs):
        sequence = simulated(rng).sequence
        left += bool((np.abs(sequence.differences) > sequence.anytime_halves).any())

    assert left / n_runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / n_runs)


def test_arms_that_differ_are_told_apart_before_all_users_are_in(
    rng: np.random.Generator,
) -> None:
    stops = []
    for _ in range(40):
        sequence = simulated(rng, effect=0.12).sequence
        beyond = np.abs(sequence.differences) > sequence.anytime_halves
        stops.append(sequence.users[beyond.argmax()] if beyond.any() else np.inf)

    assert np.median(stops) < 0.7 * N


def test_both_intervals_hold_the_planted_difference(rng: np.random.Generator) -> None:
    found = [simulated(rng, effect=0.1) for _ in range(200)]
    looks = [one.adjusted for one in found if one.adjusted is not None]
    errors = np.array([look.difference - 0.1 for look in looks])

    fixed = (np.abs(errors) <= [look.half for look in looks]).mean()
    assert fixed == pytest.approx(0.95, abs=0.047)  # 3 standard deviations of 200 runs
    assert (np.abs(errors) <= [look.anytime_half for look in looks]).mean() > 0.98


def test_a_lift_is_relative_to_the_control(rng: np.random.Generator) -> None:
    is_treated = np.arange(N) % 2 == 0
    y = rng.normal(2.0, 1.0, N) * np.where(is_treated, 1.1, 1.0)
    look = compare(y, np.zeros(N), is_treated, ~is_treated).look

    assert look is not None
    assert look.lift == pytest.approx(0.1, abs=0.06)
    assert look.lift_half is not None
    assert abs(look.lift - 0.1) < 1.5 * look.lift_half < 0.1


def test_a_control_around_zero_has_no_lift_but_a_difference(rng: np.random.Generator) -> None:
    is_treated = np.arange(N) % 2 == 0
    look = compare(rng.normal(size=N), np.zeros(N), is_treated, ~is_treated).look

    assert look is not None
    assert (look.lift, look.lift_half) == (None, None)


def test_too_few_users_of_an_arm_say_nothing() -> None:
    is_treated = np.arange(500) < 10
    found = compare(np.ones(500), np.ones(500), is_treated, ~is_treated)

    assert found.look is None
    assert len(found.sequence.users) == 0


def test_users_of_other_arms_change_nothing(rng: np.random.Generator) -> None:
    arms, y, x = rng.integers(0, 3, N), rng.normal(size=N), rng.normal(size=N)
    kept = arms < 2
    every = compare(y, x, arms == 1, arms == 0)
    alone = compare(y[kept], x[kept], arms[kept] == 1, arms[kept] == 0)

    assert every.look == alone.look
    assert np.flatnonzero(kept)[alone.sequence.at].tolist() == every.sequence.at.tolist()


@pytest.mark.parametrize("shares", [[0.05, 0.15, 0.8], [0.5, 0.5]])
def test_a_split_as_set_is_let_pass(rng: np.random.Generator, shares: list[float]) -> None:
    found = [
        check_split(rng.choice(len(shares), 5_000, p=shares), np.array(shares)).is_wrong
        for _ in range(200)
    ]
    assert sum(found) <= 2  # 0.4 are due at 0.001 each


def test_a_mismatch_is_found(rng: np.random.Generator) -> None:
    shares = np.array([0.05, 0.15, 0.8])
    lost = rng.choice(3, 20_000, p=[0.04, 0.15, 0.81])  # a fifth of the holdout is not logged
    split = check_split(lost, shares)

    assert split.is_wrong
    assert split.p_value < 1e-6
    assert split.anytime_p_value < 1e-3


def test_an_arm_that_nobody_should_be_in_is_a_mismatch() -> None:
    arms = np.array([0] * 500 + [1])
    assert check_split(arms, np.array([1.0, 0.0])).is_wrong


def test_nobody_is_no_mismatch() -> None:
    assert not check_split(np.zeros(0, np.int64), np.array([0.5, 0.5])).is_wrong


@pytest.mark.parametrize(
    ("degrees", "value"), [(1, 10.828), (2, 13.816), (4, 18.467), (5, 20.515), (6, 22.458)]
)
def test_the_tail_of_the_chi_square_is_that_of_the_tables(degrees: int, value: float) -> None:
    assert chi_square_tail(value, degrees) == pytest.approx(0.001, rel=1e-3)
