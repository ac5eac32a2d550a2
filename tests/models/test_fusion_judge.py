"""Judging a fusion: later events, cold items apart, and a gain that is more than chance."""

import numpy as np
import pytest

from models.dataset import Histories, build_histories
from models.features import EVENT_CODE, TEXT_DIM
from models.fusion import Fusion, ModeVectors, ModeWeights
from models.fusion_judge import Gain, Gains, Judge, between, new_targets, split_targets

VIEW = EVENT_CODE["view"]
N_KINDS, PER_KIND, N_COLD = 8, 12, 4
KIND_OF = np.repeat(np.arange(N_KINDS), PER_KIND)
IS_COLD = np.tile(np.arange(PER_KIND) >= PER_KIND - N_COLD, N_KINDS)
ITEMS = [f"i{n:02d}" for n in range(N_KINDS * PER_KIND)]
LATER_S = 1_000_000


def histories() -> Histories:
    """Return users who view items of one kind each, warm ones early, warm and cold ones later."""
    users, items, times = [], [], []
    rng = np.random.default_rng(3)
    for user in range(80):
        own = KIND_OF == user % N_KINDS
        warm = rng.permutation(np.flatnonzero(own & ~IS_COLD))
        cold = rng.permutation(np.flatnonzero(own & IS_COLD))
        for n, item in enumerate([*warm[:5], *warm[5:], *cold]):
            users.append(f"u{user:02d}")
            items.append(ITEMS[item])
            times.append(n * 60 + user + LATER_S * (n >= 5))
    return build_histories(users, items, [VIEW] * len(users), times, item_ids=ITEMS)


def vectors() -> ModeVectors:
    """Return texts whose first columns are the kind, under noise in all of them."""
    rows = 3.0 * np.random.default_rng(4).normal(size=(len(ITEMS), TEXT_DIM))
    rows /= np.sqrt(TEXT_DIM)
    rows[np.arange(len(ITEMS)), KIND_OF] += 1.0
    return ModeVectors(rows.astype(np.float32))


def weighted(columns: slice, weight: float) -> Fusion:
    """Return a fusion that weighs some columns of the text otherwise."""
    start = Fusion.untrained(TEXT_DIM)
    projection = start.modes[0].projection.copy()
    projection[columns] *= weight
    modes = (ModeWeights(start.modes[0].mean, projection), *start.modes[1:])
    return Fusion(modes, start.gate)


@pytest.fixture
def judge() -> Judge:
    return Judge(Fusion.untrained(TEXT_DIM), vectors(), histories(), LATER_S, None, limit=500)


def test_a_fusion_that_forgets_what_cold_items_are_is_not_chosen(judge: Judge) -> None:
    loses = weighted(slice(0, N_KINDS), 0.02)
    choice = judge.choose(loses)
    assert choice.share == 0.0 and choice.fusion.id == Fusion.untrained(TEXT_DIM).id
    assert choice.gains.cold.mean < 0


def test_a_fusion_that_finds_cold_items_is_chosen(judge: Judge) -> None:
    choice = judge.choose(weighted(slice(N_KINDS, None), 0.1))
    assert choice.share > 0 and choice.gains.is_kept
    assert choice.gains.cold.mean > choice.gains.cold.error > 0
    assert choice.gains.cold.n_requests == 80 * N_COLD


def test_the_start_gains_nothing_on_itself(judge: Judge) -> None:
    choice = judge.choose(Fusion.untrained(TEXT_DIM))
    assert choice.share == 0.0
    assert choice.gains.warm == Gain(0.0, 0.0, 80 * (PER_KIND - N_COLD - 5))


@pytest.mark.parametrize(
    ("warm", "cold", "is_kept"),
    [
        (Gain(0.02, 0.01, 900), Gain(0.02, 0.01, 900), True),
        (Gain(0.01, 0.01, 900), Gain(0.01, 0.01, 900), False),  # within two errors of nothing
        (Gain(-0.005, 0.01, 900), Gain(0.04, 0.01, 900), True),
        (Gain(-0.02, 0.01, 900), Gain(0.09, 0.01, 900), False),  # warm items lose
        (Gain(0.09, 0.01, 900), Gain(-0.01, 0.02, 900), False),  # cold items lose
        (Gain(0.09, 0.01, 900), Gain(-0.09, 0.02, 9), True),  # so few say nothing
        (Gain(0.01, 0.02, 900), Gain(0.09, 0.02, 9), False),
        (Gain(0.0, 0.0, 0), Gain(0.0, 0.0, 0), False),
    ],
)
def test_a_gain_must_be_more_than_chance(warm: Gain, cold: Gain, is_kept: bool) -> None:
    assert Gains(warm, cold).is_kept == is_kept


def test_the_error_is_that_of_users_not_of_their_requests(judge: Judge) -> None:
    gain = judge.gains(weighted(slice(0, N_KINDS), 0.02)).cold
    assert gain.n_requests == 320  # of 80 users
    events = judge.cold
    users = np.searchsorted(histories().offsets, events, side="right")
    before = judge._ndcg(Fusion.untrained(TEXT_DIM), events)
    difference = judge._ndcg(weighted(slice(0, N_KINDS), 0.02), events) - before
    sums = [float((difference[users == user] - gain.mean).sum()) for user in set(users.tolist())]
    assert gain.error == pytest.approx(np.sqrt(np.square(sums).sum()) / 320)


def test_halfway_lies_in_the_middle() -> None:
    start, end = Fusion.untrained(TEXT_DIM), weighted(slice(0, 8), 0.0)
    middle = between(start, end, 0.5)
    assert middle.modes[0].projection[0, 0] == 0.5 * start.modes[0].projection[0, 0]
    assert middle.modes[0].projection[9, 9] == start.modes[0].projection[9, 9]


def test_targets_are_new_to_a_user_who_has_a_history() -> None:
    histories = build_histories(
        ["a"] * 4 + ["b"],
        ["i0", "i1", "i0", "i2", "i2"],
        [EVENT_CODE["view"]] * 5,
        [1, 2, 3, 4, 5],
        item_ids=["i0", "i1", "i2"],
    )
    assert new_targets(histories, 0, None).tolist() == [1, 3]
    assert new_targets(histories, 2, 4).tolist() == [1]


def test_cold_items_are_those_that_nobody_wanted_before() -> None:
    histories = build_histories(
        ["a", "a", "a", "b", "b", "b"],
        ["i0", "i1", "i2", "i0", "i1", "i2"],
        [VIEW, VIEW, VIEW, VIEW, EVENT_CODE["refund"], VIEW],
        [1, 11, 12, 2, 3, 13],
        item_ids=["i0", "i1", "i2"],
    )
    warm, cold = split_targets(histories, 10, None, cold_s=10)
    assert (warm.tolist(), cold.tolist()) == ([], [1, 2, 5])
    warm, cold = split_targets(histories, 10, None, cold_s=12)
    assert (warm.tolist(), cold.tolist()) == ([1], [2, 5])
