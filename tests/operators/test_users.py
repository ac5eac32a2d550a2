"""What a user did, and when that fires a trigger, in event time alone."""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.features import COLUMN
from operators.duplicates import REMEMBERED
from operators.hops import Entry, Forget, ShardBatch, Trigger
from operators.messages import Consent, Event, EventContext, Feedback, UserProfile
from operators.packed import HEAD_BYTES
from operators.shards import DictShard
from operators.state import StateStore
from operators.triggers import TriggerRules
from operators.user_state import UserState, decode_state, encode_state, new_state
from operators.users import UserShard
from tests.conftest import T0_MS, event

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
RULES = TriggerRules()


def states() -> DictShard[UserState]:
    return DictShard("00", encode=encode_state, decode=decode_state, new=new_state)


def shard(users: DictShard[UserState] | None = None, rules: TriggerRules = RULES) -> UserShard:
    return UserShard("00", users or states(), rules, lambda item_id: f"category-{item_id[0]}")


def batch(entries: Sequence[Entry], watermark_ms: int | None = None) -> ShardBatch:
    """A batch whose watermark is the newest event time at each entry, lateness 0."""
    stamped, clock = [], 0
    for entry in entries:
        clock = max(clock, entry.time_ms if isinstance(entry, Event) else 0)
        stamped.append((clock, entry))
    return ShardBatch("00", 0, max(clock, watermark_ms or 0), stamped)


def run(subject: UserShard, *entries: Entry, until_ms: int = 0) -> list[Trigger | Forget]:
    [output] = subject.on_batch([batch(entries, until_ms)])
    return output.triggers


def kinds(triggers: list[Trigger | Forget]) -> list[str]:
    return [t.type if isinstance(t, Trigger) else "forget" for t in triggers]


def at(minutes: float, event_id: str, **fields: object) -> Event:
    return event(event_id, time_ms=T0_MS + int(minutes * MINUTE_MS), **fields)  # type: ignore[arg-type]


def views(*minutes: float) -> list[Event]:
    return [at(minute, f"e{n}", item_id=f"a{n}") for n, minute in enumerate(minutes)]


def column(subject: UserShard, name: str, *entries: Entry) -> float:
    [output] = subject.on_batch([batch(entries)])
    return output.rows[-1].context[COLUMN[name]]


def test_the_third_view_of_a_category_in_a_session_is_intent_once() -> None:
    triggers = run(shard(), *views(0, 1, 2, 3))

    assert [(t.type, t.event_id) for t in triggers if isinstance(t, Trigger)] == [("intent", "e2")]


def test_views_of_different_categories_are_no_intent() -> None:
    entries = [at(n, f"e{n}", item_id=item) for n, item in enumerate(("a", "b", "c"))]

    assert run(shard(), *entries) == []


def test_a_purchase_in_the_session_takes_intent_away() -> None:
    bought = at(0, "p", type="purchase", item_id="b1")

    assert run(shard(), bought, *views(1, 2, 3)) == []


def test_a_cart_left_quiet_fires_at_its_due_time_and_not_before() -> None:
    subject = shard()
    run(subject, at(0, "c", type="cart", item_id="a1", value=9.5))

    assert run(subject, until_ms=T0_MS + 20 * MINUTE_MS - 1) == []
    [trigger] = run(subject, until_ms=T0_MS + 20 * MINUTE_MS)
    assert isinstance(trigger, Trigger)
    assert (trigger.type, trigger.time_ms, trigger.cart) == (
        "cart_left",
        T0_MS + 20 * MINUTE_MS,
        ["a1"],
    )


def test_a_late_event_does_not_fire_a_cart_again_that_has_fired() -> None:
    subject = shard()
    fired = run(subject, at(0, "c1", type="cart", item_id="a1"), until_ms=T0_MS + 25 * MINUTE_MS)
    late = at(-1, "c2", type="cart", item_id="a2")
    after = run(subject, late, until_ms=T0_MS + 60 * MINUTE_MS)
    newer = at(70, "c3", type="cart", item_id="a3")
    again = run(subject, newer, until_ms=T0_MS + 95 * MINUTE_MS)

    assert (kinds(fired), kinds(after), kinds(again)) == (
        ["cart_left"],
        ["session_ended"],
        ["cart_left"],
    )


