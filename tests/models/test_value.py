"""The value of send and hold where the truth is known: a process of four states."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.archive import read_archive, write_archive
from models.arms import N_POLICY_CONTEXT
from models.value import HOLD, SEND, Layers, ValueFileError, ValueFunction, write_value
from models.value_data import Decided, Steps, Worth, steps
from models.value_evaluation import Estimate, evaluate
from models.value_training import (
    At,
    CheckpointError,
    Trained,
    ValueNet,
    ValueTraining,
    q_of,
    train_value,
)

DAY_MS = 86_400_000
N_STATES, DISCOUNT = 4, 0.8
STATES = np.eye(N_STATES, N_POLICY_CONTEXT, dtype=np.float32)
# P(next state | state, action): a push tires (to a higher state), a hold lets rest.
MOVES = np.array(
    [
        [[0.9, 0.1, 0.0, 0.0], [0.1, 0.8, 0.1, 0.0]],
        [[0.7, 0.3, 0.0, 0.0], [0.0, 0.2, 0.8, 0.0]],
        [[0.1, 0.6, 0.3, 0.0], [0.0, 0.0, 0.2, 0.8]],
        [[0.0, 0.1, 0.7, 0.2], [0.0, 0.0, 0.0, 1.0]],
    ]
)  # (S, A, S)
EARNS = np.array([[0.1, 1.0], [0.1, 0.6], [0.1, 0.3], [0.1, 0.2]])  # (S, A)
PLAIN = ValueTraining(
    hidden=(32,), conservatism=0.0, epochs=5, warm_up=5, batch_size=256, learning_rate=5e-3
)


def true_q(sends: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Return Q of a policy that sends so often in each state; of the best one without."""
    q = np.zeros_like(EARNS)
    for _ in range(200):
        worth = q.max(axis=1) if sends is None else (1 - sends) * q[:, HOLD] + sends * q[:, SEND]
        q = EARNS + DISCOUNT * MOVES @ worth
    return q


def walked(
    seed: int, sends: NDArray[np.float64], n_users: int = 300, n_steps: int = 40
) -> tuple[Steps, NDArray[np.int64]]:
    """Return the log of a policy, noise on its rewards, and each step's state."""
    rng = np.random.default_rng(seed)
    at = np.zeros((n_steps, n_users), np.int64)
    acts = np.zeros((n_steps, n_users), np.int64)
    now = rng.integers(0, N_STATES, n_users)
    for step in range(n_steps):
        at[step], acts[step] = now, rng.random(n_users) < sends[now]
        now = (MOVES[now, acts[step]].cumsum(axis=1) < rng.random((n_users, 1))).sum(axis=1)
    states, actions = at.T.ravel(), acts.T.ravel()
    rows = np.arange(len(states))
    is_last = rows % n_steps == n_steps - 1
    return (
        Steps(
            users=rows // n_steps,
            states=STATES[states],
            actions=actions,
            probabilities=sends[states],
            earned=EARNS[states, SEND] * actions,
            rewards=EARNS[states, actions] + 0.2 * rng.standard_normal(len(states)),
            discounts=np.where(is_last, 0.0, DISCOUNT),
            nexts=np.where(is_last, rows, rows + 1),
            is_known=~is_last,
            order=rows,
        ),
        states,
    )


EVEN = np.full(N_STATES, 0.5)
LOG, LOG_STATES = walked(1, EVEN)


def trained(
    path: Path, log: Steps = LOG, config: ValueTraining = PLAIN, checkpoint: Path | None = None
) -> Trained:
    return train_value(log, path, config=config, seed=3, checkpoint=checkpoint)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "v.pfv"
    trained(path)
    return path


def test_plain_double_q_finds_the_best_policys_value(plain: Path) -> None:
    value = ValueFunction.load(plain)

    # Sixteen numbers of 12,000 noisy steps: about 0.02 each, and what a step adds to the next.
    assert np.abs(value.q(STATES) - true_q()).max() < 0.12
    assert (
        (value.q(STATES)[:, SEND] > value.q(STATES)[:, HOLD]) == [True, False, False, False]
    ).all()


