"""Online-retail through the whole job: `decide` and `learn` on Kafka, and what it would push.

Counts  rows sent, decoded and refused, by reason; triggers and decisions; lost and twice.
Asks    of every decision after the cut: is the item it chose in the customer's next invoice, and
        how many of its ten best arms? Beside it, at the same moments, the ten most popular items
        (decayed over a week) and the ten best of the item-to-item neighbours alone.
Leaves out latency (see `bench.path`): the shop's ten months pass in a few minutes.

    python -m bench.retail [--path CSV] [--cut 2011-06-01] [--epochs 3] [--baskets] [--limit N]

The loop is closed with what the customers really did: where the item of a push is in the
customer's next invoice, `converted` is sent when that invoice comes, and silence is worth 0. It
says nothing of what a push would have caused; it lets the policy learn what is bought next.

A student is trained on what is before the cut. All lists leave out what the customer bought
lately (`bought`, 200 items), as the job does: it recommends new items. Ties go by item_id. The
decisions are of a session's end, so the next invoice is a later one of the same customer.

Data: Chen, Sain and Guo 2012 (see ../shared/data/README.md).
"""

import argparse
import base64
import contextlib
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.progress import track

from bench.next_invoice import Invoices, invoices_of, judge, lists, next_invoice
from flows import recorded, replay, teach, training
from flows.children import Counting, FlowProcess, kafka_variables
from flows.settings import Settings
from models.train import TrainConfig
from operators.codec import encode
from operators.embedded import EmbeddedBroker
from operators.kafka_admin import touch_topics
from operators.kafka_sink import Writer
from operators.kafka_tables import Reader
from operators.messages import (
    TOPICS,
    Campaign,
    Caps,
    DeadLetter,
    Decision,
    Experiment,
    Feedback,
    Template,
)

CSV: Final = Path("../shared/data/online-retail/online_retail.csv.gz")
_MAX_BEHIND: Final = 10_000  # the embedded broker keeps about 5 MB a partition
_WINDOW_DAYS: Final = 60  # half of the customers who come back do so within 40


def campaign() -> Campaign:
    """Return a campaign that answers every session's end, so that each invoice is measured."""
    return Campaign(
        campaign_id="next-invoice",
        trigger="session_ended",
        templates={"en": Template(title="For your next order", body="{item_title}")},
        quiet_hours=None,
        caps=Caps(per_day=1_000, per_week=1_000, min_gap_seconds=0, same_item_days=0),
        experiment=Experiment(holdout=0.0, arms={}),
    )


class Sink:
    """Reads decisions and dead letters in a thread, for the broker does not keep them long."""

    def __init__(self, client: dict[str, Any]) -> None:
        self._reader = Reader(client, ["push.decisions.v1", "push.dlq.v1"])
        self.decisions: list[Decision] = []
        self.dead: list[DeadLetter] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        decisions = msgspec.json.Decoder(Decision)
        letters = msgspec.json.Decoder(DeadLetter)
        while not self._stop.is_set():
            for message in self._reader.read(1_000, 0.05):
                value = message.value or b""
                if message.topic == "push.dlq.v1":
                    self.dead.append(letters.decode(value))
                else:
                    self.decisions.append(decisions.decode(value))

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join()
        self._reader.close()


