"""The policy and the model in use: taken up when they come, refused when they do not fit."""

from pathlib import Path

import numpy as np
import pytest

from models.arms import D
from models.item_rows import ItemRows
from operators.hops import Reward
from operators.learning import LearnerShard
from operators.messages import ModelCard, PolicyShard
from operators.model_table import ModelTable
from operators.policy_table import PolicyTable
from tests.conftest import T0_MS


def row(shard: str, reward: float, seed: int = 0) -> PolicyShard:
    learner = LearnerShard()
    rng = np.random.default_rng(seed)
    learner.on_batch(
        [Reward(shard, f"d{n}", rng.random(D), reward, False, T0_MS + n) for n in range(5)]
    )
    return learner.row()


def table() -> PolicyTable:
    return PolicyTable(gamma=10.0, floor=0.0, prior_precision=1.0)


def test_a_row_takes_effect_at_the_next_refresh() -> None:
    policies = table()
    before = policies.version
    policies.apply("p0", row("p0", 1.0))
    assert policies.version == before

    policies.refresh()
    assert policies.version.startswith("5-")
    assert policies.newest_ms == T0_MS + 4


def test_the_order_in_which_shards_come_does_not_matter() -> None:
    one, other = table(), table()
    rows = [row("p0", 1.0), row("p1", 0.5, seed=1)]
    for shard in rows:
        one.apply(shard.shard, shard)
    for shard in rows[::-1]:
        other.apply(shard.shard, shard)
    one.refresh()
    other.refresh()

    assert one.version == other.version
    assert one.mean.tobytes() == other.mean.tobytes()


def test_a_newer_row_takes_the_older_ones_place_and_a_tombstone_takes_it_out() -> None:
    policies = table()
    policies.apply("p0", row("p0", 1.0))
    policies.apply("p0", row("p0", 0.0))
    policies.refresh()
    assert policies.n_rewards == 5
    assert policies.mean.tolist() == [0.0] * D

    policies.apply("p0", None)
    policies.refresh()
    assert policies.n_rewards == 0


@pytest.mark.parametrize(
    "change",
    [{"feature_spec": "0" * 16}, {"dim": 3}, {"moment": "!"}, {"precision": "AAAA"}],
)
def test_a_row_that_does_not_fit_changes_nothing(change: dict[str, object]) -> None:
    policies = table()
    good = row("p0", 1.0)
    fields = {name: getattr(good, name) for name in good.__struct_fields__}
    policies.apply("p0", PolicyShard(**{**fields, **change}))
    policies.refresh()

    assert policies.n_rewards == 0


def test_a_model_file_that_cannot_be_read_is_refused_with_its_reason(tmp_path: Path) -> None:
    broken = tmp_path / "student.pfm"
    broken.write_bytes(b"no model")
    models = ModelTable(ItemRows())
    models.apply(
        "student",
        ModelCard(name="student", version="1", path=str(broken), checksum="", feature_spec=""),
    )
    models.settle()

    assert models.version == "none"
    assert str(broken) in models.refusals["1"]


def test_a_card_of_another_name_is_left_alone() -> None:
    models = ModelTable(ItemRows())
    models.apply(
        "other", ModelCard(name="other", version="1", path="/none", checksum="", feature_spec="")
    )
    models.settle()

    assert models.refusals == {}
