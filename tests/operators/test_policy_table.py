"""What each experiment arm goes by, and the policy that only watches."""

import numpy as np
import pytest

from models.arms import D
from operators.hops import Reward, learner_shard
from operators.learning import LearnerShard
from operators.messages import PolicyShard
from operators.policy_table import PolicyError, PolicyTable


def row(shard: str, reward: float, n: int) -> PolicyShard:
    learner = LearnerShard()
    rng = np.random.default_rng(n)
    learner.on_batch(
        [Reward(shard, f"d{i}", rng.random(D), reward, False, 1_700_000_000_000) for i in range(n)]
    )
    return learner.row()


def table(*rows: PolicyShard, **options: bool | str) -> PolicyTable:
    made = PolicyTable(prior_precision=1.0, **options)  # type: ignore[arg-type]
    for one in rows:
        made.apply(one.shard, one)
    made.refresh()
    return made


ROWS = (
    row(learner_shard(0), 0.1, 3),  # of before arms were kept apart
    row(learner_shard(0, "policy"), 1.0, 5),
    row(learner_shard(1, "policy"), 1.0, 7),
    row(learner_shard(0, "other"), -1.0, 11),
)


def test_an_arm_kept_apart_goes_by_its_own_pushes_and_those_of_before() -> None:
    apart = table(*ROWS, separate_arms=True)

    assert {arm: apart.known(arm).posterior.n for arm in ("policy", "other", "new")} == {
        "policy": 15,
        "other": 14,
        "new": 3,
    }
    assert set(apart.known("other").learned) == {"p0", "p0/other"}
    assert apart.version == apart.known("policy").version != apart.known("other").version
    x = np.ones((1, D))
    values = {arm: apart.policy(arm).judge(x).values[0] for arm in ("policy", "other")}
    assert values["other"] < 0 < values["policy"]


def test_arms_together_go_by_all_there_is_however_it_was_learned() -> None:
    together = table(*ROWS)

    assert together.known("policy") is together.known("other")
    assert together.known("policy").posterior.n == 26
    assert len(together.known("other").learned) == 4


def test_an_arm_apart_that_is_taken_out_is_forgotten() -> None:
    apart = table(*ROWS, separate_arms=True)
    apart.apply("p0/other", None)
    apart.refresh()

    assert apart.known("other").posterior.n == 3


def test_an_arm_apart_knows_what_a_table_of_its_rows_alone_knows() -> None:
    alone = table(ROWS[0], ROWS[3])
    assert alone.version == table(*ROWS, separate_arms=True).known("other").version


def test_an_arm_with_the_name_of_a_policy_is_served_by_it() -> None:
    made = table(*ROWS)
    arms = ("random", "policy", "other", "greedy", "thompson", "squarecb")

    assert [made.policy(arm).policy_id for arm in arms] == [
        *("uniform", "squarecb", "squarecb", "greedy", "thompson", "squarecb"),
    ]
    assert made.policy("greedy") is made.policy("greedy")
    assert made.policy("logistic_ucb").policy_id == "squarecb"  # it would need another learner


def test_an_apprentice_goes_by_what_its_arm_goes_by() -> None:
    watched = table(*ROWS, separate_arms=True, apprentice="softmax")

    found = watched.known("other").apprentice
    assert found is not None
    assert found.policy_id == "softmax"
    assert found.judge(np.ones((1, D))).values[0] < 0
    assert table(*ROWS).known("other").apprentice is None


def test_an_apprentice_of_another_learner_is_refused() -> None:
    with pytest.raises(PolicyError, match="logistic learner"):
        table(apprentice="logistic_ucb")