@contextlib.contextmanager
def stage(work: Path, model: Path, recording: recorded.Recording) -> Iterator[tuple[Any, ...]]:
    """Hold a broker with full tables, `decide` and `learn`."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(EmbeddedBroker()).client
        touch_topics(client, list(TOPICS))
        writer = Writer(client)
        for record in (*recording.items, *recording.users):
            writer.send(record.topic, record.key, record.value)
        row = campaign()
        writer.send("push.campaigns.v1", row.campaign_id, encode(row))
        card = training.card_of(model, "retail")
        writer.send("push.models.v1", card.name, encode(card))
        writer.flush()
        values = {
            **kafka_variables(client),
            "PUSHFLOW_STATE__DIRECTORY": str(work / "state"),
            "PUSHFLOW_REDIS__URL": "",
            "PUSHFLOW_REWARDS__NO_RESPONSE": "0",
            "PUSHFLOW_REWARDS__WINDOW_SECONDS": str(_WINDOW_DAYS * 86_400),
            "OMP_NUM_THREADS": "1",
        }
        children = [FlowProcess(name, values, work) for name in ("decide", "learn")]
        for child in children:
            stack.callback(child.stop)
            child.wait_ready(90)
        counting = Counting(*children)
        stack.callback(counting.close)
        sink = Sink(client)
        stack.callback(sink.close)
        yield writer, children, counting, sink


class Customers:
    """What customers do about a push, from their own later invoices."""

    def __init__(self, invoices: Invoices) -> None:
        self._invoices = invoices
        self._due: list[tuple[int, str, str]] = []  # (time, decision_id, user_id)
        self._n_seen = 0

    def see(self, decisions: list[Decision]) -> None:
        """Note what will come of decisions that are new in the list."""
        new, self._n_seen = decisions[self._n_seen :], len(decisions)
        for decision in new:
            following = next_invoice(self._invoices, decision.user_id, decision.decided_at)
            pushed = decision.content.item_id if decision.content else ""
            if decision.outcome == "send" and following and pushed in following[1]:
                heappush(self._due, (following[0], decision.decision_id, decision.user_id))

    def answers(self, until_ms: int) -> Iterator[Feedback]:
        """Yield the feedback that is due."""
        while self._due and self._due[0][0] <= until_ms:
            time_ms, decision_id, user_id = heappop(self._due)
            yield Feedback(
                feedback_id=f"{decision_id}-converted",
                decision_id=decision_id,
                user_id=user_id,
                type="converted",
                time_ms=time_ms,
            )


def send(
    recording: recorded.Recording,
    pace: replay.Pace,
    on: tuple[Any, ...],
    customers: Customers,
    console: Console,
) -> tuple[int, float]:
    """Replay the events as fast as both flows keep up; return how many, and seconds."""
    writer, children, counting, sink = on
    began, n_sent = time.monotonic(), 0
    for record in track(
        replay.choose(recording.events(), pace), "replaying", total=None, console=console
    ):
        writer.send(record.topic, record.key, record.value, timestamp_ms=record.time_ms)
        n_sent += 1
        if n_sent % 200 == 0:
            customers.see(sink.decisions)
            for answer in customers.answers(record.time_ms):
                value, stamp = encode(answer), answer.time_ms
                writer.send("push.feedback.v1", answer.user_id, value, timestamp_ms=stamp)
        if n_sent % 1_000 == 0:
            while n_sent - _slowest(children, counting) > _MAX_BEHIND:
                time.sleep(0.02)
    writer.flush()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        counters = counting.look()
        is_read = counters.decoded_events + counters.dead_letters >= n_sent
        if is_read and len(sink.decisions) >= counters.triggers:
            break
        time.sleep(0.1)
    return n_sent, time.monotonic() - began


def _slowest(children: list[FlowProcess], counting: Counting) -> int:
    counting.look()
    seen = []
    for child in children:
        child.check()
        counts = [0.0, 0.0]
        for (name, labels), value in child.samples().items():
            of_events = any(text.endswith("push.events.v1") for _, text in labels)
            counts[0] += value if name == "pushflow_messages_decoded_total" and of_events else 0
            counts[1] += value if name == "pushflow_dead_letters_total" else 0
        seen.append(int(sum(counts)))
    return min(seen)


def account(n_sent: int, seconds: float, on: tuple[Any, ...]) -> dict[str, Any]:
    """Return the books: every row is an event or a dead letter, every trigger has a decision."""
    _writer, _children, counting, sink = on
    counters = counting.look()
    ids = Counter(decision.decision_id for decision in sink.decisions)
    reasons = Counter(letter.reason for letter in sink.dead)
    no_customer = sum(b'"user_id":null' in base64.b64decode(letter.payload) for letter in sink.dead)
    return {
        "rows": n_sent,
        "seconds": round(seconds, 1),
        "events_decoded": counters.decoded_events,
        "dead_letters": len(sink.dead),
        "dead_by_reason": dict(reasons),
        "rows_without_customer": no_customer,
        "rows_unaccounted": n_sent - counters.decoded_events - len(sink.dead),
        "triggers": counters.triggers,
        "decisions": len(ids),
        "lost": counters.triggers - len(ids),
        "duplicates": sum(ids.values()) - len(ids),
        "rewards": counters.rewards,
    }


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(prog="python -m bench.retail", description=__doc__)
    parser.add_argument("--path", type=Path, default=CSV)
    parser.add_argument("--cut", default="2011-06-01")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--baskets", action="store_true", help="train for the next invoice")
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    console = Console(stderr=True)
    recording = recorded.retail(options.path)
    cut_ms = replay.parse_time(options.cut)
    events = list(training.recorded_events(recording))[: options.limit]
    invoices = invoices_of(events)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _, trained = teach.teach(
            Settings(),
            training.recorded_events(recording, options.cut),
            training.recorded_items(recording),
            work / "student.pfm",
            config=TrainConfig(epochs=options.epochs, baskets=options.baskets),
            seed=1,
            console=console,
        )
        with stage(work, work / "student.pfm", recording) as on:
            pace = replay.Pace(limit=options.limit)
            n_sent, seconds = send(recording, pace, on, Customers(invoices), console)
            books = account(n_sent, seconds, on)
            decisions = list(on[3].decisions)
    found = lists(decisions, events, recording, cut_ms, console)
    rates = judge(found, invoices)
    out = Console()
    for name, value in {**books, **rates}.items():
        out.print(f"{name:28} {value}", highlight=False)
    ndcg = {f"student_{k}": round(v, 4) for k, v in trained.items() if "@10" in k}
    print(json.dumps({"bench": "retail", **books, **rates, **ndcg}))


if __name__ == "__main__":
    main()
