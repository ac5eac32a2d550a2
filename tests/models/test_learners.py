import numpy as np
import pytest

from models.arms import N_NEURAL, D, policy_spec_hash
from models.learner import SnapshotError
from models.learners import LearnerKind
from models.policies import KINDS
from operators.hops import Reward
from operators.learning import LearnerShard
from operators.policy_table import PolicyTable

T0_MS = 1_772_409_600_000


def taught(kind: LearnerKind, n: int = 30) -> LearnerShard:
    rng, shard = np.random.default_rng(1), LearnerShard(kind=kind)
    rows = rng.normal(size=(n, len(kind.columns)))
    shard.on_batch([Reward("p0", "d", row, float(row[5] > 0), False, T0_MS) for row in rows])
    return shard


@pytest.mark.parametrize("policy", sorted(KINDS))
def test_a_policys_learner_writes_rows_that_its_table_takes(policy: str):
    shard = taught(LearnerKind.of(policy))
    table = PolicyTable(prior_precision=1.0, policy=policy)
    table.apply("p0", shard.row())
    assert table.refresh()
    assert table.n_rewards == 30
    assert table.mean.shape == (len(table.columns),)
    assert shard.row().feature_spec == table.spec
    assert LearnerShard(shard.snapshot(), kind=LearnerKind.of(policy)).row() == shard.row()


def test_rows_of_another_learner_are_left_unread():
    table = PolicyTable(prior_precision=1.0, policy="logistic_ucb")
    table.apply("p0", taught(LearnerKind.of("squarecb")).row())
    assert not table.refresh()
    assert table.n_rewards == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("squarecb", "logistic_ucb"),
        ("logistic_ucb", "squarecb"),
        ("squarecb", "neural_linear"),
        ("neural_linear", "logistic_ucb"),
    ],
)
def test_a_change_of_learner_begins_anew(before: str, after: str):
    state = taught(LearnerKind.of(before)).snapshot()
    shard = LearnerShard(state, kind=LearnerKind.of(after))
    row = shard.row()
    assert (row.n_rewards, row.version) == (0, 0)
    assert (row.policy_id, row.shard) == (KINDS[after].learner, "p0")


def test_policies_of_one_learner_share_what_it_knows():
    state = taught(LearnerKind.of("squarecb")).snapshot()
    assert LearnerShard(state, kind=LearnerKind.of("linucb")).row().n_rewards == 30


def test_neural_columns_are_columns_of_another_spec():
    kind = LearnerKind.of("neural_linear")
    assert len(kind.columns) == D + N_NEURAL
    assert kind.spec == policy_spec_hash(is_neural=True) != policy_spec_hash()
    with pytest.raises(SnapshotError):
        kind.restore(LearnerKind.of("squarecb").new().snapshot())
