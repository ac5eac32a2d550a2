"""The world of weeks: pushes tire, rests recover, caps hold, and a learned value spares users."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flows.long_run import Earns, Played, World, play
from models.learner import RewardLearner
from models.policy import SquareCB, Uniform
from models.posterior import Posterior
from models.value import ValueFunction
from models.value_data import steps
from models.value_training import ValueTraining, train_value

HOUR_MS = 3_600_000


def explores(posterior: Posterior) -> SquareCB:
    return SquareCB(posterior, gamma=10.0, growth=0.0, floor=0.02)


def serves(posterior: Posterior) -> SquareCB:
    return SquareCB(posterior, gamma=2_000.0)


@pytest.fixture(scope="module")
def log() -> Played:
    return play(explores, n_users=150, days=30, seed=1)


def test_the_same_seed_lives_through_the_same(log: Played) -> None:
    again = play(explores, n_users=150, days=30, seed=1)

    assert again.decided.states.tobytes() == log.decided.states.tobytes()
    assert again.opens.tolist() == log.opens.tolist()


def test_two_policies_meet_the_same_users_with_the_same_luck() -> None:
    never = play(lambda _: Uniform(), n_users=100, days=3, seed=2, bar=0.0)
    other = play(explores, n_users=100, days=3, seed=2)

    # Who has left comes less: of the others' own sessions none differs.
    stayed = ~(never.has_left | other.has_left)
    assert (never.sessions - never.opens)[stayed].tolist() == (
        (other.sessions - other.opens)[stayed].tolist()
    )


def test_a_push_tires_and_a_rest_recovers() -> None:
    world = World(n_users=4_000, seed=3)
    everybody = np.arange(4_000)
    match = np.zeros(4_000)

    def opened_share() -> float:
        world.hour()
        earned: NDArray[np.float64] = world.push(everybody, match, Earns())
        return float((earned == 1.0).mean())

    rested = opened_share()
    for _ in range(5):
        opened_share()
    tired = opened_share()
    for _ in range(24 * 21):
        world.hour()
    assert tired < 0.4 * rested
    assert opened_share() == pytest.approx(rested, abs=0.08)  # another hour of the day


def test_caps_hold_and_who_left_is_left_alone(log: Played) -> None:
    decided = log.decided
    for user in range(150):
        own = (decided.users == user) & decided.sent
        at = np.sort(decided.times_ms[own])
        assert (np.diff(at) >= 2 * HOUR_MS).all()
        assert (at[3:] - at[:-3] >= 24 * HOUR_MS).all()
        assert (at[10:] - at[:-10] >= 168 * HOUR_MS).all()
        of_user = decided.earned[decided.users == user]
        assert (of_user[:-1] > -5.0).all()  # an opt-out is the last decision of all
        assert log.has_left[user] == (len(of_user) > 0 and of_user[-1] == -5.0)


def test_what_is_learned_from_the_log_spares_users_and_costs_no_sessions(
    log: Played, tmp_path: Path
) -> None:
    found = steps(log.decided, log.session_users, log.session_ms, log.end_ms)
    path = tmp_path / "value.pfv"
    train_value(found, path, config=ValueTraining(epochs=6, warm_up=6), seed=1)
    value = ValueFunction.load(path)
    state = log.learner.snapshot()
    myopic, aware = (
        play(serves, n_users=150, days=30, seed=5, value=own, learner=RewardLearner.restore(state))
        for own in (None, value)
    )

    assert aware.pushes.mean() < 0.95 * myopic.pushes.mean()
    assert aware.has_left.mean() < myopic.has_left.mean()
    assert aware.sessions.mean() > 0.98 * myopic.sessions.mean()
