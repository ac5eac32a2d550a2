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
from collections import Counter, defaultdict
from collections.abc import Iterator
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from rich.console import Console
from rich.progress import track

from flows import decide, learn, recorded, replay, teach, training
from flows.children import Counting, FlowProcess, kafka_variables
from flows.settings import Settings
from models.train import TrainConfig
from operators import item_stats
from operators.attribution import Attribution
from operators.attribution_state import decode_state as decode_attribution
from operators.attribution_state import encode_state as encode_attribution
from operators.attribution_state import new_state as new_attribution
from operators.candidates import CandidateGenerator
from operators.catalogue import Catalogue
from operators.codec import encode
from operators.embedded import EmbeddedBroker
from operators.hops import ItemSignal, ShardBatch, Trigger
from operators.item_stats import InteractionTracker, ItemStatsShard
from operators.kafka_admin import touch_topics
from operators.kafka_sink import Writer
from operators.kafka_tables import Reader
from operators.learning import LearningUsers
from operators.messages import (
    TOPICS,
    Campaign,
    Caps,
    DeadLetter,
    Decision,
    Event,
    Experiment,
    Feedback,
    Template,
)
from operators.shards import DictShard
from operators.user_state import decode_state, encode_state, new_state
from operators.users import UserShard

CSV: Final = Path("../shared/data/online-retail/online_retail.csv.gz")
TOP: Final = 10
_MAX_BEHIND: Final = 10_000  # the embedded broker keeps about 5 MB a partition
_DAY_MS: Final = 86_400_000
_WINDOW_DAYS: Final = 60  # half of the customers who come back do so within 40

Invoices = dict[str, list[tuple[int, frozenset[str]]]]  # user -> (time, items), by time


class Lists(NamedTuple):
    """What each method would show at one decision."""

    user_id: str
    time_ms: int
    pushed: str  # "" where nothing was sent
    job: list[str]
    neighbours: list[str]
    popular: list[str]


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
            following = _next_invoice(self._invoices, decision.user_id, decision.decided_at)
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


def _next_invoice(
    invoices: Invoices, user_id: str, after_ms: int
) -> tuple[int, frozenset[str]] | None:
    return next((row for row in invoices[user_id] if row[0] > after_ms), None)


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


def invoices_of(events: list[Event]) -> Invoices:
    """Return each customer's invoices with the items bought."""
    found: dict[tuple[str, str], tuple[int, set[str]]] = {}
    for event in events:
        if event.type == "purchase" and event.item_id and event.props:
            key = (event.user_id, str(event.props["basket"]))
            found.setdefault(key, (event.time_ms, set()))[1].add(event.item_id)
    by_user: Invoices = defaultdict(list)
    for (user, _), (time_ms, items) in found.items():
        by_user[user].append((time_ms, frozenset(items)))
    for rows in by_user.values():
        rows.sort(key=lambda row: row[0])
    return by_user


class Baselines:
    """The neighbours alone and the popular items, as they stood at each trigger.

    The job's own code, in one process: statistics are refreshed after each day of event time.
    """

    def __init__(self, recording: recorded.Recording, settings: Settings) -> None:
        self._catalogue = Catalogue()
        for item in training.recorded_items(recording):
            self._catalogue.apply(item.item_id, item)
        self._catalogue.refresh()
        self._one = {
            name: CandidateGenerator(self._catalogue, weights={source: 1.0}, limit=TOP)
            for name, source in (("neighbours", "neighbour"), ("popular", "trend"))
        }
        users = DictShard("00", encode=encode_state, decode=decode_state, new=new_state)
        self._users = UserShard("00", users, decide.rules(settings), self._catalogue.category_of)
        learning = DictShard(
            "00", encode=encode_attribution, decode=decode_attribution, new=new_attribution
        )
        self._learning = LearningUsers(
            Attribution(learning, learn.reward_rules(settings)),
            InteractionTracker(gap_ms=settings.time.session_gap_seconds * 1_000),
        )
        states = DictShard(
            "00",
            encode=item_stats.encode_state,
            decode=item_stats.decode_state,
            new=item_stats.new_state,
        )
        self._stats = ItemStatsShard(states)
        self._refreshed_ms = 0

    def triggers(self, event: Event) -> Iterator[tuple[Trigger, dict[str, list[str]]]]:
        """Fold in one event; yield each trigger with what the baselines would show."""
        stamp = event.time_ms - 10_000
        batch = ShardBatch("00", 0, stamp, [(stamp, event)])
        if event.time_ms - self._refreshed_ms > _DAY_MS:
            self._refreshed_ms = event.time_ms
            for row in self._stats.dirty():
                self._catalogue.apply_stats(row)
            self._catalogue.refresh()
        [output] = self._users.on_batch([batch])
        for trigger in output.triggers:
            if isinstance(trigger, Trigger) and trigger.type == "session_ended":
                yield (
                    trigger,
                    {
                        name: [c.item_id for c in one.generate(trigger)]
                        for name, one in self._one.items()
                    },
                )
        for signal in self._learning.on_batch([batch]):
            if isinstance(signal, ItemSignal):
                self._stats.on_signal(signal)


def lists(
    decisions: list[Decision],
    events: list[Event],
    recording: recorded.Recording,
    cut_ms: int,
    console: Console,
) -> list[Lists]:
    """Return what each method shows at every decision after the cut."""
    decided = {(d.user_id, d.decided_at): d for d in decisions if len(d.learning.action_set) > 1}
    baselines = Baselines(recording, Settings())
    out = []
    for event in track(events, "baselines", console=console):
        for trigger, shown in baselines.triggers(event):
            decision = decided.get((trigger.user_id, trigger.time_ms))
            if trigger.time_ms < cut_ms or decision is None:
                continue
            # The action set is in the order of the student and the sources, fused.
            job = [action.item_id for action in decision.learning.action_set[:-1]][:TOP]
            pushed = decision.content.item_id if decision.content else ""
            out.append(Lists(trigger.user_id, trigger.time_ms, pushed, job, **shown))
    return out


def judge(found: list[Lists], invoices: Invoices) -> dict[str, float]:
    """Return hits in the customers' next invoices."""
    sums: Counter[str] = Counter()
    for row in found:
        following = _next_invoice(invoices, row.user_id, row.time_ms)
        if following is None:
            continue
        bought = following[1]
        sums["cases"] += 1
        if row.pushed:
            sums["pushed"] += 1
            sums["pushed_hits"] += row.pushed in bought
        for name in ("job", "neighbours", "popular"):
            items = getattr(row, name)
            hits = len(bought.intersection(items))
            sums[f"{name}_any"] += hits > 0
            sums[f"{name}_hits"] += hits
            sums[f"{name}_first"] += bool(items) and items[0] in bought
    cases = max(sums["cases"], 1)
    rates = {"cases": sums["cases"], "pushed_cases": sums["pushed"]}
    rates["pushed_in_next"] = sums["pushed_hits"] / max(sums["pushed"], 1)
    for name in ("job", "neighbours", "popular"):
        rates[f"{name}_first_in_next"] = sums[f"{name}_first"] / cases
        rates[f"{name}_any_of_10"] = sums[f"{name}_any"] / cases
        rates[f"{name}_precision_10"] = sums[f"{name}_hits"] / cases / TOP
    return {key: round(value, 4) for key, value in rates.items()}


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
