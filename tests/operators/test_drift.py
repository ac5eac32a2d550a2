"""A world that turns: the learner forgets, and a quiet one leaves it what it knows."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from river.drift import PageHinkley

from models.arms import D
from models.drift import DELTA, MAX_DEVIATIONS, SETTLING, THRESHOLD, DriftWatches, Watch
from models.policy import sample
from operators.hops import Reward
from operators.learning import MAX_ALARMS, LearnerShard
from operators.messages import DriftAlarm
from operators.policy_table import PolicyTable
from tests.conftest import T0_MS

ARMS, COLUMNS, SHARDS = 8, 12, 2


class Turning(NamedTuple):
    """What became of a run: by decision, how far the chosen arm's rate lay below the best one's."""

    regret: np.ndarray
    alarms: list[DriftAlarm]
    shards: list[LearnerShard]


def run(
    n_before: int, n_after: int, *, drift_keeps: int, restarts: bool = False, seed: int = 5
) -> Turning:
    """Decide, earn, learn; after `n_before` decisions other weights make what is opened."""
    rng = np.random.default_rng(seed)
    worlds = rng.normal(size=(2, COLUMNS)) / 2
    shards = [LearnerShard(drift_keeps=drift_keeps) for _ in range(SHARDS)]
    table = PolicyTable(policy="squarecb", gamma=50.0, floor=0.002, prior_precision=1.0)
    regret = np.empty(n_before + n_after)
    for n in range(n_before + n_after):
        if n % 50 == 0:
            for shard in shards if n else []:
                table.apply(shard.row().shard, shard.row())
            table.refresh()
        if restarts and n % 500 == 0:
            shards = [LearnerShard(one.snapshot(), drift_keeps=drift_keeps) for one in shards]
        x = np.zeros((ARMS, D))
        x[:, :COLUMNS] = rng.normal(size=(ARMS, COLUMNS))
        rates = 1 / (1 + np.exp(1.0 - x[:, :COLUMNS] @ worlds[int(n >= n_before)]))
        shares = table.policy("policy").distribution(x)[1][:-1]
        chosen = sample(shares / shares.sum(), b"%d" % n)
        reward = 1.0 if rng.random() < rates[chosen] else -0.05
        regret[n] = rates.max() - rates[chosen]
        mine = n % SHARDS
        at_ms = T0_MS + n * 1_000
        one = Reward(f"p{mine}", f"d{n}", x[chosen], reward, False, at_ms, at_ms, "c1", "idle")
        shards[mine].on_batch([one])
    alarms = [alarm for shard in shards for alarm in shard.row().alarms]
    return Turning(regret, alarms, shards)


@pytest.fixture(scope="module")
def turned() -> Turning:
    return run(3_000, 2_000, drift_keeps=100)


def errors(alarms: list[DriftAlarm]) -> set[str]:
    return {alarm.segment for alarm in alarms if alarm.kind == "error"}


def test_a_turn_of_the_world_is_told_of_in_each_segment_and_nothing_was_before(
    turned: Turning,
) -> None:
    assert errors(turned.alarms) == {"campaign:c1", "trigger:idle"}
    after = [(alarm.time_ms - T0_MS) // 1_000 - 3_000 for alarm in turned.alarms]
    assert min(after) > 0
    assert min(after) < 500  # decisions, of which each shard saw half
    assert all(a.after < a.before for a in turned.alarms if a.kind == "error")


def test_the_policy_has_recovered_after_1500_decisions_because_it_forgets(turned: Turning) -> None:
    kept = run(3_000, 2_000, drift_keeps=0)
    assert errors(kept.alarms)  # it is told of all the same
    at_once, later = turned.regret[3_000:3_200].mean(), turned.regret[4_500:].mean()
    assert later < at_once / 2
    assert later < kept.regret[4_500:].mean() / 2


def test_restarts_change_neither_alarms_nor_what_is_learned(turned: Turning) -> None:
    restarted = run(3_000, 2_000, drift_keeps=100, restarts=True)
    assert restarted.alarms == turned.alarms
    assert [one.row().moment for one in restarted.shards] == [
        one.row().moment for one in turned.shards
    ]


def test_a_row_tells_of_the_newest_alarms_alone() -> None:
    shard = LearnerShard()
    for n in range(12_000):
        reward = float(n // 600 % 2) + n % 2
        shard.on_batch([Reward("p0", "d", np.zeros(D), reward, False, n, n, "c1", "idle")])
    times = [alarm.time_ms for alarm in shard.row().alarms]
    assert len(times) == MAX_ALARMS
    assert times == sorted(times) and times[-1] > 11_000


def test_corrections_and_pushes_of_before_are_not_watched() -> None:
    shard = LearnerShard()
    before = shard.snapshot()[3]
    x = np.ones(D)
    shard.on_batch([Reward("p0", "d1", x, 1.0, False, T0_MS, T0_MS)])
    shard.on_batch([Reward("p0", "d1", x, 1.0, True, T0_MS, T0_MS, "c1", "idle")])
    assert shard.snapshot()[3] == before


def test_a_shard_of_a_release_that_did_not_watch_goes_on() -> None:
    shard = LearnerShard()
    shard.on_batch([Reward("p0", "d1", np.ones(D), 1.0, False, T0_MS, T0_MS, "c1", "idle")])
    again = LearnerShard(shard.snapshot()[:3])
    assert again.row() == shard.row()


def test_the_segment_seen_longest_ago_makes_room() -> None:
    watches = DriftWatches()
    for n in range(100):
        watches.update(f"campaign:{n}", 1.0, error=0.0, time_ms=n)
        watches.update("campaign:busy", 1.0, error=0.0, time_ms=n)
    assert len(watches._watches) == 64
    assert {"campaign:busy", "campaign:99", "campaign:37"} <= watches._watches.keys()
    assert "campaign:36" not in watches._watches


@pytest.mark.parametrize("rate", [0.03, 0.3])
def test_a_long_quiet_run_gives_no_alarm(rate: float) -> None:
    rewards = np.random.default_rng(2).random(60_000) < rate
    watch = Watch()
    assert not any(watch.update(reward) for reward in rewards.tolist())


def test_a_watch_goes_on_bit_for_bit() -> None:
    values = np.random.default_rng(4).normal(size=900).tolist()
    unbroken, resumed = Watch(), Watch()
    for value in values:
        unbroken.update(value)
        resumed.update(value)
        resumed = Watch(resumed.state())
    assert resumed.state() == unbroken.state()


@pytest.mark.parametrize("moved", [0.6, -0.6])
def test_a_watch_does_what_rivers_page_hinkley_does_to_the_bit(moved: float) -> None:
    values = np.random.default_rng(6).normal(size=3_000)
    values[2_000:] += moved
    river = PageHinkley(min_instances=1, delta=DELTA, threshold=THRESHOLD, alpha=1.0)
    watch = Watch()
    for n, value in enumerate(values.tolist(), start=1):
        before, is_alarm = watch.mean, watch.update(value)
        if n > SETTLING:
            deviation = math.sqrt(watch.state()[2] / n)
            scaled = (value - before) / deviation
            river.update(min(max(scaled, -MAX_DEVIATIONS), MAX_DEVIATIONS))
            sums = (river._sum_increase, river._sum_decrease)
            extremes = (river._min_increase, river._max_decrease)
            assert watch.state()[4:] == (river._x_mean.n, river._x_mean.get(), *sums, *extremes)
            assert is_alarm == river.drift_detected
        if is_alarm:
            break
    assert 2_000 < n < 2_500