@pytest.mark.parametrize("type_", ["cart_remove", "purchase"])
def test_a_cart_that_was_emptied_does_not_fire(type_: str) -> None:
    subject = shard(rules=RULES._replace(session_ended_min_events=0, idle_ms=0))
    run(subject, at(0, "c", type="cart"), at(1, "d", type=type_))

    assert run(subject, until_ms=T0_MS + HOUR_MS) == []


def test_a_cart_may_be_waited_for_beyond_the_session() -> None:
    rules = RULES._replace(cart_left_ms=2 * HOUR_MS, session_ended_min_events=1)
    subject = shard(rules=rules)
    run(subject, at(0, "c", type="cart"))

    assert kinds(run(subject, until_ms=T0_MS + 3 * HOUR_MS)) == ["session_ended", "cart_left"]


def test_an_event_puts_a_timer_off() -> None:
    subject = shard()
    run(subject, *views(0, 10))

    assert run(subject, until_ms=T0_MS + 35 * MINUTE_MS) == []
    assert kinds(run(subject, until_ms=T0_MS + 40 * MINUTE_MS + 1)) == ["session_ended"]


def test_a_session_that_an_event_ends_fires_as_if_time_had() -> None:
    subject = shard()
    run(subject, *views(0, 1))
    [output] = subject.on_batch([ShardBatch("00", 0, 0, [(0, at(40, "next"))])])

    [ended] = output.triggers
    assert isinstance(ended, Trigger)
    assert (ended.type, ended.event_id, ended.time_ms) == (
        "session_ended",
        "e1",
        T0_MS + 31 * MINUTE_MS + 1,
    )
    assert output.rows[-1].context[COLUMN["session_events"]] == 1


def test_a_session_of_late_events_ends_with_its_own_event() -> None:
    subject = shard()
    first = run(subject, at(200, "e1"), at(201, "e2"), until_ms=T0_MS + 240 * MINUTE_MS)
    second = run(subject, at(0, "l1"), at(1, "l2"), until_ms=T0_MS + 242 * MINUTE_MS)

    fired = [(t.type, t.event_id) for t in first + second if isinstance(t, Trigger)]
    assert fired == [("session_ended", "e2"), ("session_ended", "l2")]


def test_an_idle_user_fires_once_and_is_forgotten_in_the_end() -> None:
    subject = shard()
    run(subject, *views(0))

    assert kinds(run(subject, until_ms=T0_MS + 3 * DAY_MS)) == ["idle"]
    assert run(subject, until_ms=T0_MS + 89 * DAY_MS) == []
    assert kinds(run(subject, until_ms=T0_MS + 90 * DAY_MS)) == ["forget"]


def test_a_user_who_comes_back_is_idle_again_later() -> None:
    subject = shard(rules=RULES._replace(session_ended_min_events=0))
    run(subject, *views(0))
    run(subject, until_ms=T0_MS + 3 * DAY_MS)
    run(subject, event("back", time_ms=T0_MS + 4 * DAY_MS))

    triggers = run(subject, until_ms=T0_MS + 7 * DAY_MS)
    assert [(t.type, t.event_id) for t in triggers if isinstance(t, Trigger)] == [("idle", "back")]


def test_a_duplicate_changes_nothing() -> None:
    subject = shard()
    first = at(0, "e", value=4.0, type="purchase")

    assert column(subject, "purchases_total", first, first, at(1, "f", type="app_open")) == 1


def test_a_duplicate_is_known_within_the_window_of_ids() -> None:
    within = [at(n / 100, f"e{n}") for n in range(REMEMBERED)]
    subject = shard()

    assert column(subject, "views_total", *within, within[0], at(9, "x")) == REMEMBERED + 1


def test_a_late_event_counts_and_does_not_move_the_sessions_end() -> None:
    subject = shard()
    late = at(1, "late")

    assert column(subject, "session_seconds", at(0, "a"), at(10, "b"), late) == 600
    assert run(subject, until_ms=T0_MS + 40 * MINUTE_MS) == []


