import io
import json
from pathlib import Path

import msgspec
import numpy as np
import orjson
import pytest
from rich.console import Console

from flows.children import ChildError, Counting, FlowProcess, counters
from flows.report import Run, curve, plot, summary, table
from flows.tally import Counters, Rate, Tally, lift
from flows.view import Frame, View
from operators.messages import Decision, Feedback, TriggerRef
from tests.conftest import T0_MS, decision, event

RUN = Run(seed=3, users=10, seconds=20.0, simulated_s=86_400.0, exit_codes=(0, 0))
REQUIRED = {
    "events_sent", "events_decoded", "dead_letters", "triggers", "decisions", "lost",
    "duplicates", "open_rate_policy", "open_rate_random", "lift", "p50_ms", "p99_ms",
    "events_per_second",
}  # fmt: skip


def sent(number: int, arm: str, decided_at: int = T0_MS) -> Decision:
    """Return a decision of an arm to send."""
    base = decision(f"d{number}", f"u{number}", decided_at=decided_at)
    learning = msgspec.structs.replace(base.learning, arm=arm)
    return msgspec.structs.replace(base, learning=learning)


def opened(number: int) -> Feedback:
    """Return the open of decision `number`."""
    return Feedback(
        feedback_id=f"f{number}",
        decision_id=f"d{number}",
        user_id=f"u{number}",
        type="opened",
        time_ms=T0_MS + 1_000,
    )


@pytest.fixture
def tally() -> Tally:
    """Ten sends of the policy with four opens, ten of random with two, one held out."""
    books = Tally(warm_up_s=5.0)
    for number in range(20):
        arm = "policy" if number < 10 else "random"
        books.on_decision(sent(number, arm, T0_MS + number * 3_600_000), at_s=6.0)
    for number in (0, 1, 8, 9, 10, 19):
        books.on_feedback(opened(number))
    held = msgspec.structs.replace(decision("d20", "u20"), outcome="holdout", content=None)
    books.on_decision(held, at_s=6.0)
    return books


def test_a_decision_read_twice_is_a_duplicate_and_counts_once() -> None:
    books = Tally()

    first, second = (books.on_decision(sent(1, "policy"), at_s=1.0) for _ in range(2))

    assert (first, second) == (True, False)
    assert (books.n_decisions, books.duplicates, books.rate("policy").sends) == (1, 1, 1)


def test_two_opens_of_one_decision_count_once() -> None:
    books = Tally()
    books.on_decision(sent(1, "policy"), at_s=1.0)

    books.on_feedback(opened(1))
    books.on_feedback(opened(1))

    assert books.rate("policy") == Rate(1, 1)


def test_open_rates_are_by_arm_and_the_late_ones_of_the_later_half(tally: Tally) -> None:
    assert tally.rate("policy") == Rate(10, 4)
    assert tally.rate("random") == Rate(10, 2)
    assert tally.late_rate("policy") == Rate(5, 2)
    assert tally.late_rate("random") == Rate(5, 1)


def test_latency_is_of_intents_after_the_warm_up_from_the_first_sending() -> None:
    books = Tally(warm_up_s=5.0)
    books.on_event(event("e1"), at_s=6.0)
    books.on_event(event("e1"), at_s=6.5)  # a duplicate caused nothing
    idle = msgspec.structs.replace(decision("d2"), trigger=TriggerRef("idle", "e1"))

    books.on_decision(decision("d0"), at_s=4.9)
    books.on_decision(decision("d1"), at_s=6.030)
    books.on_decision(idle, at_s=9.0)

    assert books.n_latencies == 1
    assert books.latency_ms(50) == pytest.approx(30.0)


def test_purchases_are_told_apart_by_who_was_held_out(tally: Tally) -> None:
    for number in (0, 1, 20):
        bought = event(f"p{number}", f"u{number}", type="purchase", value=9.0)
        tally.on_event(bought, at_s=7.0)
        tally.on_event(bought, at_s=7.1)  # sent twice

    assert tally.purchases_per_user() == (pytest.approx(2 / 20), 1.0)


