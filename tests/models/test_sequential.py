"""Confidence sequences hold at every look, and cost less time than looking once too late."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.sequential import split_evidence, tuned, users_needed

LOOKS = np.arange(100, 4_001, 20)


def scores(rng: np.random.Generator, n_runs: int, effect: float = 0.0) -> NDArray[np.float64]:
    """Estimates of a mean in standard errors at each look, shape (n_runs, T); spread is 1."""
    sums = rng.normal(effect, 1.0, (n_runs, LOOKS[-1])).cumsum(axis=1)
    return sums[:, LOOKS - 1] / np.sqrt(LOOKS)


def first_beyond(z: NDArray[np.float64], bound: NDArray[np.float64]) -> NDArray[np.float64]:
    """The look at which each run leaves 0 out; infinite if none."""
    beyond = np.abs(z) > bound
    return np.where(beyond.any(axis=1), LOOKS[beyond.argmax(axis=1)], np.inf)


def test_no_look_at_arms_alike_leaves_out_zero_but_in_one_run_of_twenty(
    rng: np.random.Generator,
) -> None:
    z = scores(rng, 1_000)
    anytime = np.isfinite(first_beyond(z, tuned(1_000, 0.05).errors(LOOKS))).mean()
    peeking = np.isfinite(first_beyond(z, np.full(len(LOOKS), 1.96))).mean()

    # 0.05 and 4 standard deviations of a share of 1,000 runs. Over a finite time it is below 0.05.
    assert anytime <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 1_000)
    assert peeking > 0.25  # what the interval of one look does when it is looked at 196 times


def test_a_difference_is_found_sooner_than_at_the_end_that_was_planned(
    rng: np.random.Generator,
) -> None:
    effect = 4.4 / np.sqrt(LOOKS[-1])  # a single look at the end finds it in 99% of the runs
    stops = first_beyond(scores(rng, 500, effect), tuned(1_000, 0.05).errors(LOOKS))

    assert np.isfinite(stops).mean() > 0.85
    assert np.median(stops) < 0.7 * LOOKS[-1]


def test_the_boundary_is_narrowest_where_it_was_tuned_to_be() -> None:
    n = np.array([250, 500, 1_000, 2_000, 4_000])
    assert [int(n[tuned(at, 0.05).errors(n).argmin()]) for at in n] == n.tolist()


def test_p_values_and_intervals_say_the_same(rng: np.random.Generator) -> None:
    boundary = tuned(1_000, 0.05)
    z = scores(rng, 200, effect=0.06)
    stops = first_beyond(z, boundary.errors(LOOKS))
    p_values = np.array([boundary.p_values(own, LOOKS) for own in z])
    below = p_values < 0.05

    assert (np.diff(p_values) <= 0).all()
    assert np.where(below.any(axis=1), LOOKS[below.argmax(axis=1)], np.inf).tolist() == (
        stops.tolist()
    )


@pytest.mark.parametrize("power", [0.5, 0.9])
def test_the_users_needed_find_the_difference_as_often_as_asked(
    rng: np.random.Generator, power: float
) -> None:
    effect = 0.1
    n = round(users_needed(effect, 1.0, alpha=0.05, power=power))
    bound = tuned(n, 0.05).errors(np.array([n]))[0] / np.sqrt(n)
    found = rng.normal(effect, 1 / np.sqrt(n), 4_000) > bound

    assert found.mean() == pytest.approx(power, abs=0.035)  # 4 standard deviations


def test_a_split_as_set_never_looks_wrong_and_another_does(rng: np.random.Generator) -> None:
    shares = np.array([0.05, 0.15, 0.8])
    looks = np.arange(200, 20_001, 200)

    def worst(truth: list[float]) -> float:
        arms = rng.choice(3, looks[-1], p=truth)
        counts = np.array([np.bincount(arms[:n], minlength=3) for n in looks])
        return float(split_evidence(counts, shares).max())

    assert max(worst(shares.tolist()) for _ in range(100)) < -np.log(0.001)
    assert min(worst([0.04, 0.15, 0.81]) for _ in range(20)) > -np.log(0.001)
