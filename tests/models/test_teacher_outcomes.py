"""The teacher's heads on planted pushes: an item of the user's own taste is opened."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from models.arms import N_ARM, N_POLICY_CONTEXT
from models.dataset import Histories, build_histories
from models.features import EVENT_CODE, TEXT_DIM
from models.push_log import PushLog
from models.teacher import Teacher, TeacherConfig
from models.teacher_checkpoint import CheckpointError
from models.teacher_outcomes import OutcomeTraining, Tuned, Tuning, tune_outcomes

ITEMS = [f"i{n:02d}" for n in range(12)]  # six of each of two tastes
SMALL = TeacherConfig(
    width=16, factors=0, hidden=16, layers=1, feed_forward=32, request=16, dropout=0.0
)


def world(n_users: int = 60) -> Histories:
    rng = np.random.default_rng(1)
    users = [f"u{user:02d}" for user in range(n_users) for _ in range(6)]
    items = [
        ITEMS[6 * (user % 2) + int(rng.integers(6))] for user in range(n_users) for _ in "123456"
    ]
    times = [10 * (n % 6) for n in range(len(users))]
    views = [EVENT_CODE["view"]] * len(users)
    return build_histories(users, items, views, times, item_ids=ITEMS)


def pushes(n: int = 900, n_users: int = 60) -> PushLog:
    """Return pushes of any item to any user: own taste is opened, the other one dismissed."""
    rng = np.random.default_rng(2)
    user, item = rng.integers(n_users, size=n), rng.integers(len(ITEMS), size=n)
    is_own = (user % 2) == (item // 6)
    outcomes = np.zeros((n, 4), np.bool_)
    outcomes[:, 0] = is_own & (rng.random(n) < 0.9)
    outcomes[:, 2] = ~is_own & (rng.random(n) < 0.8)
    return PushLog(
        decision_ids=[f"d{n}" for n in range(n)],
        user_ids=[f"u{one:02d}" for one in user],
        decided_ms=1_000_000 + np.arange(n),
        contexts=np.zeros((n, N_POLICY_CONTEXT), np.float32),
        offsets=2 * np.arange(n + 1),
        item_ids=[name for one in item for name in (ITEMS[one], "")],
        features=np.zeros((2 * n, N_ARM), np.float32),
        probabilities=np.full(2 * n, 0.5),
        chosen=2 * np.arange(n),
        propensities=np.full(n, 0.5),
        rewards=outcomes[:, 0].astype(np.float64),
        outcomes=outcomes,
    )


@pytest.mark.parametrize("by_chance", [False, True])
def test_heads_learn_what_becomes_of_a_push_and_leave_the_teacher_as_it_was(
    by_chance: bool,
) -> None:
    torch.manual_seed(0)
    teacher = Teacher(SMALL, len(ITEMS))
    before = {name: own.clone() for name, own in teacher.state_dict().items()}
    texts = np.zeros((len(ITEMS), TEXT_DIM), np.float32)
    texts[np.arange(12), np.arange(12) // 6] = 1.0  # a word for each taste
    tuned = tune_outcomes(
        teacher, world(), texts, ITEMS, pushes(), seed=1,
        config=OutcomeTraining(
            by_chance=by_chance, teacher_rate=1.0, learning_rate=5e-3, epochs=15, patience=15
        ),
    )  # fmt: skip
    found = tuned.metrics
    assert (found["pushes"], found["pushes_later"]) == (720, 180)
    # Half are of the own taste: a head that knows nothing loses .69, a perfect one about .16.
    assert found["opened_log_loss"] < 0.6 * found["opened_log_loss_of_base_rate"]
    assert found["dismissed_log_loss"] < 0.7 * found["dismissed_log_loss_of_base_rate"]
    assert all(torch.equal(own, before[name]) for name, own in teacher.state_dict().items())


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, texts = Teacher(SMALL, len(ITEMS)), np.zeros((len(ITEMS), TEXT_DIM), np.float32)
    config = OutcomeTraining(epochs=3, patience=3, by_chance=True)

    def tuned(
        checkpoint: Path | None, on_progress: Callable[[Tuning], None] | None = None, n: int = 150
    ) -> Tuned:
        return tune_outcomes(
            teacher, world(), texts, ITEMS, pushes(n), config=config, seed=1,
            checkpoint=checkpoint, on_progress=on_progress,
        )  # fmt: skip

    class Stopped(Exception):
        pass

    def stop(at: Tuning) -> None:
        if at.epoch == 2:
            raise Stopped

    whole = tuned(None)
    with pytest.raises(Stopped):
        tuned(tmp_path / "o.pt", stop)
    seen: list[int] = []
    resumed = tuned(tmp_path / "o.pt", lambda at: seen.append(at.epoch))

    assert seen == [3]
    assert resumed.metrics == whole.metrics
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    with pytest.raises(CheckpointError, match="another teacher, log"):
        tuned(tmp_path / "o.pt", n=160)


def test_rare_choices_weigh_more_but_no_more_than_ten_times_the_mean() -> None:
    texts, log = np.zeros((len(ITEMS), TEXT_DIM), np.float32), pushes(200)
    # Opened pushes had been chosen four times as often as the others.
    opened = log.outcomes[:, 0]
    log = log._replace(propensities=np.where(opened, 0.8, 0.2))
    once = OutcomeTraining(epochs=1, by_chance=True)
    run = partial(tune_outcomes, Teacher(SMALL, len(ITEMS)), world(), texts, ITEMS, config=once)
    past, later = opened[:160], opened[160:]
    rate = (past.sum() / 4 + 0.0) / (past.sum() / 4 + (~past).sum())
    weights = np.where(later, 0.25, 1.0)
    expected = -np.average(np.where(later, np.log(rate), np.log(1 - rate)), weights=weights)
    found = run(log).metrics["opened_log_loss_of_base_rate"]
    assert found == pytest.approx(expected, rel=0.02)

    one = np.where(np.arange(200) == 3, 1e-9, 0.5)
    model = run(log._replace(propensities=one)).model
    assert all(bool(torch.isfinite(own).all()) for own in model.state_dict().values())


def test_pushes_of_items_nobody_knows_are_too_few() -> None:
    texts = np.zeros((0, TEXT_DIM), np.float32)
    with pytest.raises(ValueError, match="0 pushes of known items"):
        tune_outcomes(Teacher(SMALL, 0), world(), texts, [], pushes(20))