def test_none_costs_what_follows_a_hold_less_what_follows_a_push(plain: Path) -> None:
    following = true_q() - np.column_stack([np.zeros(N_STATES), EARNS[:, SEND]])
    price = following[:, HOLD] - following[:, SEND]

    assert ValueFunction.load(plain).none_values(STATES) == pytest.approx(price, abs=0.12)


def test_the_conservative_term_lowers_what_the_log_hardly_did(plain: Path, tmp_path: Path) -> None:
    rarely = np.array([0.5, 0.5, 0.5, 0.03])
    log, _ = walked(2, rarely)
    gaps = []
    for conservatism in (0.0, 0.05):
        path = tmp_path / f"{conservatism}.pfv"
        trained(path, log, replace(PLAIN, conservatism=conservatism))
        q = ValueFunction.load(path).q(STATES)
        gaps.append(q[:, SEND] - q[:, HOLD])

    # By 0.05 (p / 0.03 - p / 0.97) with p of about 0.4 at the fixed point: more than 0.3.
    assert gaps[1][3] < gaps[0][3] - 0.3
    assert np.abs(gaps[1][:3] - gaps[0][:3]).max() < 0.2


def test_numpy_says_what_torch_says(plain: Path) -> None:
    value = ValueFunction.load(plain)
    _, meta, members = read_archive(plain)
    torch.manual_seed(1)
    net = ValueNet(N_POLICY_CONTEXT, (64, 32))
    states = np.random.default_rng(1).normal(size=(200, N_POLICY_CONTEXT)).round(4)
    with torch.no_grad():
        outputs = net.double()(torch.from_numpy(states))

    assert meta["layers"] == 2
    assert len(members) == 4
    assert value.q(states.astype(np.float32)).tolist() == value.q(states).tolist()
    same = ValueFunction(net.weights())
    assert np.abs(same.outputs(states) - outputs.numpy()).max() < 1e-6
    assert np.abs(same.q(states) - q_of(outputs).numpy()).max() < 1e-6
    one_by_one = [value.none_value(state) for state in states]
    assert np.abs(value.none_values(states) - one_by_one).max() < 2e-6  # a rounding apart


