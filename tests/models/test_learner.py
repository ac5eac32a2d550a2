import numpy as np
import pytest
from river.linear_model import BayesianLinearRegression

from models.arms import DESIGN, D
from models.learner import RewardLearner, SnapshotError
from models.posterior import (
    Statistics,
    merge,
    no_knowledge,
    pack_lower,
    pack_vector,
    unpack_lower,
    unpack_vector,
)
from tests.conftest import T0_MS


def stream(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, D)) * (rng.random((n, D)) < 0.6)  # (n, D), zeros as one-hots have
    weights = rng.normal(size=D)
    return x, x @ weights + rng.normal(size=n)


def learned(x: np.ndarray, y: np.ndarray) -> RewardLearner:
    learner = RewardLearner()
    for row, reward in zip(x, y, strict=True):
        learner.learn(row, float(reward))
    return learner


def test_the_posterior_is_ridge_regression():
    x, y = stream(200)
    posterior = merge([learned(x, y).statistics()], prior=2.5)
    precision = x.T @ x + 2.5 * np.eye(D)
    np.testing.assert_allclose(posterior.mean, np.linalg.solve(precision, x.T @ y), rtol=1e-9)
    np.testing.assert_allclose(posterior.covariance, np.linalg.inv(precision), rtol=1e-8)
    assert posterior.n == 200


def test_it_equals_river_fed_with_full_dictionaries():
    x, y = stream(100)
    river = BayesianLinearRegression()
    for row, reward in zip(x, y, strict=True):
        river.learn_one(dict(zip(DESIGN, row.tolist(), strict=True)), float(reward))
    probe = dict(zip(DESIGN, x[0].tolist(), strict=True))
    posterior = merge([learned(x, y).statistics()], prior=1.0)
    assert river.predict_one(probe) == pytest.approx(x[0] @ posterior.mean, rel=1e-9)
    variance = 1 + x[0] @ posterior.covariance @ x[0]
    assert river.predict_one(probe, with_dist=True).sigma ** 2 == pytest.approx(variance, rel=1e-9)
    ours = learned(x, y).model
    assert ours.predict_one(probe) == pytest.approx(river.predict_one(probe), rel=1e-12)


@pytest.mark.parametrize("dim", [3, 32])  # River keeps 8 rows at least
def test_its_sums_are_rivers_to_the_bit(dim: int):
    rng = np.random.default_rng(3)
    names = [f"f{j}" for j in range(dim)]
    river, ours = BayesianLinearRegression(), RewardLearner(names)
    river.learn_one(dict.fromkeys(names, 0.0), 0.0)
    for row in rng.normal(size=(50, dim)) * (rng.random((50, dim)) < 0.7):
        reward = float(rng.normal())
        river.learn_one(dict(zip(names, row.tolist(), strict=True)), reward)
        ours.learn(row, reward)
    for sums in ("_ss_arr", "_ss_inv_arr", "_eta_arr"):
        assert getattr(ours.model, sums).tolist() == getattr(river, sums).tolist()


@pytest.mark.parametrize("n_shards", [2, 4, 7])
def test_merged_shards_equal_one_learner_of_all(n_shards: int):
    x, y = stream(2_000)
    owner = np.random.default_rng(1).integers(0, n_shards, len(y))
    shards = [learned(x[owner == s], y[owner == s]).statistics() for s in range(n_shards)]
    merged, single = merge(shards, prior=1.0), merge([learned(x, y).statistics()], prior=1.0)
    np.testing.assert_allclose(merged.mean, single.mean, rtol=0, atol=1e-9)
    np.testing.assert_allclose(merged.covariance, single.covariance, rtol=0, atol=1e-9)
    assert merged.n == single.n == 2_000


def test_a_correction_is_as_if_the_reward_had_been_right_at_first():
    x, y = stream(50)
    wrong = y.copy()
    wrong[10] = -0.05
    corrected = learned(x, wrong)
    probe = dict(zip(DESIGN, x[3].tolist(), strict=True))
    corrected.model.predict_one(probe)  # River keeps the weights it predicted with
    corrected.correct(x[10], float(y[10] + 0.05))
    right = learned(x, y)
    assert corrected.precision.tobytes() == right.precision.tobytes()
    np.testing.assert_allclose(corrected.moment, right.moment, rtol=0, atol=1e-12)
    assert (corrected.n_rewards, corrected.version) == (50, 51)
    expected = right.model.predict_one(probe)
    assert corrected.model.predict_one(probe) == pytest.approx(expected, rel=1e-9)


def test_a_restored_learner_goes_on_bit_for_bit():
    x, y = stream(80)
    unbroken = learned(x, y)
    resumed = RewardLearner.restore(learned(x[:40], y[:40]).snapshot())
    for row, reward in zip(x[40:], y[40:], strict=True):
        resumed.learn(row, float(reward))
    assert resumed.snapshot() == unbroken.snapshot()
    probe = dict(zip(DESIGN, x[0].tolist(), strict=True))
    expected = unbroken.model.predict_one(probe, with_dist=True)
    assert resumed.model.predict_one(probe, with_dist=True).sigma == pytest.approx(expected.sigma)


