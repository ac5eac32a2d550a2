"""The student on planted pushes: what users take by themselves is not what a push earns with."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.arms import N_ARM, N_POLICY_CONTEXT
from models.dataset import Histories, build_histories, time_split
from models.features import EVENT_CODE, TEXT_DIM
from models.push_log import PushLog
from models.student import StudentConfig
from models.student_outcomes import PushOutcomes, _arms
from models.train import Fitted, TrainConfig, fit_student

ITEMS = [f"i{n:02d}" for n in range(12)]  # six of each of two tastes
N_USERS = 80
SMALL = TrainConfig(
    student=StudentConfig(width=16, layers=1, feed_forward=32, request=16, dropout=0.0),
    epochs=12,
    patience=12,
    batch_size=16,
    learning_rate=1e-2,
)
TEXTS = np.zeros((len(ITEMS), TEXT_DIM), np.float32)


def world() -> Histories:
    """Return users who view items of their own taste alone."""
    rng = np.random.default_rng(1)
    users = [f"u{user:02d}" for user in range(N_USERS) for _ in range(12)]
    tastes = np.repeat(np.arange(N_USERS) % 2, 12)
    items = [ITEMS[6 * taste + int(rng.integers(6))] for taste in tastes]
    times = [100 * (n % 12) + n // 12 for n in range(len(users))]
    return build_histories(users, items, [EVENT_CODE["view"]] * len(users), times, item_ids=ITEMS)


def pushes(n: int = 1_500, likes_own: float = 0.5) -> PushLog:
    """Return pushes of one of two items, one of each taste: the other taste earns, the own not.

    `likes_own` is the log's probability of the own taste.
    """
    rng = np.random.default_rng(2)
    user = rng.integers(N_USERS, size=n)
    arms = np.stack((rng.integers(6, size=n), 6 + rng.integers(6, size=n)), axis=1)  # (N, 2)
    own = user % 2  # which of the two is the own taste
    is_own = rng.random(n) < likes_own
    chosen = np.where(is_own, own, 1 - own)
    opened = ~is_own & (rng.random(n) < 0.9)
    likes = np.where(np.arange(2) == own[:, None], likes_own, 1 - likes_own)
    probabilities = np.concatenate((0.8 * likes, np.full((n, 1), 0.2)), axis=1)  # "" is the third
    outcomes = np.zeros((n, 4), np.bool_)
    outcomes[:, 0] = opened
    return PushLog(
        decision_ids=[f"d{n}" for n in range(n)],
        user_ids=[f"u{one:02d}" for one in user],
        decided_ms=np.sort(rng.integers(200_000, 1_200_000, size=n)),
        contexts=np.zeros((n, N_POLICY_CONTEXT), np.float32),
        offsets=3 * np.arange(n + 1),
        item_ids=[name for first, second in arms for name in (ITEMS[first], ITEMS[second], "")],
        features=np.zeros((3 * n, N_ARM), np.float32),
        probabilities=probabilities.ravel(),
        chosen=3 * np.arange(n) + chosen,
        propensities=probabilities[np.arange(n), chosen],
        rewards=opened.astype(np.float64),
        outcomes=outcomes,
    )


def fitted(log: PushLog, *, loudness: float) -> tuple[Fitted, dict[str, float]]:
    histories = world()
    cuts = time_split(histories, validation=SMALL.validation, test=SMALL.test)
    outcomes = PushOutcomes(log, histories, ITEMS, cuts=cuts, loudness=loudness, seed=1)
    found = fit_student(
        histories, TEXTS, config=SMALL, seed=1, outcomes=outcomes if loudness else None
    )
    return found, outcomes.metrics(found.student, torch.from_numpy(TEXTS))


@pytest.mark.parametrize("likes_own", [0.5, 0.85])
def test_what_earns_is_learned_where_the_next_item_says_another_thing(likes_own: float) -> None:
    log = pushes(likes_own=likes_own)
    told, by_told = fitted(log, loudness=9.0)
    _, by_itself = fitted(log, loudness=0.0)
    # Of the own taste a push earns nothing, of the other one .9. Nine times as loud as the next
    # item, which is of the own taste, the pushes should have nine tenths of the say.
    assert by_itself["reward_later_by_student"] < 0.3
    assert by_told["reward_later_by_student"] > 0.7
    assert (
        by_told["reward_later"]
        == by_itself["reward_later"]
        == pytest.approx(0.9 * (1 - likes_own), abs=0.06)
    )
    assert told.metrics["reward_later_by_student"] == by_told["reward_later_by_student"]
    assert 1 < by_told["pushes_effective"] < by_told["pushes_later"]
    assert by_told["pushes"] + by_told["pushes_later"] < 1_500  # the others choose the epoch


def test_a_push_counts_by_the_inverse_of_its_probability_among_the_items() -> None:
    log = pushes(200, likes_own=0.75)
    rows, chosen, weights = _arms(log, ITEMS)
    assert rows[:, 2].tolist() == [0] * 200  # "send nothing" is no item
    sent = [ITEMS[row - 1] for row in rows[np.arange(200), chosen]]
    assert sent == [log.item_ids[arm] for arm in log.chosen]
    of_items = log.propensities / 0.8  # .2 of the probability went to nothing
    assert weights == pytest.approx(1 / of_items)


def test_pushes_of_unknown_or_lone_items_do_not_count_and_rare_ones_are_cut() -> None:
    log = pushes(100)
    names = list(log.item_ids)
    names[3 * 0 + int(log.chosen[0])] = "unknown"
    names[3 + (1 - (int(log.chosen[1]) - 3))] = ""  # its only rival
    rare = log.propensities.copy()
    rare[2] = 1e-6
    _, _, weights = _arms(log._replace(item_ids=names, propensities=rare), ITEMS)
    assert weights[:2].tolist() == [0.0, 0.0]
    assert weights.max() == weights[2] < 0.8 / 1e-6
    with pytest.raises(ValueError, match="7 pushes of two known items"):
        PushOutcomes(pushes(7), world(), ITEMS, cuts=(10**9, 10**9))


def test_the_term_is_the_cross_entropy_of_what_earned_weighed_by_its_chance() -> None:
    log, histories = pushes(64), world()
    outcomes = PushOutcomes(log, histories, ITEMS, cuts=(10**9, 10**9), loudness=2.0)
    torch.manual_seed(0)
    told, _ = fitted(log, loudness=0.0)
    student = told.student.eval()
    table = student.item_table(torch.from_numpy(TEXTS))
    with torch.no_grad():
        term = float(outcomes.loss(student, table))
        logs = outcomes._log_shares(student, table, np.arange(64)).numpy()
    earned = log.rewards / log.propensities
    assert term == pytest.approx(-2.0 * (earned * logs).sum() / earned.sum(), rel=1e-4)


def test_without_pushes_training_is_what_it_was() -> None:
    plain = replace(SMALL, epochs=1)
    first = fit_student(world(), TEXTS, config=plain, seed=1)
    second = fit_student(world(), TEXTS, config=plain, seed=1, outcomes=None)
    assert first.metrics == second.metrics
    assert "reward_later" not in first.metrics
