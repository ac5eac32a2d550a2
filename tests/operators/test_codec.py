"""Bytes in, entries or dead letters out; nothing is lost and nothing stops."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.codec import (
    MAX_BYTES,
    MAX_DEPTH,
    REASONS,
    PartitionDecoder,
    encode,
    shard_of,
    table_handler,
)
from operators.hops import Forget, RawMessage
from operators.messages import Erasure, Event, Feedback, Item, UserProfile, UserSignal
from tests.conftest import T0_MS, decision, event

HOUR_MS = 3_600_000
KINDS = {
    "events": Event,
    "users": UserProfile,
    "feedback": Feedback,
    "erasures": Erasure,
    "signals": UserSignal,
}


def decoder(**options: object) -> PartitionDecoder:
    return PartitionDecoder(0, KINDS, n_shards=4, lateness_ms=1_000, **options)  # type: ignore[arg-type]


def raw(value: bytes | None, topic: str = "events", **fields: object) -> RawMessage:
    defaults = {"partition": 0, "offset": 7, "key": b"u1", "timestamp_ms": -1}
    return RawMessage(topic=topic, value=value, **{**defaults, **fields})  # type: ignore[arg-type]


def good(**fields: object) -> bytes:
    return encode(event(**fields))  # type: ignore[arg-type]


def reasons(*messages: RawMessage) -> list[str]:
    return [letter.reason for letter in decoder().decode(messages).dead]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "bad_json"),
        (b"{", "bad_json"),
        (b"\xff\xfe", "bad_json"),
        (b'{"event_id":"e\xff"}', "bad_json"),
        (b"NaN", "bad_json"),
        (b'{"a":' * 50_000, "too_large"),
        (b'{"x":' * 9_000, "bad_json"),
        (good()[:-1] + b',"unknown":"\xff"}', "bad_json"),
        (good()[:-1] + b',"props":{"x":' + b"[" * 16 + b"]" * 16 + b"}}", "bad_json"),
        (b"null", "bad_field"),
        (b"[]", "bad_field"),
        (b"17", "bad_field"),
        (b'"text"', "bad_field"),
        (b"{}", "bad_field"),
        (good().replace(b'"u1"', b"null"), "bad_field"),
        (good().replace(b'"u1"', b'""'), "bad_field"),
        (good().replace(b'"u1"', b'"' + b"u" * 129 + b'"'), "bad_field"),
        (good().replace(b'"u1"', b"5"), "bad_field"),
        (good().replace(str(T0_MS).encode(), b"1.5"), "bad_field"),
        (good().replace(str(T0_MS).encode(), b"1700000000"), "bad_field"),
        (good().replace(str(T0_MS).encode(), b"1700000000000000"), "bad_field"),
        (good().replace(str(T0_MS).encode(), b"9" * 400), "bad_field"),
        (good(value=1.0).replace(b"1.0", b"1e999"), "bad_field"),
        (good(value=1.0).replace(b"1.0", b"1e10"), "bad_field"),
        (good().replace(b'"view"', b'"viewed"'), "unknown_type"),
        (good(item_id=None), "missing_item"),
        (good() + b"x", "bad_json"),
        (b" " * (MAX_BYTES + 1), "too_large"),
        (None, "null_value"),
    ],
)
def test_a_message_that_cannot_be_used_is_a_dead_letter_with_its_reason(
    value: bytes | None, reason: str
) -> None:
    assert reasons(raw(value)) == [reason]
    assert reason in REASONS


def test_props_may_be_nested_to_the_depth_that_is_told() -> None:
    deepest = b',"props":{"x":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}}"

    assert reasons(raw(good()[:-1] + deepest)) == []


def test_a_dead_letter_says_where_it_stood_and_keeps_its_bytes() -> None:
    [letter] = decoder().decode([raw(b"{", offset=42)]).dead

    assert (letter.topic, letter.partition, letter.offset) == ("events", 0, 42)
    assert (letter.size_bytes, letter.payload) == (1, "ew==")


@given(st.lists(st.one_of(st.none(), st.binary(max_size=200), st.text().map(str.encode))))
def test_any_bytes_become_an_entry_or_a_dead_letter(values: list[bytes | None]) -> None:
    batch = decoder().decode([raw(value) for value in values])

    assert batch.n_entries + len(batch.dead) == len(values)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: JSON
            for name in ("event_id", "user_id", "type", "time_ms", "item_id", "context", "props")
        },
    )
)
def test_any_json_becomes_an_entry_or_a_dead_letter_and_spares_its_neighbours(
    fields: dict[str, object],
) -> None:
    message = json.loads(good()) | fields
    batch = decoder().decode([raw(good()), raw(json.dumps(message).encode()), raw(good())])

    assert batch.n_entries + len(batch.dead) == 3
    assert batch.n_entries >= 2


def test_an_event_far_ahead_of_its_partition_is_refused_and_moves_no_clock() -> None:
    late = event(event_id="e2", time_ms=T0_MS + HOUR_MS)
    ahead = event(event_id="e3", time_ms=T0_MS + HOUR_MS + 1)
    subject = decoder(max_ahead_ms=HOUR_MS)
    subject.decode([raw(good())])

    assert [d.reason for d in subject.decode([raw(encode(ahead))]).dead] == ["ahead_of_time"]
    assert subject.decode([raw(encode(late))]).dead == []
    assert subject.snapshot() == (T0_MS + HOUR_MS, -1)


def test_a_quiet_partition_may_jump_as_far_as_the_brokers_time_did() -> None:
    later_ms = T0_MS + 100 * HOUR_MS
    value = good(event_id="e2", time_ms=later_ms)
    subject = decoder(max_ahead_ms=HOUR_MS)
    subject.decode([raw(good(), timestamp_ms=T0_MS)])

    assert subject.decode([raw(value, timestamp_ms=T0_MS + 1)]).n_entries == 0
    assert subject.decode([raw(value, timestamp_ms=later_ms)]).n_entries == 1


def test_the_first_event_of_a_partition_is_held_against_the_brokers_time() -> None:
    assert reasons(raw(good(), timestamp_ms=T0_MS - 2 * HOUR_MS)) == ["ahead_of_time"]


def test_a_signal_moves_no_clock_and_may_not_be_far_ahead_of_it() -> None:
    subject = decoder(max_ahead_ms=HOUR_MS)
    subject.decode([raw(good())])
    signals = [
        UserSignal(signal_id=f"s{n}", user_id="u1", type="searched", time_ms=T0_MS + HOUR_MS + n)
        for n in (0, 1)
    ]
    batch = subject.decode([raw(encode(signal), "signals") for signal in signals])

    assert (batch.n_entries, [letter.reason for letter in batch.dead]) == (1, ["ahead_of_time"])
    assert subject.snapshot() == (T0_MS, -1)


def test_feedback_does_not_move_the_clock_of_decide() -> None:
    feedback = Feedback(
        feedback_id="f", decision_id="d", user_id="u1", type="opened", time_ms=T0_MS
    )
    subject = decoder()
    subject.decode([raw(encode(feedback), "feedback")])

    assert subject.snapshot() == (0, -1)


def test_entries_carry_the_watermark_as_it_stood_at_each() -> None:
    values = [good(event_id=f"e{i}", time_ms=T0_MS + i * 10) for i in (0, 5, 3)]
    batch = decoder().decode([raw(value) for value in values])

    [shard] = [shard for shard in batch.shards if shard.entries]
    assert [w - T0_MS for w, _ in shard.entries] == [-1_000, -950, -950]
    assert shard.watermark_ms == T0_MS - 950


def test_every_shard_is_told_of_the_time() -> None:
    batch = decoder().decode([raw(good())])

    assert sorted(shard.shard for shard in batch.shards) == ["00", "01", "02", "03"]
    assert {shard.watermark_ms for shard in batch.shards} == {T0_MS - 1_000}


def test_a_resumed_decoder_goes_on_from_its_clock() -> None:
    first = decoder()
    first.decode([raw(good())])

    second = decoder(state=first.snapshot(), max_ahead_ms=HOUR_MS)

    ahead = good(event_id="e2", time_ms=T0_MS + 2 * HOUR_MS)
    assert second.decode([raw(ahead)]).n_entries == 0


def test_a_users_tombstone_and_an_erasure_forget_the_user() -> None:
    erasure = encode(Erasure(user_id="u2", time_ms=T0_MS))
    batch = decoder().decode([raw(None, "users"), raw(erasure, "erasures")])

    entries = [entry for shard in batch.shards for _, entry in shard.entries]
    assert sorted(entries) == [Forget("u1"), Forget("u2")]


def test_a_users_shard_is_the_same_for_ever() -> None:
    assert [shard_of(f"user-{i}", 64) for i in range(4)] == ["32", "09", "20", "21"]


def test_orjson_writes_every_part_of_a_decision() -> None:
    written = orjson.loads(encode(decision()))

    assert written["learning"]["action_set"][0]["item_id"] == "i1"
    assert written["delivery"]["collapse_key"] == "c1"


def test_a_table_leaves_out_rows_that_cannot_be_read() -> None:
    rows: dict[str, Item | None] = {}
    handle = table_handler(Item, rows.__setitem__, "push.items.v1")

    handle(b"a", b'{"item_id":"a","title":"A"}')
    handle(b"b", b"{")
    handle(b"\xff", b'{"item_id":"c","title":"C"}')
    handle(b"d", None)

    assert rows == {"a": Item(item_id="a", title="A"), "d": None}