def test_a_snapshot_of_other_columns_or_another_format_is_refused():
    state = RewardLearner(("a", "b")).snapshot()
    with pytest.raises(SnapshotError, match="spec"):
        RewardLearner.restore(state, ("a", "b", "c"))
    with pytest.raises(SnapshotError, match="spec"):
        RewardLearner.restore(state, ("a", "b"), spec_hash="0123456789abcdef")
    with pytest.raises(SnapshotError, match="format 9"):
        RewardLearner.restore(b"\x09" + state[1:], ("a", "b"))


@pytest.mark.parametrize(
    ("x", "reward"),
    [
        (np.full(D, np.nan), 1.0),
        (np.full(D, np.inf), 0.0),
        (np.zeros(D), np.nan),
        (np.zeros(D - 1), 1.0),
    ],
)
def test_what_would_spoil_the_sums_is_refused(x: np.ndarray, reward: float):
    learner = RewardLearner()
    with pytest.raises(ValueError, match="finite"):
        learner.learn(x, reward)
    with pytest.raises(ValueError, match="finite"):
        learner.correct(x, reward)
    assert not learner.precision.any() and learner.version == 0


def test_a_prior_may_differ_by_column():
    x, y = stream(100)
    prior = np.linspace(0.1, 5.0, D)
    expected = np.linalg.solve(x.T @ x + np.diag(prior), x.T @ y)
    posterior = merge([learned(x, y).statistics()], prior)
    np.testing.assert_allclose(posterior.mean, expected, rtol=1e-9)


def test_no_knowledge_is_what_an_empty_shard_merges_to():
    empty = merge([RewardLearner().statistics()], prior=4.0)
    expected = no_knowledge(4.0)
    assert empty.mean.tolist() == expected.mean.tolist()
    assert empty.covariance.tolist() == expected.covariance.tolist()
    assert empty.n == expected.n == 0


def test_statistics_travel_as_text_without_loss():
    precision, moment, *_ = learned(*stream(30)).statistics()
    assert unpack_lower(pack_lower(precision), D).tobytes() == precision.tobytes()
    assert unpack_vector(pack_vector(moment), D).tobytes() == moment.tobytes()


@pytest.mark.parametrize(
    "text",
    ["", "AAAA", "not base64!", pack_vector(np.array([np.nan, 1.0])), pack_vector(np.ones(3))],
)
def test_text_that_is_no_statistics_is_refused(text: str):
    with pytest.raises(ValueError, match=r".+"):
        unpack_vector(text, 2)


def test_merging_leaves_the_shards_as_they_were():
    shard = Statistics(np.eye(2), np.ones(2), 1)
    merge([shard], prior=3.0)
    assert shard.precision.tolist() == np.eye(2).tolist()


HALF_LIFE_MS = 3_600_000
NAMES = tuple("abcdef")


def timed_stream(n: int, half_lives: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n, len(NAMES)))
    times = T0_MS + np.sort(rng.integers(0, int(half_lives * HALF_LIFE_MS), n))
    return x, x @ rng.normal(size=len(NAMES)) + rng.normal(size=n), times


def forgetting(
    x: np.ndarray, y: np.ndarray, times: np.ndarray, half_life_ms: int = HALF_LIFE_MS
) -> RewardLearner:
    learner = RewardLearner(NAMES, half_life_ms=half_life_ms)
    for row, reward, time_ms in zip(x, y, times, strict=True):
        learner.learn(row, float(reward), int(time_ms))
    return learner


