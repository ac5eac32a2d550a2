"""What users write, and items that changed: how a user's state takes them, and what they fire."""

import base64
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.encoders import HASH_ID
from models.taste import unpack_vector
from models.text import encode_texts
from operators.hops import Entry, Forget, ShardBatch, Trigger
from operators.messages import Event, UserSignal
from operators.shards import DictShard
from operators.triggers import TriggerRules
from operators.user_state import UserState, decode_state, encode_state, new_state
from operators.users import UserShard
from operators.written import HASHED, ServedTexts, TextVectors
from tests.conftest import T0_MS, event

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
RULES = TriggerRules(idle_ms=0)
LAMP, TEA = TextVectors(encode_texts).many(["desk lamp", "green tea"])


def states() -> DictShard[UserState]:
    return DictShard("00", encode=encode_state, decode=decode_state, new=new_state)


def shard(
    users: DictShard[UserState] | None = None,
    rules: TriggerRules = RULES,
    texts: ServedTexts = HASHED,
) -> UserShard:
    return UserShard("00", users or states(), rules, lambda _: "lamps", texts)


def served(encoder: str) -> ServedTexts:
    """As where `catalog` encodes."""
    return HASHED._replace(encoder=lambda: encoder)


def run(subject: UserShard, *entries: Entry, until_ms: int = 0) -> list[Trigger]:
    clock, stamped = 0, []
    for entry in entries:
        clock = max(clock, entry.time_ms if isinstance(entry, Event) else 0)
        stamped.append((clock, entry))
    [output] = subject.on_batch([ShardBatch("00", 0, max(clock, until_ms), stamped)])
    return [trigger for trigger in output.triggers if isinstance(trigger, Trigger)]


def search(minutes: float, text: str, event_id: str = "", **fields: object) -> Event:
    time_ms = T0_MS + int(minutes * MINUTE_MS)
    values = {"type": "search", "item_id": None, "text": text, "time_ms": time_ms, **fields}
    return event(event_id or f"s{minutes}", **values)


def views(*minutes: float) -> list[Event]:
    return [event(f"v{m}", item_id=f"i{m}", time_ms=T0_MS + int(m * MINUTE_MS)) for m in minutes]


def signal(kind: str = "price_dropped", after_ms: int = 0, **fields: object) -> UserSignal:
    values = {
        "signal_id": f"{kind}-{after_ms}",
        "user_id": "u1",
        "type": kind,
        "time_ms": T0_MS + after_ms,
        "item_id": "i9",
        "since_ms": T0_MS - HOUR_MS,
    }
    return UserSignal(**{**values, **fields})  # type: ignore[arg-type]


def vector_signal(vector: bytes, kind: str = "searched", **fields: object) -> UserSignal:
    encoded = base64.b64encode(vector).decode()
    return signal(kind, **{"item_id": None, "encoder": "e2", "vector": encoded, **fields})


def cosine(one: bytes, other: bytes) -> float:
    return float(unpack_vector(one) @ unpack_vector(other))


def test_a_search_leads_to_an_intent_vector_in_the_trigger() -> None:
    [trigger] = run(shard(), search(0, "desk lamp"), *views(1, 2, 3))

    assert (trigger.type, trigger.intent, trigger.taste) == ("intent", LAMP, LAMP)


def test_who_wrote_nothing_has_no_vectors() -> None:
    users = states()
    [trigger] = run(shard(users), *views(1, 2, 3), search(4, "...", "e"))

    assert (trigger.intent, trigger.taste) == (b"", b"")
    assert users.get("u1").encoder == ""


def test_the_session_that_ends_still_has_its_intent_and_the_next_has_none() -> None:
    subject = shard()
    [ended] = run(subject, search(0, "desk lamp"), *views(1), until_ms=T0_MS + HOUR_MS)
    [next_one] = run(subject, *views(90, 91, 92))

    assert (ended.type, ended.intent) == ("session_ended", LAMP)
    assert (next_one.type, next_one.intent, next_one.taste) == ("intent", b"", LAMP)


def test_a_comment_is_taste_alone_and_other_text_is_nothing() -> None:
    comment = event("c", type="comment", text="desk lamp", time_ms=T0_MS)
    other = event("o", type="share", text="green tea", time_ms=T0_MS)
    [trigger] = run(shard(), comment, other, *views(1, 2, 3))

    assert (trigger.intent, trigger.taste) == (b"", LAMP)


def test_a_search_of_a_session_that_is_over_is_taste_alone() -> None:
    subject = shard()
    run(subject, search(100, "green tea"))
    [trigger] = run(subject, search(0, "desk lamp"), *views(101, 102, 103))

    assert trigger.intent == TEA
    assert cosine(trigger.taste, LAMP) > 0.3


def test_a_search_twice_counts_once() -> None:
    once, twice = states(), states()
    run(shard(once), search(0, "desk lamp"), search(1, "green tea"))
    run(shard(twice), search(0, "desk lamp"), search(1, "green tea"), search(1, "green tea"))

    assert once.get("u1").taste == twice.get("u1").taste
    assert once.get("u1").session.intent == twice.get("u1").session.intent


def test_text_of_another_encoder_comes_by_signal() -> None:
    subject = shard(texts=served("e2"))
    run(subject, search(0, "what it says does not matter here"))
    [trigger] = run(subject, vector_signal(TEA), *views(1, 2, 3))

    assert (trigger.intent, trigger.taste) == (TEA, TEA)


def test_a_vector_of_an_encoder_that_is_not_served_is_dropped() -> None:
    users = states()
    run(shard(users, texts=served("e3")), *views(0), vector_signal(TEA))

    assert users.get("u1").taste == b""