def test_an_event_of_a_session_that_is_over_counts_for_the_user_alone() -> None:
    subject = shard()
    entries = [at(120, "a"), at(0, "old")]

    [output] = subject.on_batch([batch(entries)])
    context = output.rows[-1].context
    assert context[COLUMN["session_events"]] == 1
    assert context[COLUMN["views_total"]] == 2
    assert context[COLUMN["days_since_first_event"]] == pytest.approx(120 / 1_440)


def test_history_is_in_time_order_and_ends_with_the_newest_fifty() -> None:
    subject = shard(rules=RULES._replace(intent_views=0))
    entries = [at(n / 10, f"e{n}", item_id=f"a{n}") for n in range(60)]
    [trigger] = run(subject, entries[1], entries[0], *entries[2:], until_ms=T0_MS + HOUR_MS)

    assert isinstance(trigger, Trigger)
    assert trigger.history.item_ids == [f"a{n}" for n in range(10, 60)]


def test_consent_and_place_come_with_the_trigger() -> None:
    profile = UserProfile(user_id="u1", timezone="Asia/Shanghai", consent=Consent(push=True))
    entries = [
        profile,
        *(
            event(f"e{n}", time_ms=T0_MS + n, context=EventContext(platform="ios"))
            for n in range(3)
        ),
    ]

    [trigger] = run(shard(), *entries)
    assert isinstance(trigger, Trigger)
    assert (trigger.profile, trigger.platform) == (profile, "ios")
    assert trigger.context[COLUMN["platform_ios"]] == 1.0


def opt_out() -> Feedback:
    return Feedback(feedback_id="f", decision_id="d", user_id="u1", type="opted_out", time_ms=T0_MS)


def test_an_opt_out_lasts_until_consent_is_given_anew() -> None:
    def asked(version: str) -> UserProfile:
        return UserProfile(user_id="u1", consent=Consent(push=True, version=version))

    subject = shard(rules=RULES._replace(intent_views=1))
    [out] = run(subject, asked("1"), opt_out(), at(0, "a"))
    [same] = run(subject, asked("1"), at(40, "b"))
    [anew] = run(subject, asked("2"), at(80, "c"))

    flags = [t.engagement.is_opted_out for t in (out, same, anew) if isinstance(t, Trigger)]
    assert flags == [True, True, False]


def test_feedback_of_a_user_without_events_is_dropped_in_the_end() -> None:
    users = states()
    subject = shard(users)

    assert run(subject, opt_out(), until_ms=T0_MS + 90 * DAY_MS - 1) == []
    assert len(list(users.scan())) == 1
    assert run(shard(users), until_ms=T0_MS + 90 * DAY_MS) == [Forget("u1", "00")]
    assert list(users.scan()) == []


def test_events_that_come_after_their_feedback_fire_as_ever() -> None:
    subject = shard()
    triggers = run(subject, opt_out(), *views(0, 1, 2), until_ms=T0_MS + 90 * DAY_MS)

    assert kinds(triggers) == ["intent", "session_ended", "idle"]
    assert kinds(run(subject, until_ms=T0_MS + 91 * DAY_MS)) == ["forget"]


def test_an_erased_user_leaves_nothing_behind() -> None:
    users = states()
    subject = shard(users)
    run(subject, *views(0, 1))

    assert run(subject, Forget("u1")) == [Forget("u1", "00")]
    assert list(users.scan()) == []
    assert run(subject, until_ms=T0_MS + DAY_MS) == []


def test_a_shard_resumed_from_packed_states_fires_the_same_timers() -> None:
    users = states()
    run(shard(users), *views(0, 1), at(1, "c", type="cart", item_id="a9"))

    resumed = shard(users)
    assert kinds(run(resumed, until_ms=T0_MS + 4 * DAY_MS)) == [
        "cart_left",
        "session_ended",
        "idle",
    ]


def test_a_restart_decodes_no_user_and_hot_users_stay_within_their_bound(tmp_path: Path) -> None:
    def store(run_id: str) -> StateStore[UserState]:
        return StateStore(
            tmp_path,
            "users",
            encode=encode_state,
            decode=decode_state,
            new=new_state,
            run_id=run_id,
            n_workers=1,
            hot_capacity=8,
        )

    def visit(kept: StateStore[UserState], name: str) -> list[int]:
        users = kept.open_shard("00", ref)
        subject = UserShard("00", users, RULES, lambda _: "")
        hot = [kept.n_hot]
        for n in range(100):
            users.touch()
            subject.on_batch([batch([event(f"{name}{n}", f"u{n}", time_ms=T0_MS + n)])])
            hot.append(kept.n_hot)
        refs.append(users.snapshot())
        return [*hot, kept.n_hot]

    ref, refs = None, []
    visit(store("first"), "a")
    [ref] = refs
    before, *during, after = visit(store("second"), "b")

    assert before == 0
    assert max(during) <= 8 * 1.25 + 1
    assert after <= 8


