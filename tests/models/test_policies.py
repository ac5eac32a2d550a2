import math
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.settings import PolicyName
from models.policies import KINDS, make, recompute
from models.policy import GAMMA_REWARDS
from models.posterior import Posterior, merge
from models.posterior_policies import Thompson, UpperBound

NAMES = sorted(KINDS)
SETTINGS = {"floor": 0.01, "popularity": 1, "draws": 64, "threshold": -1.0}


def belief(seed: int, dim: int = 6) -> Posterior:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(dim, dim))
    return Posterior(rng.normal(size=dim), root @ root.T / 10 + np.eye(dim) / 100, GAMMA_REWARDS)


def normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def test_settings_know_the_names_of_the_registry():
    assert sorted(get_args(PolicyName)) == NAMES


@pytest.mark.parametrize("name", NAMES)
@given(st.integers(0, 10**6), st.integers(0, 100), st.floats(1e-6, 1e6))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_probabilities_sum_to_one_and_keep_the_floor(
    name: str, seed: int, n_arms: int, scale: float
):
    x = np.random.default_rng(seed).normal(size=(n_arms, 6)) * scale
    values, probabilities = make(name, belief(seed), **SETTINGS).distribution(x, b"d1")
    assert values.shape == probabilities.shape == (n_arms + 1,)
    assert values[-1] == 0.0
    assert abs(probabilities.sum() - 1) <= 1e-9
    assert probabilities.min() >= min(0.01, 1 / (n_arms + 1)) * (1 - 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_logged_gives_the_probabilities_again(name: str):
    x = np.random.default_rng(5).normal(size=(20, 6))
    policy = make(name, belief(5), **SETTINGS)
    judged = policy.judge(x)
    _, probabilities = policy.distribution(x, b"d1")
    again = recompute(policy.policy_id, judged, policy.knobs, b"d1")
    assert policy.policy_id == name
    assert again.tolist() == probabilities.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_an_arm_that_sleeps_leaves_its_share_to_the_others(name: str):
    """Arms are rows: one that is not there today takes no row with it, and none is remembered."""
    x = np.random.default_rng(6).normal(size=(8, 6))
    policy = make(name, belief(6), **SETTINGS)
    values, probabilities = policy.distribution(x, b"d1")
    values_without, without = policy.distribution(x[1:], b"d1")
    assert values_without.tolist() == values[1:].tolist()
    assert without.sum() == pytest.approx(1)
    assert policy.distribution(x, b"d1")[1].tolist() == probabilities.tolist()


@pytest.mark.parametrize("name", ["softmax", "squarecb", "greedy", "epsilon_greedy"])
def test_a_better_value_has_no_smaller_probability(name: str):
    x = np.random.default_rng(7).normal(size=(30, 6))
    values, probabilities = make(name, belief(7), temperature=0.5, gamma=5.0).distribution(x)
    in_order = probabilities[np.argsort(values, kind="stable")]
    assert (np.diff(in_order) >= -1e-12).all()


def test_softmax_is_its_closed_form():
    policy = make("softmax", Posterior(np.ones(1), np.eye(1), 1), temperature=0.1, floor=0.02)
    _, probabilities = policy.distribution(np.array([[0.2], [-0.1]]))
    weights = np.exp([2.0, -1.0, 0.0])
    expected = 0.02 + (1 - 3 * 0.02) * weights / weights.sum()
    assert probabilities.tolist() == pytest.approx(expected.tolist(), abs=1e-12)


def test_softmax_of_values_beyond_any_exponential_is_finite():
    policy = make("softmax", Posterior(np.ones(1), np.eye(1), 1), temperature=1e-3, floor=0.0)
    _, probabilities = policy.distribution(np.array([[1e6], [-1e6]]))
    assert probabilities.tolist() == [1.0, 0.0, 0.0]


def test_lin_ucb_is_rivers_formula_over_the_same_posterior():
    """The pull of `river.bandit.LinUCBDisjoint`, one of its arms being one of our rows.

    River gives each arm a model of its own, so the arms learn apart from each other here too.
    """
    from river.bandit import LinUCBDisjoint

    rng = np.random.default_rng(8)
    river = LinUCBDisjoint(alpha=1.0, beta=1.0, smoothing=None, seed=1)
    n_arms, dim = 4, 3
    shards = [np.eye(dim * n_arms), np.zeros(dim * n_arms)]
    for step in range(60):
        arm, row, reward = step % n_arms, rng.normal(size=dim), float(rng.normal())
        river.update(arm, dict(enumerate(row)), reward)
        x = np.zeros(dim * n_arms)
        x[arm * dim : (arm + 1) * dim] = row
        shards[0] += np.outer(x, x)
        shards[1] += x * reward
    covariance = np.linalg.inv(shards[0])
    ours = UpperBound(Posterior(covariance @ shards[1], covariance, 60), width=0.7, floor=0.0)
    for _ in range(50):
        row = rng.normal(size=dim)
        context = dict(enumerate(row))
        x = np.zeros((n_arms, dim * n_arms))
        for arm in range(n_arms):
            x[arm, arm * dim : (arm + 1) * dim] = row
        judged = ours.judge(x)
        bounds = judged.values[:-1] + 0.7 * judged.spread
        expected = []
        for arm in range(n_arms):
            normal = river._bayes_lin_regs[arm].predict_one(context, with_dist=True)
            # River adds the reward's own noise to the deviation: beta = 1 is variance 1.
            expected.append(normal.mu + 0.7 * math.sqrt(normal.sigma**2 - 1.0))
        assert bounds.tolist() == pytest.approx(expected, abs=1e-6)


def test_an_unsure_arm_is_pulled_before_a_slightly_better_sure_one():
    posterior = Posterior(np.array([0.2, 0.1]), np.diag([1e-4, 1.0]), 1_000)
    bold, timid = (UpperBound(posterior, width=width, floor=0.0) for width in (0.5, 0.01))
    arms = np.eye(2)
    assert bold.distribution(arms)[1].tolist() == [0.0, 1.0, 0.0]
    assert timid.distribution(arms)[1].tolist() == [1.0, 0.0, 0.0]


def test_thompsons_estimate_is_unbiased_by_the_exact_probability_of_two_arms():
    """One arm against "none", which is known: P(best) = Phi(value / deviation)."""
    posterior = Posterior(np.array([0.3]), np.array([[1.0]]), 1)
    policy = Thompson(posterior, width=0.5, draws=32, floor=0.0)
    estimates = [policy.distribution(np.ones((1, 1)), b"%d" % n)[1][0] for n in range(2_000)]
    exact = normal_cdf(0.3 / 0.5)
    # Draws in mirrored pairs vary less than free ones: four of their standard errors are a bound.
    bound = 4 * math.sqrt(exact * (1 - exact) / (32 * 2_000))
    assert np.mean(estimates) == pytest.approx(exact, abs=bound)
    assert np.std(estimates) > 0


def test_thompson_draws_arms_together_not_apart():
    """Two arms that are the same but for a known difference: the worse one is never best."""
    posterior = Posterior(np.array([5.0, 0.1]), np.diag([4.0, 0.0]), 1)
    policy = Thompson(posterior, width=1.0, draws=256, floor=0.0)
    _, probabilities = policy.distribution(np.array([[1.0, 1.0], [1.0, 0.0]]), b"d1")
    assert probabilities[1] == 0.0
    # Five to 0 with deviation 2: "none" is best with Phi(-2.55) = 0.5%.
    assert probabilities[0] > 0.97


def test_thompson_of_correlated_arms_is_the_exact_probability_of_their_difference():
    """Both arms far above "none": P(first best) = Phi(difference / its deviation)."""
    mean, covariance = np.array([50.0, 49.6]), np.array([[1.0, 0.6], [0.6, 0.8]])
    policy = Thompson(Posterior(mean, covariance, 1), width=1.0, draws=64, floor=0.0)
    estimates = [policy.distribution(np.eye(2), b"%d" % n)[1][0] for n in range(1_000)]
    exact = normal_cdf(0.4 / math.sqrt(1.0 + 0.8 - 2 * 0.6))
    bound = 4 * math.sqrt(exact * (1 - exact) / (64 * 1_000))
    assert np.mean(estimates) == pytest.approx(exact, abs=bound)


def test_draws_are_the_same_in_another_process():
    code = (
        "import numpy as np; from models.posterior import Posterior;"
        "from models.posterior_policies import Thompson;"
        "policy = Thompson(Posterior(np.ones(3), np.eye(3), 1));"
        "print(policy.distribution(np.eye(3), b'decision-1')[1].tolist())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = Thompson(Posterior(np.ones(3), np.eye(3), 1)).distribution(np.eye(3), b"decision-1")[1]
    assert told.stdout.strip() == str(ours.tolist())
    other = Thompson(Posterior(np.ones(3), np.eye(3), 1)).distribution(np.eye(3), b"decision-2")[1]
    assert ours.tolist() != other.tolist()


def test_draws_are_the_same_for_ever():
    posterior = Posterior(np.full(3, 0.1), np.eye(3), 1)
    policy = Thompson(posterior, width=0.3, draws=64, floor=0.0)
    _, probabilities = policy.distribution(np.eye(3), b"decision-1")
    assert (probabilities * 64).tolist() == [18.0, 22.0, 20.0, 4.0]


def test_two_arms_of_the_same_columns_share_what_they_have():
    policy = Thompson(belief(9), draws=1_024, floor=0.0)
    x = np.repeat(np.random.default_rng(9).normal(size=(1, 6)), 2, axis=0)
    judged = policy.judge(x)
    shares = [policy.shares(judged, policy.knobs, b"%d" % n)[:2] for n in range(20)]
    first, second = np.mean(shares, axis=0)
    assert first == pytest.approx(second, abs=0.05)


def test_the_threshold_of_log_odds_is_where_none_begins_to_win():
    posterior = Posterior(np.array([-2.0]), np.eye(1) * 1e-6, 1_000)
    for threshold, best in ((-3.0, 0), (-1.0, 1)):
        policy = make("logistic_ucb", posterior, threshold=threshold, floor=0.0)
        assert policy.distribution(np.ones((1, 1)))[1].argmax() == best


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("softmax", {"temperature": 0.0}),
        ("linucb", {"width": -1.0}),
        ("thompson", {"draws": 3}),
        ("thompson", {"draws": 0}),
        ("squarecb", {"gamma": 0.0}),
        ("epsilon_greedy", {"epsilon": 2.0}),
    ],
)
def test_settings_without_sense_are_refused(name: str, bad: dict[str, float]):
    with pytest.raises(ValueError, match=r"must be|even number"):
        make(name, belief(1), **bad)


def test_what_is_no_policy_and_no_setting_is_refused():
    with pytest.raises(KeyError):
        make("oracle", belief(1))
    with pytest.raises(TypeError):
        make("greedy", belief(1), gama=1.0)


def test_the_posterior_of_rivers_learner_serves_every_linear_policy():
    from models.learner import RewardLearner

    rng = np.random.default_rng(10)
    weights = np.array([0.5, -0.3, 0.2])
    learner = RewardLearner(tuple("abc"), spec_hash="test")
    for _ in range(2_000):
        x = rng.normal(size=3)
        learner.learn(x, float(x @ weights + rng.normal() * 0.1))
    posterior = merge([learner.statistics()], prior=1.0)
    arms = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    for name in ("greedy", "epsilon_greedy", "softmax", "squarecb", "linucb", "thompson"):
        _, probabilities = make(name, posterior, floor=0.0).distribution(arms, b"d1")
        assert probabilities.argmax() == 0
        assert probabilities[0] > 0.8