def test_vectors_are_kept_back_while_another_encoder_is_served() -> None:
    users = states()
    run(shard(users), search(0, "desk lamp"))
    [trigger] = run(shard(users, texts=served("e2")), *views(1, 2, 3))

    assert (trigger.intent, trigger.taste) == (b"", b"")
    assert users.get("u1").encoder == HASH_ID


def test_nothing_is_kept_of_a_user_who_is_not_known() -> None:
    users = states()
    triggers = run(shard(users, texts=served("e2")), vector_signal(TEA), signal())

    assert (triggers, list(users.scan())) == ([], [])


@pytest.mark.parametrize("kind", ["price_dropped", "back_in_stock"])
def test_a_changed_item_fires_once_and_says_which(kind: str) -> None:
    changed = signal(kind, MINUTE_MS)
    triggers = run(shard(), *views(0), changed, changed)

    assert [(t.type, t.event_id, t.about, t.time_ms) for t in triggers] == [
        (kind, changed.signal_id, ("i9",), T0_MS + MINUTE_MS)
    ]


def test_each_change_is_a_trigger_of_its_own() -> None:
    triggers = run(
        shard(), *views(0), signal(), signal("price_dropped", 5), signal("back_in_stock")
    )

    assert [t.type for t in triggers] == ["price_dropped", "price_dropped", "back_in_stock"]


def test_a_change_is_not_decided_before_what_was_decided_already() -> None:
    [trigger] = run(shard(), *views(60), signal("price_dropped", 0))

    assert trigger.time_ms == T0_MS + HOUR_MS


def test_a_change_of_yesterday_is_no_news() -> None:
    day_ms = 24 * HOUR_MS
    triggers = run(
        shard(), event("v", time_ms=T0_MS + day_ms), signal("price_dropped", -1), signal()
    )

    assert [t.event_id for t in triggers] == ["price_dropped-0"]


@pytest.mark.parametrize(
    ("bought_after_ms", "n_fired"), [(-2 * HOUR_MS, 1), (-HOUR_MS, 0), (-1_000, 0)]
)
def test_what_was_bought_since_is_not_told(bought_after_ms: int, n_fired: int) -> None:
    bought = event("p", type="purchase", item_id="i9", time_ms=T0_MS + bought_after_ms)

    assert len(run(shard(), bought, *views(0), signal())) == n_fired


@pytest.mark.parametrize(
    ("rules", "kinds"),
    [
        (RULES._replace(price_drop=0.0), ["back_in_stock"]),
        (RULES._replace(back_in_stock=False), ["price_dropped"]),
    ],
)
def test_each_kind_can_be_turned_off(rules: TriggerRules, kinds: list[str]) -> None:
    triggers = run(shard(rules=rules), *views(0), signal(), signal("back_in_stock"))

    assert [t.type for t in triggers] == kinds


def buy(minutes: int, item_id: str) -> Event:
    time_ms = T0_MS + minutes * MINUTE_MS
    return event(f"p{minutes}", type="purchase", item_id=item_id, time_ms=time_ms)


def test_times_of_purchases_go_with_them() -> None:
    [*_, last] = run(shard(), buy(0, "a"), buy(1, "b"), buy(9, "a"), buy(8, "a"), signal())

    t0_s = T0_MS // 1_000
    assert (last.bought, last.bought_s) == (["b", "a"], [t0_s + 60, t0_s + 540])


ENTRIES = st.lists(
    st.one_of(
        st.builds(
            lambda n, minutes, text, kind: search(minutes, text, f"s{n}", type=kind),
            st.integers(0, 9),
            st.integers(0, 300),
            st.sampled_from(["desk lamp", "green tea", "红色台灯", "?"]),
            st.sampled_from(["search", "comment"]),
        ),
        st.builds(
            lambda n, minutes, kind: event(
                f"e{n}", type=kind, item_id=f"i{n}", time_ms=T0_MS + minutes * MINUTE_MS
            ),
            st.integers(0, 9),
            st.integers(0, 300),
            st.sampled_from(["view", "cart", "purchase"]),
        ),
        st.builds(
            lambda n, after_ms, kind: signal(kind, after_ms, item_id=f"i{n}"),
            st.integers(0, 9),
            st.integers(-5, 5),
            st.sampled_from(["price_dropped", "back_in_stock"]),
        ),
        st.builds(lambda after_ms: vector_signal(TEA, after_ms=after_ms), st.integers(0, 5)),
        st.just(Forget("u1")),
    ),
    max_size=30,
)


@given(ENTRIES, st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_batches_and_restarts_change_no_vector_and_no_trigger(
    entries: list[Entry], sizes: list[int]
) -> None:
    whole, cut = states(), states()
    expected = run(shard(whole), *entries)
    found: list[Trigger] = []
    at = clock = 0
    while at < len(entries):
        part: Sequence[Entry] = entries[at : at + sizes[at % len(sizes)]]
        cut = DictShard(
            "00", encode=encode_state, decode=decode_state, new=new_state, state=cut.snapshot()
        )
        subject, stamped = shard(cut), []
        for entry in part:
            clock = max(clock, entry.time_ms if isinstance(entry, Event) else 0)
            stamped.append((clock, entry))
        [output] = subject.on_batch([ShardBatch("00", 0, clock, stamped)])
        found += [trigger for trigger in output.triggers if isinstance(trigger, Trigger)]
        at += len(part)

    assert found == expected
    assert list(cut.scan_raw()) == list(whole.scan_raw())
