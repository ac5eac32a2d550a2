"""What was written before a crash: found by trigger, once, within a bound."""

from operators.codec import encode
from operators.emitted import Emitted
from operators.messages import Decision, TriggerRef
from tests.conftest import T0_MS, decision
from tests.operators.test_decider import trigger


def written(event_id: str = "e1", **fields: object) -> Decision:
    return decision(f"d-{event_id}", "u1", trigger=TriggerRef("intent", event_id), **fields)


def test_a_trigger_that_comes_again_finds_its_decision_once() -> None:
    emitted = Emitted([encode(written("e1")), encode(written("e2"))])

    assert emitted.take(trigger("e2")) == written("e2")
    assert emitted.take(trigger("e2")) is None
    assert len(emitted) == 1


def test_another_trigger_finds_nothing() -> None:
    emitted = Emitted([encode(written())])

    others = [
        trigger("e2"),
        trigger(at_ms=1),
        trigger(type="cart_left"),
        trigger(user_id="u2"),
    ]
    assert [emitted.take(other) for other in others] == [None] * 4
    assert emitted.take(trigger()) is not None


def test_the_oldest_go_where_they_are_too_many() -> None:
    values = [encode(written(f"e{n}", decided_at=T0_MS)) for n in range(9)]
    emitted = Emitted(values, max_bytes=3 * (len(values[0]) + 500))

    kept = [n for n in range(9) if emitted.take(trigger(f"e{n}")) is not None]
    assert (kept, emitted.n_dropped) == ([6, 7, 8], 6)


def test_what_cannot_be_read_is_passed_over() -> None:
    half = encode(written()).replace(b'"outcome":"send"', b'"outcome":"sent"')
    emitted = Emitted([None, b"\xff", b"{}", half])

    assert len(emitted) == 1  # its trigger can be read
    assert emitted.take(trigger()) is None
