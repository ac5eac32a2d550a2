"""Killed at any moment, `catalog` tells each user of each change once."""

from collections import Counter

import msgspec
import pytest

from operators.hops import RawMessage
from operators.messages import Item, UserSignal
from tests.conftest import T0_MS, event
from tests.system.harness import EVENTS, Stage, as_messages, total, wait

pytestmark = [pytest.mark.system, pytest.mark.slow]

N_ITEMS, N_USERS, N_ROUNDS = 30, 40, 2
MINUTE_MS = 60_000
# No checkpoint between a change and the kill after it: all that was told is told again.
_LONG_EPOCH = {"PUSHFLOW_STATE__EPOCH_SECONDS": "60"}
_TOUCHED, _SKIPPED = "pushflow_state_touched_total", "pushflow_sink_skipped_total"


def items(round_: int) -> list[RawMessage]:
    """Every item, a tenth cheaper in each round."""
    time_ms = T0_MS + round_ * MINUTE_MS
    rows = [
        Item(item_id=f"i{n}", title=f"Lamp {n}", price=100 * 0.9**round_) for n in range(N_ITEMS)
    ]
    return [
        RawMessage("push.items.v1", 0, 0, row.item_id.encode(), msgspec.json.encode(row), time_ms)
        for row in rows
    ]


def views() -> list[RawMessage]:
    """Every user looks at every third item."""
    rows = [
        event(f"e{user}-{n}", f"u{user}", item_id=f"i{n}")
        for user in range(N_USERS)
        for n in range(user % 3, N_ITEMS, 3)
    ]
    return as_messages(EVENTS, [(row.time_ms, row) for row in rows])


def who_and_what(message: RawMessage) -> tuple[str, str | None, int]:
    signal = msgspec.json.decode(message.value or b"", type=UserSignal)
    return signal.user_id, signal.item_id, signal.time_ms


def test_kills_of_catalog_tell_each_user_of_each_change_once(one_stage: Stage) -> None:
    stage = one_stage
    found = stage.collect("push.user-signals.v1", who_and_what)
    stage.send(items(0))
    stage.send(views())
    expected = {
        (f"u{user}", f"i{n}", T0_MS + round_ * MINUTE_MS)
        for round_ in range(1, N_ROUNDS + 1)
        for user in range(N_USERS)
        for n in range(user % 3, N_ITEMS, 3)
    }

    [child] = stage.start("catalog")
    # In a checkpoint, and so behind no later change of an item.
    assert wait("interest", lambda: total(child, _TOUCHED, "interest") >= N_ITEMS, [child])
    assert child.stop() == 0
    [child] = stage.start("catalog", **_LONG_EPOCH)
    n_skipped = 0
    for round_ in range(1, N_ROUNDS + 1):
        n_before = len(found.rows)
        stage.send(items(round_))
        assert wait("signals", lambda n=n_before: len(found.rows) > n, [child])  # type: ignore[misc]
        child.kill()
        [child] = stage.start("catalog", **_LONG_EPOCH)
        enough = len(expected) // N_ROUNDS * round_
        assert wait("the rest", lambda n=enough: len(found.rows) >= n, [child])  # type: ignore[misc]
        n_skipped += int(total(child, _SKIPPED))

    assert child.stop() == 0
    rows = Counter(found.close())
    assert rows.keys() == expected
    assert set(rows.values()) == {1}
    assert n_skipped > 0  # kills left signals behind that no snapshot knew of
