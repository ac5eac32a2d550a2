import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.learner import RewardLearner
from models.policy import (
    GAMMA_REWARDS,
    Greedy,
    Policy,
    SquareCB,
    Uniform,
    explain,
    policy_version,
    sample,
)
from models.posterior import Posterior, merge, no_knowledge


def belief(mean: np.ndarray, n: int = GAMMA_REWARDS) -> Posterior:
    return Posterior(mean, np.eye(len(mean)), n)


def policies(posterior: Posterior) -> list[Policy]:
    return [SquareCB(posterior, gamma=1_000.0), Greedy(posterior, epsilon=0.1), Uniform()]


@given(st.integers(0, 10**6), st.integers(0, 100), st.integers(0, 2), st.floats(1e-6, 1e9))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_probabilities_sum_to_one_and_keep_the_floor(
    seed: int, n_arms: int, which: int, scale: float
):
    rng = np.random.default_rng(seed)
    x, mean = rng.normal(size=(n_arms, 6)), rng.normal(size=6) * scale
    values, probabilities = policies(belief(mean))[which].distribution(x)
    assert values.shape == probabilities.shape == (n_arms + 1,)
    assert values[-1] == 0.0
    assert abs(probabilities.sum() - 1) <= 1e-12
    floor = (0.002, 0.1 / (n_arms + 1), 1 / (n_arms + 1))[which]
    assert probabilities.min() >= min(floor, 1 / (n_arms + 1)) * (1 - 1e-12)


def test_square_cb_is_its_closed_form():
    policy = SquareCB(belief(np.array([1.0])), gamma=50.0, floor=0.01)
    values, probabilities = policy.distribution(np.array([[0.3], [0.1], [-0.2]]))
    assert values.tolist() == [0.3, 0.1, -0.2, 0.0]
    second, third, none = 1 / (4 + 50 * 0.2), 1 / (4 + 50 * 0.5), 1 / (4 + 50 * 0.3)
    plain = [1 - second - third - none, second, third, none]
    expected = [0.01 + (1 - 4 * 0.01) * p for p in plain]
    assert probabilities.tolist() == pytest.approx(expected, abs=1e-15)


def test_before_learning_every_arm_is_alike_so_it_mostly_sends():
    x = np.random.default_rng(0).normal(size=(20, 6))
    probabilities = SquareCB(no_knowledge(1.0, dim=6), gamma=1_000.0).distribution(x)[1]
    assert probabilities.tolist() == pytest.approx([1 / 21] * 21)


def test_none_wins_where_every_push_costs():
    policy = SquareCB(belief(np.array([1.0])), gamma=1_000.0)
    probabilities = policy.distribution(np.full((20, 1), -0.5))[1]
    assert probabilities[-1] > 0.9


def test_without_candidates_only_none_is_left():
    assert Uniform().distribution(np.empty((0, 3)))[1].tolist() == [1.0]
    policy = SquareCB(belief(np.ones(3)), gamma=1_000.0)
    assert policy.distribution(np.empty((0, 3)))[1].tolist() == [1.0]


def test_gamma_grows_with_the_rewards_learned():
    at = [SquareCB(belief(np.ones(1), n), gamma=10.0).gamma for n in (250, 1_000, 4_000)]
    assert at == [5.0, 10.0, 20.0]
    assert SquareCB(belief(np.ones(1), 4_000), gamma=10.0, growth=0.0).gamma == 10.0


def test_a_floor_beyond_uniform_is_uniform():
    policy = SquareCB(belief(np.array([1.0])), gamma=50.0, floor=0.9)
    assert policy.distribution(np.array([[3.0]]))[1].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("settings", [{"gamma": 0.0}, {"gamma": 1.0, "floor": -0.1}])
def test_settings_without_sense_are_refused(settings: dict[str, float]):
    with pytest.raises(ValueError, match="gamma"):
        SquareCB(belief(np.ones(1)), **settings)


def test_an_epsilon_that_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="epsilon"):
        Greedy(belief(np.ones(1)), epsilon=1.1)


def test_the_last_bits_of_a_value_do_not_choose_the_best_arm():
    nearly = np.nextafter(0.3, 1.0)
    policy = Greedy(belief(np.array([1.0])), epsilon=0.0)
    assert policy.distribution(np.array([[0.3], [nearly]]))[1].tolist() == [1.0, 0.0, 0.0]


def test_draws_follow_the_probabilities():
    probabilities = np.array([0.5, 0.0, 0.3, 0.2])
    drawn = [sample(probabilities, b"d%d" % i) for i in range(20_000)]
    shares = np.bincount(drawn, minlength=4) / 20_000
    # Five standard errors of the largest share.
    assert np.abs(shares - probabilities).max() < 5 * math.sqrt(0.25 / 20_000)
    assert shares[1] == 0


def test_a_draw_is_the_same_for_ever():
    probabilities = np.full(21, 1 / 21)
    drawn = [sample(probabilities, f"decision-{i}".encode()) for i in range(8)]
    assert drawn == [14, 15, 9, 17, 8, 7, 15, 7]


def test_a_sum_short_of_one_still_draws_an_arm_of_the_set():
    short = np.array([0.0, 1e-300, 0.0])
    assert sample(short, b"any") == 1


def test_contributions_add_up_to_the_value():
    rng = np.random.default_rng(3)
    row, mean = rng.normal(size=6), rng.normal(size=6)
    shares = explain(row, mean, 6, tuple("abcdef"))
    assert sum(share for _, _, share in shares) == pytest.approx(row @ mean)
    sizes = [abs(share) for _, _, share in shares]
    assert sizes == sorted(sizes, reverse=True)


def test_the_version_names_the_rewards_and_the_content():
    one, other = belief(np.array([1.0]), 5), belief(np.array([1.0 + 1e-15]), 5)
    assert policy_version(one).startswith("5-")
    assert policy_version(one) == policy_version(belief(np.array([1.0]), 5))
    assert policy_version(one) != policy_version(other)


def test_square_cb_learns_to_beat_uniform_and_stops_sending_what_nobody_wants():
    rng = np.random.default_rng(11)
    weights = np.array([-0.2, 0.4, -0.3, 0.0, 0.2])
    learner = RewardLearner(tuple("abcde"), spec_hash="test")
    policy = SquareCB(no_knowledge(1.0, dim=5), gamma=300.0)
    earned = {True: 0.0, False: 0.0}  # by half
    for step in range(3_000):
        x = rng.normal(size=(10, 5))
        x[:, 0] = 1.0
        arm = sample(policy.distribution(x)[1], b"%d" % step)
        if arm < len(x):
            truth = float(x[arm] @ weights)
            earned[step >= 1_500] += truth
            learner.learn(x[arm], truth + rng.normal())
        if step % 50 == 0:
            policy = SquareCB(merge([learner.statistics()], prior=1.0), gamma=300.0)
    # Uniform earns -0.2 x 10/11 a step; the best of ten -0.2 + 1.54 x |weights| = 0.63.
    assert earned[False] / 1_500 > 0.1
    assert earned[True] / 1_500 > 0.4