def test_report_has_the_promised_fields_and_is_json(tally: Tally) -> None:
    found = summary(RUN, tally, Counters(triggers=22, decoded_events=5, dead_letters=2))

    again = json.loads(orjson.dumps(found))
    assert again == found
    assert set(found) >= REQUIRED
    assert found["lost"] == 1  # 22 triggers, 21 decisions
    assert found["decisions"] == {"holdout": 1, "send": 20}
    assert found["open_rate_policy"] == pytest.approx(0.4)
    assert found["lift"] == pytest.approx(1.0)


def test_report_of_a_run_in_which_nothing_happened_has_nulls_and_no_error() -> None:
    found = summary(RUN._replace(seconds=0.0), Tally(), Counters())

    assert found["open_rate_policy"] is None
    assert found["lift"] is found["p99_ms"] is found["events_per_second"] is None
    Console(file=io.StringIO()).print(table(found))


def test_interval_of_the_lift_holds_the_truth_and_narrows_with_sends() -> None:
    few, many = (lift(Rate(20 * n, 4 * n), Rate(20 * n, 2 * n), seed=1) for n in (10, 100))

    assert few[0] == many[0] == pytest.approx(1.0)
    assert few[1] is not None
    assert many[1] is not None
    assert few[1][0] < many[1][0] < 1.0 < many[1][1] < few[1][1]


def test_lift_without_opens_of_random_is_unknown() -> None:
    assert lift(Rate(10, 5), Rate(10, 0), seed=1) == (None, None)


def test_the_picture_is_drawn_with_and_without_sends(tally: Tally, tmp_path: Path) -> None:
    plot(tally, tmp_path / "full.png", "full")
    plot(Tally(), tmp_path / "empty.png", "empty")

    sizes = [(tmp_path / name).stat().st_size for name in ("full.png", "empty.png")]
    assert sizes[0] > sizes[1] > 1_000


def test_the_curve_goes_by_event_time_not_by_the_order_of_reading() -> None:
    books = Tally()
    books.on_decision(sent(1, "policy", T0_MS + 7_200_000), at_s=1.0)
    books.on_decision(sent(2, "policy", T0_MS), at_s=1.1)
    books.on_feedback(opened(1))

    hours, marks = curve(books, "policy")

    assert (hours.tolist(), marks.tolist()) == ([0.0, 2.0], [0.0, 1.0])
    assert hours.dtype == np.float64


def test_without_a_terminal_there_is_one_plain_line_every_five_seconds(tally: Tally) -> None:
    out = io.StringIO()
    with View(tally, Console(file=out), "Kafka at here") as view:
        for tenth in range(120):
            view.update(Frame(tenth / 10, 12.0, T0_MS, Counters(triggers=21)))

    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert "policy 40.0% random 20.0%" in lines[-1]


def test_a_terminal_shows_arms_and_reasons_side_by_side(tally: Tally) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=140, height=40)
    with View(tally, console, "Kafka at here") as view:
        view.update(Frame(1.0, 12.0, T0_MS, Counters(triggers=21)))

    text = out.getvalue()
    assert all(word in text for word in ("opens, policy", "opens, random", "holdout", "triggers"))


def test_counters_come_from_each_flow_by_name_and_label() -> None:
    def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
        return name, frozenset(labels.items())

    decide = {
        key("pushflow_messages_decoded_total", topic="push.events.v1"): 10.0,
        key("pushflow_messages_decoded_total", topic="push.feedback.v1"): 4.0,
        key("pushflow_messages_decoded_total", topic="push.items.v1"): 99.0,
        key("pushflow_triggers_total", type="idle"): 1.0,
        key("pushflow_triggers_total", type="intent"): 2.0,
    }
    learn = {key("pushflow_rewards_total", kind="reward"): 5.0}

    assert counters(decide, learn) == Counters(
        decoded_events=10, decoded_feedback=4, triggers=3, rewards=5
    )


def test_a_flow_that_cannot_start_stops_the_demo_with_the_end_of_its_log(tmp_path: Path) -> None:
    child = FlowProcess("decide", {"PUSHFLOW_KAFKA__PARTITIONS": "no number"}, tmp_path)

    with pytest.raises(ChildError, match=r"decide has ended[\s\S]*partitions"):
        child.wait_ready(60)

    assert child.stop() != 0
    assert child.samples() == {}
    counting = Counting(child, child)
    counting.close()
    assert counting.latest == Counters()
