"""operators.fatigue: counts around an instant, bounds, and the state's bytes."""

from hypothesis import given
from hypothesis import strategies as st

from operators.fatigue import (
    KEEP_MS,
    MAX_SENDS,
    NEVER_DAYS,
    NEVER_HOURS,
    UNKNOWN,
    PushState,
    decode_state,
    encode_state,
    new_state,
)
from tests.conftest import T0_MS

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

hours = st.integers(0, 200)
sends = st.lists(st.tuples(hours, st.sampled_from("abc")), max_size=40)


def sent(*times_ms: int) -> PushState:
    state = new_state("u1")
    for time_ms in times_ms:
        state.record_send(time_ms, f"i{time_ms % 7}")
    return state


def test_sends_out_of_order_are_sorted() -> None:
    state = sent(T0_MS + 5, T0_MS, T0_MS + 3)
    assert [time_ms - T0_MS for time_ms, _ in state.sends] == [0, 3, 5]


def test_order_of_recording_makes_no_difference() -> None:
    one, two = new_state("u1"), new_state("u1")
    one.record_send(T0_MS, "b")
    one.record_send(T0_MS, "a")
    two.record_send(T0_MS, "a")
    two.record_send(T0_MS, "b")
    assert encode_state(one) == encode_state(two)


@given(sends)
def test_state_comes_back_from_its_bytes(pairs: list[tuple[int, str]]) -> None:
    state = new_state("u1")
    for hour, item_id in pairs:
        state.record_send(T0_MS + hour * HOUR_MS, item_id)
    assert decode_state(encode_state(state)) == state


def test_old_sends_are_dropped_by_event_time() -> None:
    state = sent(T0_MS, T0_MS + 1, T0_MS + KEEP_MS + 1)
    assert [time_ms - T0_MS for time_ms, _ in state.sends] == [1, KEEP_MS + 1]


def test_state_stays_within_its_bound() -> None:
    state = sent(*(T0_MS + i for i in range(1_000)))
    assert len(state.sends) == MAX_SENDS
    assert state.sends[-1][0] == T0_MS + 999
    assert len(encode_state(state)) < 1_500


def test_window_of_exactly_24_hours_is_outside() -> None:
    state = sent(T0_MS)
    assert state.pushes_since(T0_MS + DAY_MS - 1, DAY_MS) == 1
    assert state.pushes_since(T0_MS + DAY_MS, DAY_MS) == 0
    assert state.most_in_window(T0_MS + DAY_MS - 1, DAY_MS) == 1
    assert state.most_in_window(T0_MS + DAY_MS, DAY_MS) == 0


def test_sends_planned_ahead_count() -> None:
    state = sent(T0_MS + 8 * HOUR_MS)
    assert state.pushes_since(T0_MS, DAY_MS) == 1
    assert state.most_in_window(T0_MS, DAY_MS) == 1
    assert state.nearest_gap_ms(T0_MS) == 8 * HOUR_MS
    assert state.hours_since_push(T0_MS) == 0.0


@given(sends, hours, st.integers(1, 100))
def test_most_in_window_is_that_of_every_window_tried(
    pairs: list[tuple[int, str]], at: int, window: int
) -> None:
    state = PushState(sorted(pairs))
    tried = [
        sum(start <= time < start + window for time, _ in pairs)
        for start in range(at - window + 1, at + 1)
    ]
    assert state.most_in_window(at, window) == max(tried)


@given(sends, hours)
def test_nearest_gap_is_that_of_all_sends(pairs: list[tuple[int, str]], at: int) -> None:
    expected = min((abs(at - time) for time, _ in pairs), default=None)
    assert PushState(sorted(pairs)).nearest_gap_ms(at) == expected


def test_counts_that_may_miss_dropped_sends_are_the_largest() -> None:
    full = sent(*(T0_MS + i * HOUR_MS for i in range(MAX_SENDS + 1)))
    oldest = full.sends[0][0]
    assert full.most_in_window(oldest + DAY_MS, DAY_MS) < UNKNOWN
    assert full.most_in_window(oldest + DAY_MS - 1, DAY_MS) == UNKNOWN
    assert full.pushes_since(oldest + DAY_MS - 1, DAY_MS) == MAX_SENDS
    late = sent(T0_MS)
    assert late.most_in_window(T0_MS - KEEP_MS + DAY_MS - 1, DAY_MS) == UNKNOWN


def test_hours_since_push_ends_at_its_bound() -> None:
    assert new_state("u1").hours_since_push(T0_MS) == NEVER_HOURS
    assert sent(T0_MS).hours_since_push(T0_MS + 90 * 60_000) == 1.5
    assert sent(T0_MS).hours_since_push(T0_MS + 40 * DAY_MS) == NEVER_HOURS


def test_item_fatigue_counts_by_item_and_takes_the_newest() -> None:
    state = PushState([(T0_MS, "a"), (T0_MS + DAY_MS, "b"), (T0_MS + 2 * DAY_MS, "a")])
    times_pushed, days_since = state.item_fatigue(["b", "c", "a"], T0_MS + 3 * DAY_MS)
    assert times_pushed.tolist() == [1.0, 0.0, 2.0]
    assert days_since.tolist() == [2.0, NEVER_DAYS, 1.0]


def test_item_fatigue_forgets_after_35_days_and_takes_planned_sends_as_now() -> None:
    state = PushState([(T0_MS, "a")])
    assert state.item_fatigue(["a"], T0_MS - HOUR_MS)[1].tolist() == [0.0]
    times_pushed, days_since = state.item_fatigue(["a"], T0_MS + KEEP_MS)
    assert (times_pushed.tolist(), days_since.tolist()) == ([0.0], [NEVER_DAYS])


def test_item_fatigue_of_no_items_has_shape_zero() -> None:
    times_pushed, days_since = sent(T0_MS).item_fatigue([], T0_MS)
    assert times_pushed.shape == days_since.shape == (0,)


def test_items_since_leaves_out_the_window_start() -> None:
    state = PushState([(T0_MS, "a"), (T0_MS + 1, "b")])
    assert state.items_since(T0_MS + 10, 10) == {"b"}