def test_the_same_seed_gives_the_same_bytes_also_after_a_stop(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(at: At) -> None:
        if at.epoch == 2:
            raise Stop

    config = replace(PLAIN, epochs=3, batches=10)
    whole = trained(tmp_path / "a.pfv", config=config)
    held, path = tmp_path / "c.pt", tmp_path / "b.pfv"
    with pytest.raises(Stop):
        train_value(LOG, path, config=config, seed=3, checkpoint=held, on_progress=stop)
    again = trained(path, config=config, checkpoint=held)

    assert again == whole
    assert (tmp_path / "a.pfv").read_bytes() == path.read_bytes()
    with pytest.raises(CheckpointError, match="Delete it to start anew"):
        trained(path, config=replace(config, conservatism=0.1), checkpoint=held)
    held.write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        trained(path, config=config, checkpoint=held)


def test_training_ends_where_it_grows_no_better(tmp_path: Path) -> None:
    config = replace(PLAIN, epochs=200, warm_up=2, patience=1, batches=20)

    assert trained(tmp_path / "v.pfv", config=config).metrics["epochs"] < 200


def test_a_log_of_one_action_is_refused(tmp_path: Path) -> None:
    log, _ = walked(1, np.ones(N_STATES), n_users=5)
    with pytest.raises(ValueError, match="both kinds are needed"):
        trained(tmp_path / "v.pfv", log)


@pytest.mark.parametrize("sends", [EVEN, np.ones(4), np.array([1.0, 0.2, 0.0, 0.0])])
def test_fitted_q_evaluation_holds_the_truth_within_its_interval(
    sends: NDArray[np.float64],
) -> None:
    first = LOG_STATES[::40]
    q = true_q(sends)
    truth = ((1 - sends) * q[:, HOLD] + sends * q[:, SEND])[first].mean()
    found = evaluate(LOG, sends[LOG_STATES], np.eye(N_STATES)[LOG_STATES], seed=1)

    assert found.low < truth < found.high
    assert found.high - found.low < 0.6
    assert found.value == pytest.approx(truth, abs=0.2)


def test_evaluation_says_when_the_log_does_not_carry_the_policy() -> None:
    log, states = walked(1, EVEN, n_users=3, n_steps=3)
    with pytest.raises(ValueError, match="no decision"):
        evaluate(log._replace(is_known=np.zeros(9, np.bool_)), EVEN[states], np.ones((9, 1)))
    # A feature that doubles from step to step: the fit runs away.
    grows = np.exp2(np.arange(9.0) % 3)[:, None]
    with pytest.raises(ValueError, match="does not settle"):
        evaluate(log, np.ones(9), grows)


def test_the_interval_is_the_same_for_the_same_seed() -> None:
    run = lambda: evaluate(LOG, EVEN[LOG_STATES], np.eye(N_STATES)[LOG_STATES], seed=4)  # noqa: E731
    assert isinstance(run(), Estimate)
    assert run() == run()


def test_steps_follow_each_user_in_time() -> None:
    decided = Decided(
        users=np.array([1, 0, 1, 0]),
        times_ms=np.array([5, 4, 2, 1]) * DAY_MS,
        states=np.zeros((4, 2), np.float32),
        sent=np.array([True, False, True, True]),
        earned=np.array([-0.05, 0.0, 1.0, -5.0]),
        probabilities=np.full(4, 0.5),
    )
    sessions = np.array([0, 1, 1, 2]), np.array([2, 1, 4, 3]) * DAY_MS
    found = steps(decided, *sessions, end_ms=9 * DAY_MS, worth=Worth(1.0, 1.0, 4.5))

    assert found.users.tolist() == [0, 0, 1, 1]
    assert found.actions.tolist() == [SEND, HOLD, SEND, SEND]
    assert found.nexts.tolist() == [1, 1, 3, 3]
    assert found.discounts.tolist() == [0.125, 0.0, 0.125, 0.0]
    # User 1's first session began before their first decision, user 2 has no decision.
    assert found.rewards.tolist() == [-4.5, 0.0, 1.25, -0.05]
    assert found.is_known.tolist() == [True, True, True, False]
    assert found.order.tolist() == [3, 1, 2, 0]
    kept = found.of_users(np.array([False, True]))
    assert (kept.nexts.tolist(), kept.order.tolist()) == ([1, 1], [2, 0])


def test_nobody_decided_is_no_step() -> None:
    none = np.zeros(0, np.int64)
    decided = Decided(none, none, np.zeros((0, 2), np.float32), none > 0, none * 1.0, none * 1.0)

    assert len(steps(decided, none, none, end_ms=0).users) == 0


def test_a_file_that_is_torn_changed_or_of_other_columns_is_refused(
    plain: Path, tmp_path: Path
) -> None:
    whole, path = plain.read_bytes(), tmp_path / "v.pfv"
    for bad in (b"", whole[: len(whole) // 2], whole.replace(b"PK", b"KP")):
        path.write_bytes(bad)
        with pytest.raises(ValueFileError, match="pushflow train value"):
            ValueFunction.load(path)
    with pytest.raises(ValueFileError, match="cannot read the value file"):
        ValueFunction.load(tmp_path / "absent.pfv")
    _, meta, members = read_archive(plain)
    write_archive(path, members, meta | {"policy_spec": "0" * 16})
    with pytest.raises(ValueFileError, match="trained for policy specification 0000"):
        ValueFunction.load(path)
    narrow = Layers([np.zeros((3, 3), np.float32)], [np.zeros((1, 3), np.float32)])
    write_value(path, narrow, {})
    with pytest.raises(ValueFileError, match="no value of"):
        ValueFunction.load(path)
    nan = Layers([np.full((N_POLICY_CONTEXT, 3), np.nan, np.float32)], narrow.biases)
    write_value(path, nan, {})
    with pytest.raises(ValueFileError, match="not finite"):
        ValueFunction.load(path)
