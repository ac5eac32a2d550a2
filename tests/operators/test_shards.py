"""operators.shards: the shard in memory comes back from its snapshot."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from operators.shards import DictShard
from tests.operators.test_state import decode, encode, new


@given(state=st.dictionaries(st.text(), st.integers(0, 99)), user=st.text())
def test_dict_shard_comes_back_from_its_snapshot(state: dict[str, int], user: str) -> None:
    codec: dict[str, Any] = {"encode": encode, "decode": decode, "new": new}
    shard = DictShard("07", **codec)
    for key, value in state.items():
        shard.get(key)[0] = value
    saved = shard.snapshot()
    shard.get(user)[0] += 1
    shard.delete(user)

    assert DictShard("07", **codec, state=saved).snapshot() == saved
    assert {key: s[0] for key, s in DictShard("07", **codec, state=saved).scan()} == state
    assert shard.peek(user) is None


def test_scan_is_in_order_and_leaves_out_what_is_deleted_on_the_way() -> None:
    shard = DictShard("07", encode=encode, decode=decode, new=new)
    for user in ("c", "a", "b", "张伟"):
        shard.get(user)
    seen = []
    for user, _ in shard.scan():
        seen.append(user)
        shard.delete("b")

    assert seen == ["a", "c", "张伟"]
