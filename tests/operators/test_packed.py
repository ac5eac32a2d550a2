"""Bytes of every state: older ones are read, newer ones stop a release with what to do."""

from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest

from models.arms import D
from models.learner import FORMATS
from operators import attribution_state, fatigue, interest, item_stats, user_state
from operators.attribution import Attribution
from operators.attribution_state import AttributionState
from operators.hops import Reward
from operators.learning import LearnerShard
from operators.packed import HEAD_BYTES, NewerStateError
from operators.rewards import RewardRules
from operators.shards import DictShard
from operators.state import StateStore
from operators.triggers import TriggerRules
from operators.users import UserShard

CODECS = [attribution_state, fatigue, interest, item_stats, user_state]
RULES = RewardRules(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, window_ms=1)
MEND = (
    r"version \d+: a newer pushflow wrote it.* Run the newer one, or go back .* before the upgrade"
)


def named(codec: ModuleType) -> str:
    return codec.__name__.rpartition(".")[2]


@pytest.mark.parametrize("codec", CODECS, ids=named)
def test_the_bytes_of_a_newer_release_are_refused_with_the_mend(codec: ModuleType) -> None:
    packed = codec.encode_state(codec.new_state("u1"))

    with pytest.raises(NewerStateError, match=MEND):
        codec.decode_state(bytes([packed[0] + 1]) + packed[1:])


@pytest.mark.parametrize("packed", [b"", b"\x00\x90"])
@pytest.mark.parametrize("codec", CODECS, ids=named)
def test_bytes_of_no_release_are_refused(codec: ModuleType, packed: bytes) -> None:
    with pytest.raises(ValueError, match="version 0, which no pushflow wrote"):
        codec.decode_state(packed)


def test_a_newer_learner_is_not_taken_for_one_to_begin_anew() -> None:
    shard = LearnerShard()
    shard.on_batch([Reward("p0", "d1", np.ones(D), 1.0, False, 1)])
    name, time_ms, learner, _ = shard.snapshot()

    with pytest.raises(NewerStateError, match=MEND):
        LearnerShard((name, time_ms, bytes([max(FORMATS) + 1]) + learner[1:]))


def test_a_learner_of_other_columns_begins_anew() -> None:
    shard = LearnerShard()
    shard.on_batch([Reward("p0", "d1", np.ones(D), 1.0, False, 1)])
    name, time_ms, learner, _ = shard.snapshot()
    other_spec = learner[:5] + b"0" * 16 + learner[21:]

    assert LearnerShard((name, time_ms, other_spec)).row().n_rewards == 0


@pytest.mark.parametrize("codec", [user_state, attribution_state], ids=named)
def test_a_flow_does_not_start_on_the_state_of_a_newer_release(
    codec: ModuleType, tmp_path: Path
) -> None:
    def store(run_id: str, version: int) -> StateStore[object]:
        return StateStore(
            tmp_path,
            "users",
            encode=lambda state: bytes([version]) + codec.encode_state(state)[1:],
            decode=codec.decode_state,
            new=codec.new_state,
            run_id=run_id,
            n_workers=1,
        )

    newer = store("newer", codec.STATE_VERSION + 1).open_shard("00", None)
    newer.touch()
    newer.get("u1")
    older = store("older", codec.STATE_VERSION).open_shard("00", newer.snapshot())
    older.touch()

    with pytest.raises(NewerStateError, match=MEND):
        if codec is user_state:
            UserShard("00", older, TriggerRules(), lambda _: "")
        else:
            Attribution(older, RULES)


def test_attribution_of_version_2_goes_on_with_its_timers() -> None:
    state = AttributionState(partition=3, recent=[("i1", 5)], last_ms=5, later_ms=7_000)
    packed = attribution_state.encode_state(state)
    fields = msgspec.msgpack.decode(packed[HEAD_BYTES:])[:-2]  # without what was bought, and delays
    old = b"\x02" + packed[1:HEAD_BYTES] + msgspec.msgpack.encode(fields)

    assert attribution_state.decode_state(old) == state
    shard = DictShard(
        "00",
        encode=lambda _: old,
        decode=attribution_state.decode_state,
        new=attribution_state.new_state,
        state=(("u1", old),),
    )
    attribution = Attribution(shard, RULES)
    assert attribution._timers.of(3).first_ms == 7_000