EVENTS = st.lists(
    st.builds(
        lambda minutes, user, kind, item, key: event(
            f"e{key}",
            f"u{user}",
            time_ms=T0_MS + minutes * MINUTE_MS,
            type=kind,
            item_id=f"a{item}",
        ),
        st.integers(0, 300),
        st.integers(0, 2),
        st.sampled_from(["view", "click", "cart", "purchase", "favorite", "app_open"]),
        st.integers(0, 5),
        st.integers(0, 30),
    ),
    max_size=40,
)


@given(EVENTS, st.lists(st.integers(1, 7), min_size=1))
def test_batch_sizes_ticks_and_restarts_change_no_trigger_and_no_state(
    events: list[Event], sizes: list[int]
) -> None:
    whole = batch(events, T0_MS + 10 * DAY_MS)
    users, cut_users = states(), states()
    [expected] = shard(users).on_batch([whole])

    triggers: list[Trigger | Forget] = []
    at_entry = 0
    while at_entry < len(events):
        subject = shard(cut_users)  # a new one each time, as after a crash
        size = sizes[at_entry % len(sizes)]
        part = whole.entries[at_entry : at_entry + size]
        [output] = subject.on_batch(
            [ShardBatch("00", 0, part[-1][0], part), ShardBatch("00", 0, part[-1][0], [])]
        )
        triggers += output.triggers
        at_entry += size
    [output] = shard(cut_users).on_batch([ShardBatch("00", 0, whole.watermark_ms, [])])
    triggers += output.triggers

    assert triggers == expected.triggers
    assert list(cut_users.scan_raw()) == list(users.scan_raw())


@pytest.mark.parametrize("version", [1, 2])
@given(EVENTS, st.integers(0, 40))
def test_a_state_of_an_older_version_goes_on_as_one_of_today(
    version: int, events: list[Event], cut: int
) -> None:
    whole = batch(events, T0_MS + 10 * DAY_MS)
    users = states()
    [expected] = shard(users).on_batch([whole])

    old = states()
    [first] = shard(old).on_batch([ShardBatch("00", 0, 0, whole.entries[:cut])])
    upgraded = _Older(old, version)
    [second] = shard(upgraded).on_batch([whole._replace(entries=whole.entries[cut:])])

    triggers = first.triggers + second.triggers
    assert [undated(t) for t in triggers] == [undated(t) for t in expected.triggers]
    assert [(key, known(state)) for key, state in upgraded.scan()] == [
        (key, known(state)) for key, state in users.scan()
    ]


def undated(trigger: Trigger | Forget) -> Trigger | Forget:
    """A trigger without when items were bought, which older versions did not keep."""
    return trigger._replace(bought_s=()) if isinstance(trigger, Trigger) else trigger


def known(state: UserState) -> UserState:
    assert len(state.bought_s) == len(state.bought)
    return msgspec.structs.replace(state, bought_s=array("I"))


class _Older(DictShard[UserState]):
    """The users of another shard, as an older version packed them."""

    _FIELDS = 34  # of versions 1 and 2; version 1 had no head

    def __init__(self, users: DictShard[UserState], version: int) -> None:
        packed = [(key, self._pack(value, version)) for key, value in users.scan_raw()]
        super().__init__(
            "00", encode=encode_state, decode=decode_state, new=new_state, state=tuple(packed)
        )
        self._old = packed

    def _pack(self, packed: bytes, version: int) -> bytes:
        fields = msgspec.msgpack.decode(packed[HEAD_BYTES:])[: self._FIELDS]
        head = b"" if version == 1 else packed[1:HEAD_BYTES]
        return bytes([version]) + head + msgspec.msgpack.encode(fields)

    def scan_raw(self) -> Iterator[tuple[str, bytes]]:
        return iter(self._old)
