"""Timers fire by due time, then by user_id, however they were armed."""

from hypothesis import given
from hypothesis import strategies as st

from operators.packed import Armed, head
from operators.timers import NEVER_MS, PartitionTimers, load_timers

DUES = st.integers(1, 1 << 45)
USERS = st.sampled_from(["", "a", "ab", "b", "é", "日本", "\U0001f600", "\uffff", "long" * 32])


def drained(timers: PartitionTimers) -> list[tuple[int, str]]:
    return [timers.pop() for _ in range(len(timers))]


@given(st.lists(st.tuples(DUES, USERS)))
def test_timers_come_in_the_order_of_pairs(armed: list[tuple[int, str]]) -> None:
    timers = PartitionTimers()
    firsts = []
    for due_ms, user_id in armed:
        timers.put(due_ms, user_id)
        firsts.append(timers.first_ms)

    assert firsts == [min(due for due, _ in armed[: n + 1]) for n in range(len(armed))]
    assert drained(timers) == sorted(armed)
    assert timers.first_ms == NEVER_MS


@given(st.lists(st.tuples(USERS, st.builds(Armed, DUES | st.just(0), DUES, st.integers(0, 2)))))
def test_a_restart_arms_what_the_heads_say(rows: list[tuple[str, Armed]]) -> None:
    packed = [(user_id, head(7, armed) + b"body") for user_id, armed in rows]
    found = load_timers(packed, 7, lambda _: Armed(0, 0, 0))

    expected = [
        (armed.partition, due_ms, user_id)
        for user_id, armed in rows
        for due_ms in (armed.soon_ms, armed.later_ms)
        if due_ms
    ]
    assert [(p, *timer) for p in sorted(found) for timer in drained(found[p])] == sorted(expected)


def test_states_of_other_versions_are_read_by_who_knows_them() -> None:
    rows = [("old", b"\x01..."), ("new", head(2, Armed(0, 30, 4)))]
    found = load_timers(rows, 2, lambda packed: Armed(10, 20, packed[0]))

    assert {p: drained(timers) for p, timers in found.items()} == {
        1: [(10, "old"), (20, "old")],
        4: [(30, "new")],
    }


def test_a_user_taken_out_leaves_the_others() -> None:
    timers = PartitionTimers()
    for due_ms, user_id in ((1, "a"), (2, "ab"), (3, "a")):
        timers.put(due_ms, user_id)
    timers.drop("a")

    assert (timers.first_ms, drained(timers)) == (2, [(2, "ab")])