def weighed_ridge(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    precision = (x.T * weights) @ x + np.eye(len(NAMES))
    return np.linalg.solve(precision, x.T @ (weights * y))


@pytest.mark.parametrize("half_lives", [3, 60, 5_000])  # the reference moves never, often, always
def test_a_reward_counts_half_as_much_after_each_half_life(half_lives: float):
    x, y, times = timed_stream(300, half_lives)
    weights = 2.0 ** ((times - times[-1]) / HALF_LIFE_MS)
    posterior = merge([forgetting(x, y, times).statistics()], prior=1.0)
    np.testing.assert_allclose(posterior.mean, weighed_ridge(x, y, weights), rtol=0, atol=1e-9)
    assert posterior.n == round(weights.sum())


def test_the_order_of_arrival_changes_no_weight():
    x, y, times = timed_stream(300, 40)
    order = np.random.default_rng(1).permutation(300)
    sorted_, mixed = forgetting(x, y, times), forgetting(x[order], y[order], times[order])
    np.testing.assert_allclose(mixed.precision, sorted_.precision, rtol=0, atol=1e-9)
    np.testing.assert_allclose(mixed.moment, sorted_.moment, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n_shards", [2, 4, 7])
def test_merged_shards_that_forget_equal_one_learner_of_all(n_shards: int):
    x, y, times = timed_stream(2_000, 50)
    owner = np.random.default_rng(1).integers(0, n_shards, len(y))
    owner[times > times[-1] - 20 * HALF_LIFE_MS] = 0  # the others have long been without a reward
    parts = [owner == s for s in range(n_shards)]
    shards = [forgetting(x[part], y[part], times[part]).statistics() for part in parts]
    merged = merge(shards, prior=1.0)
    single = merge([forgetting(x, y, times).statistics()], prior=1.0)
    assert len({shard.newest_ms for shard in shards}) == n_shards
    np.testing.assert_allclose(merged.mean, single.mean, rtol=0, atol=1e-9)
    np.testing.assert_allclose(merged.covariance, single.covariance, rtol=0, atol=1e-9)
    assert merged.n == single.n < 200


def test_a_late_correction_weighs_as_the_reward_did():
    x, y, times = timed_stream(200, 30)
    wrong = y.copy()
    wrong[10] -= 2.0
    corrected = forgetting(x, wrong, times)
    corrected.correct(x[10], 2.0, int(times[10]))
    np.testing.assert_allclose(corrected.moment, forgetting(x, y, times).moment, rtol=0, atol=1e-12)


def test_without_a_half_life_times_change_no_bit():
    x, y = stream(50)
    plain, timed = learned(x, y), RewardLearner()
    for n, (row, reward) in enumerate(zip(x, y, strict=True)):
        timed.learn(row, float(reward), T0_MS + n)
    assert timed.snapshot() == plain.snapshot()
    assert plain.snapshot()[0] == 1  # as releases without forgetting wrote and read it
    assert plain.statistics()[3:] == (0.0, 0, 0)


@pytest.mark.parametrize("cut", [1, 150])
def test_a_restored_learner_that_forgets_goes_on_bit_for_bit(cut: int):
    x, y, times = timed_stream(300, 30)
    first = forgetting(x[:cut], y[:cut], times[:cut])
    resumed = RewardLearner.restore(first.snapshot(), NAMES, half_life_ms=HALF_LIFE_MS)
    for row, reward, time_ms in zip(x[cut:], y[cut:], times[cut:], strict=True):
        resumed.learn(row, float(reward), int(time_ms))
    assert resumed.snapshot() == forgetting(x, y, times).snapshot()


def test_what_an_older_release_learned_counts_as_of_the_first_reward_that_is_timed():
    x, y, times = timed_stream(100, 5)
    old = forgetting(x[:50], y[:50], times[:50], half_life_ms=0)
    learner = RewardLearner.restore(old.snapshot(), NAMES, half_life_ms=HALF_LIFE_MS)
    for row, reward, time_ms in zip(x[50:], y[50:], times[50:], strict=True):
        learner.learn(row, float(reward), int(time_ms))
    taken = np.maximum(times, times[50])
    expected = weighed_ridge(x, y, 2.0 ** ((taken - times[-1]) / HALF_LIFE_MS))
    posterior = merge([learner.statistics()], prior=1.0)
    np.testing.assert_allclose(posterior.mean, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("half_life_ms", [0, 10 * HALF_LIFE_MS])
def test_another_half_life_holds_from_the_newest_reward_on(half_life_ms: int):
    x, y, times = timed_stream(100, 5)
    before = forgetting(x, y, times)
    after = RewardLearner.restore(before.snapshot(), NAMES, half_life_ms=half_life_ms)
    np.testing.assert_allclose(after.precision, before.precision, rtol=1e-12)
    row, later_ms = np.ones(len(NAMES)), int(times[-1]) + 10 * HALF_LIFE_MS
    after.learn(row, 1.0, later_ms)
    share = 0.5 if half_life_ms else 1.0
    expected = before.precision * share + np.outer(row, row)
    np.testing.assert_allclose(after.precision, expected, rtol=1e-9)


def test_a_discount_is_as_if_rewards_had_come_half_lives_earlier():
    x, y, times = timed_stream(100, 5)
    learner = forgetting(x[:60], y[:60], times[:60])
    learner.discount(0.25)
    resumed = RewardLearner.restore(learner.snapshot(), NAMES, half_life_ms=HALF_LIFE_MS)
    for row, reward, time_ms in zip(x[60:], y[60:], times[60:], strict=True):
        resumed.learn(row, float(reward), int(time_ms))
    earlier = times - np.where(np.arange(100) < 60, 2 * HALF_LIFE_MS, 0)
    expected = merge([forgetting(x, y, earlier).statistics()], prior=1.0)
    posterior = merge([resumed.statistics()], prior=1.0)
    np.testing.assert_allclose(posterior.mean, expected.mean, rtol=0, atol=1e-9)
    assert posterior.n == expected.n


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_a_discount_that_is_none_is_refused(share: float):
    with pytest.raises(ValueError, match="share"):
        RewardLearner(NAMES).discount(share)
