"""Worlds of known truth, and what regret means in them."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from bench import regret
from bench import regret_tuning as tuning
from bench.regret_worlds import WORLDS, K, Moment, World, logistic, recovering, sparse

EACH_WORLD = pytest.mark.parametrize("name", list(WORLDS))
OURS = {
    "policy": "logistic_ucb",
    "width": 1.0,
    "floor": 0.0,
    "prior": 1.0,
    "half_life": 10_000,
    "drift_keeps": 100,
}


def regret_of(world: World, choose: Callable[[int], int]) -> float:
    """Return the regret of one who chooses by the step."""
    lost = 0.0
    for step, best in enumerate(world.best_means().tolist()):
        arm = choose(step)
        lost += best - float(world.means(step)[arm])
        world.play(step, arm)
    return lost


def truth_of(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the weights that make the values of the rows, which must be exact."""
    weights, rest, rank, _ = np.linalg.lstsq(rows, values, rcond=None)
    assert rank == rows.shape[1] and rest.max() < 1e-12
    return weights


def rows_and_means(world: World, steps: range) -> tuple[np.ndarray, np.ndarray]:
    rows = np.concatenate([world.moment(step).rows() for step in steps])
    return rows, np.concatenate([world.means(step) for step in steps])


@EACH_WORLD
def test_a_seed_gives_the_same_world_twice_and_another_seed_another_one(name: str) -> None:
    one, two, other = WORLDS[name](5, 60), WORLDS[name](5, 60), WORLDS[name](6, 60)
    for step in range(60):
        assert one.moment(step).rows().tolist() == two.moment(step).rows().tolist()
        assert one.means(step).tolist() == two.means(step).tolist()
        assert one.play(step, step % K) == two.play(step, step % K)
    assert one.means(59).tolist() != other.means(59).tolist()


@EACH_WORLD
def test_who_knows_the_means_has_no_regret(name: str) -> None:
    world = WORLDS[name](1, 300)
    assert regret_of(world, lambda step: int(world.means(step).argmax())) == 0.0


@pytest.mark.parametrize("name", ["logistic", "sparse"])
def test_the_regret_of_any_arm_alike_is_the_mean_gap(name: str) -> None:
    world, n_steps = WORLDS[name](1, 4_000), 4_000
    gaps = np.array([world.means(step).max() - world.means(step) for step in range(n_steps)])
    arms = np.random.default_rng(0).integers(K, size=n_steps)
    deviation = math.sqrt(gaps.var(axis=1).sum())
    found = regret_of(world, lambda step: int(arms[step]))
    assert found == pytest.approx(gaps.mean(axis=1).sum(), abs=4 * deviation)


def test_the_truth_turns_by_a_right_angle_half_way() -> None:
    world = logistic(3, 100)
    weights = []
    for steps in (range(50), range(50, 100)):
        rows, means = rows_and_means(world, steps)
        weights.append(truth_of(rows, np.log(means / (1 - means))))
    before, after = weights
    assert before[0] == pytest.approx(after[0]) == pytest.approx(-1.0)
    assert before[4:] @ after[4:] == pytest.approx(0.0, abs=1e-9)
    assert np.linalg.norm(before[4:]) == pytest.approx(np.linalg.norm(after[4:]))


def test_five_weights_of_the_sparse_world_tell_arms_apart() -> None:
    rows, means = rows_and_means(sparse(3, 100), range(100))
    weights = truth_of(rows, means)
    assert rows.shape[1] == 40
    assert (np.abs(weights[8:]) > 1e-9).sum() == 5
    assert np.abs(weights[1:8]).max() < 1e-9


def test_an_arm_appeals_less_once_chosen_and_recovers() -> None:
    world = recovering(2, 400)
    rested = [float(world.means(step)[7]) for step in range(400)]
    world.play(0, 7)
    now = [float(world.means(step)[7]) for step in range(400)]
    logit = (
        np.log(now) - np.log1p(np.negative(now)) - np.log(rested) + np.log1p(np.negative(rested))
    )
    assert (np.diff(logit[:100]) > 0).all()
    assert logit[0] < -2 and logit[-1] == pytest.approx(0.0, abs=1e-3)
    assert world.moment(8).recency[7].tolist() == [0.3679, 0.7788]
    assert world.moment(8).recency[6].tolist() == [0.0, 0.0]


def test_the_same_reward_comes_to_the_same_choice() -> None:
    moment = Moment(np.array([2.0, 3.0]), np.array([[5.0]]))
    assert moment.rows().tolist() == [[1.0, 2.0, 3.0, 5.0, 10.0, 15.0]]
    run = regret.Run("ours", "ours", OURS, "recovering", 3, 300)
    assert regret.play(run).curve.tolist() == regret.play(run).curve.tolist()


def test_ours_learns_the_first_world() -> None:
    ran = regret.play(regret.Run("ours", "ours", OURS, "logistic", 3, 1_000))
    by_chance = regret.play(regret.Run("uniform", "uniform", {}, "logistic", 3, 1_000))
    assert ran.curve[99] < by_chance.curve[99] / 4  # before the truth turns


def test_settings_are_drawn_from_the_grid_none_twice() -> None:
    for name, grid in tuning.GRIDS.items():
        drawn = list(tuning.drawn(name, tuning.BUDGET))
        assert len({str(settings) for settings in drawn}) == tuning.BUDGET
        assert all(settings in grid for settings in drawn)


def test_ours_is_one_setting_of_all_worlds_and_others_are_of_each() -> None:
    one, two = {"x": 1}, {"x": 2}
    tried = {
        "logistic": [(one, 10.0), (two, 30.0)],
        "sparse": [(one, 10.0), (two, 9.0)],
        "recovering": [(one, 10.0), (two, 9.0)],
    }
    kept = tuning.kept({"ours": tried, "VW regcb": tried})
    assert kept["ours"] == dict.fromkeys(WORLDS, one)
    assert kept["VW regcb"] == {"logistic": one, "sparse": two, "recovering": two}


def test_everyone_who_competes_has_settings_in_every_world() -> None:
    everyone = list(regret.contestants())
    assert all(set(who.settings) == set(WORLDS) for who in everyone)
    assert {who.family for who in everyone} == set(regret.FAMILIES)


def test_an_interval_is_students() -> None:
    assert regret.mean_and_half_width([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.4841), abs=1e-3)
    assert regret.mean_and_half_width([1.0]) == (1.0, math.inf)
