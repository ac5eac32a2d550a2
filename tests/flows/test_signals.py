"""What users write and items that change, from the topics to the decisions, on a broker."""

import base64
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, run_main

from flows import catalog, decide, signals
from flows.settings import Settings
from flows.tables import Tables
from models.encoders import ContentEncoder, HashEncoder
from models.text import encode_texts
from operators.codec import encode
from operators.embedded import EmbeddedBroker
from operators.item_media import ItemMedia
from operators.kafka_admin import touch_topics
from operators.kafka_sink import Writer
from operators.kafka_tables import Reader
from operators.messages import (
    TOPICS,
    Campaign,
    Consent,
    Decision,
    Erasure,
    Event,
    Item,
    Template,
    UserProfile,
    UserSignal,
)
from operators.written import TextVectors
from tests.conftest import T0_MS, event
from tests.flows import world as w

MINUTE_MS = 60_000
USERS = [f"u{n}" for n in range(12)]


class Bench(NamedTuple):
    """Topics on the embedded broker, and flows that read them to their ends."""

    of: Settings
    writer: Writer
    work: Path

    def send(self, topic: str, *rows: Any, at_ms: int = 0) -> None:
        for row in rows:
            time_ms = at_ms or getattr(row, "time_ms", T0_MS)
            key = str(getattr(row, TOPICS[topic].key))
            self.writer.send(self.of.kafka.topic(topic), key, encode(row), timestamp_ms=time_ms)
        self.writer.flush()

    def item(self, item_id: str, at_ms: int, **fields: Any) -> None:
        row = Item(item_id=item_id, title=f"Lamp {item_id}", **fields)
        self.send("push.items.v1", row, at_ms=at_ms)

    def again(self) -> Settings:
        """The settings of another start on the same state."""
        return self.of.model_copy(update={"run_id": uuid.uuid4().hex[:8]})

    def run(self, flow: Any, name: str) -> None:
        recovery = self.work / f"recovery-{name}"
        if not recovery.exists():
            recovery.mkdir()
            init_db_dir(recovery, 1)
        config = RecoveryConfig(str(recovery))
        run_main(flow, epoch_interval=timedelta(0), recovery_config=config)

    def catalog(self) -> None:
        self.run(catalog.from_settings(self.again(), n_workers=1, stop_at_end=True), "catalog")

    def decide(self) -> None:
        of = self.again()
        tables = Tables(of, clock=lambda: 0.0)
        tables.follow(of)
        flow = decide.from_settings(of, tables, None, n_workers=1, stop_at_end=True)
        self.run(flow, "decide")
        tables.close()

    def read(self, topic: str, kind: Any) -> list[Any]:
        reader = Reader(self.of.kafka.client(), [self.of.kafka.topic(topic)])
        rows = []
        while not reader.at_end():
            rows += reader.read(1_000, 0.05)
        reader.close()
        return [msgspec.json.decode(row.value or b"", type=kind) for row in rows]

    def signals(self) -> list[UserSignal]:
        return self.read("push.user-signals.v1", UserSignal)

    def decisions(self) -> list[Decision]:
        return self.read("push.decisions.v1", Decision)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    campaigns = tmp_path / "campaigns.yaml"
    words = {"en": Template(title="{item_title}", body="Now {price}")}
    rows = [
        Campaign(campaign_id=kind, trigger=kind, templates=words, quiet_hours=None)
        for kind in ("price_dropped", "back_in_stock", "intent")
    ]
    campaigns.write_bytes(msgspec.yaml.encode({"campaigns": rows}))
    with EmbeddedBroker() as broker:
        touch_topics(broker.client, list(TOPICS))
        kafka = {"bootstrap_servers": broker.bootstrap, "extra": {"fetch.wait.max.ms": "2"}}
        of = w.settings(tmp_path / "state", kafka=kafka, campaigns_file=str(campaigns))
        yield Bench(of, Writer(broker.client), tmp_path)


def profile(user_id: str) -> UserProfile:
    return UserProfile(user_id=user_id, consent=Consent(push=True))


def view(user_id: str, item_id: str, minutes: int = 0, kind: str = "view") -> Event:
    return event(
        f"{kind}-{user_id}-{item_id}-{minutes}",
        user_id,
        type=kind,
        item_id=item_id,
        time_ms=T0_MS + minutes * MINUTE_MS,
    )


def test_a_lower_price_reaches_exactly_those_who_showed_interest_and_once(bench: Bench) -> None:
    bench.send("push.users.v1", *map(profile, USERS))
    bench.item("a", T0_MS, price=20.0)
    bench.item("b", T0_MS, price=20.0)
    interested = [view(user, "a") for user in USERS[:6]]
    others = [view(user, "b") for user in USERS[6:]]
    bought = [view(USERS[0], "a", 1, "purchase"), view(USERS[1], "a", 1, "cart_remove")]
    bench.send("push.events.v1", *interested, *others, *bought)
    bench.send("push.erasures.v1", Erasure(user_id=USERS[2], time_ms=T0_MS + 2 * MINUTE_MS))
    bench.catalog()
    assert bench.signals() == []

    bench.item("a", T0_MS + 5 * MINUTE_MS, price=15.0)
    bench.catalog()
    bench.item("a", T0_MS + 6 * MINUTE_MS, price=14.9)
    bench.catalog()
    bench.decide()
    bench.decide()

    told = bench.signals()
    assert sorted(row.user_id for row in told) == USERS[3:6]
    assert {(row.price, row.old_price) for row in told} == {(15.0, 20.0)}
    decisions = [d for d in bench.decisions() if d.trigger.type == "price_dropped"]
    assert sorted(d.user_id for d in decisions) == USERS[3:6]
    assert {d.trigger.event_id for d in decisions} == {row.signal_id for row in told}
    first = [d.learning.action_set[0] for d in decisions if d.outcome != "holdout"]
    assert {(action.item_id, action.source) for action in first} == {("a", "changed")}


def test_what_was_bought_between_the_change_and_the_decision_is_not_pushed(bench: Bench) -> None:
    bench.send("push.users.v1", *map(profile, USERS[:2]))
    bench.item("a", T0_MS, price=20.0)
    bench.send("push.events.v1", *(view(user, "a") for user in USERS[:2]))
    bench.catalog()
    bench.item("a", T0_MS + 5 * MINUTE_MS, price=20.0, is_available=False)
    bench.item("a", T0_MS + 6 * MINUTE_MS, price=20.0)
    bench.catalog()
    # Before the signal in the order of event time, and not read by `catalog` any more.
    bench.send("push.events.v1", view(USERS[0], "a", 4, "purchase"))
    bench.decide()

    assert len(bench.signals()) == 2
    assert [(d.user_id, d.trigger.type) for d in bench.decisions()] == [(USERS[1], "back_in_stock")]


def test_a_lost_state_tells_nobody_twice(bench: Bench) -> None:
    bench.item("a", T0_MS, price=20.0)
    bench.send("push.events.v1", view("u1", "a"))
    bench.catalog()
    bench.item("a", T0_MS + 5 * MINUTE_MS, price=15.0)
    bench.catalog()
    for lost in ("state", "recovery-catalog"):
        (bench.work / lost).rename(bench.work / f"{lost}-lost")
    bench.catalog()
    bench.catalog()

    assert [row.user_id for row in bench.signals()] == ["u1"]


def test_a_search_is_an_intent_vector_in_the_decision_of_its_session(bench: Bench) -> None:
    bench.send("push.users.v1", profile("u1"), profile("u2"))
    for item_id, title in (("lamp", "Brass desk lamp"), ("tea", "Green tea"), ("x", "Shoes")):
        bench.send("push.items.v1", Item(item_id=item_id, title=title, categories=["c"]))
    search = event("s", "u1", type="search", item_id=None, text="desk lamp of brass", time_ms=T0_MS)
    views = [view(user, "x", n) for user in ("u1", "u2") for n in (1, 2, 3)]
    bench.send("push.events.v1", search, *views)
    bench.decide()

    found = {d.user_id: d for d in bench.decisions() if d.trigger.type == "intent"}
    assert found.keys() == {"u1", "u2"}
    of_u1 = [action.item_id for action in found["u1"].learning.action_set]
    assert of_u1.index("lamp") < of_u1.index("tea")


def told(user_id: str, item_id: str, minutes: int) -> UserSignal:
    return UserSignal(
        signal_id=f"{user_id}-{item_id}-{minutes}",
        user_id=user_id,
        type="back_in_stock" if minutes % 2 else "price_dropped",
        time_ms=T0_MS + minutes * MINUTE_MS,
        item_id=item_id,
        since_ms=T0_MS,
    )


def searched(user_id: str, minutes: int) -> Event:
    what = ("desk lamp", "green tea", "red shoes")[minutes % 3]
    time_ms = T0_MS + minutes * MINUTE_MS
    return event(f"s{minutes}", user_id, type="search", item_id=None, text=what, time_ms=time_ms)


def test_batch_sizes_change_no_decision(bench: Bench) -> None:
    tables = Tables(bench.of, clock=lambda: 0.0)
    for item_id, title in (("a", "Desk lamp"), ("b", "Green tea"), ("c", "Red shoes")):
        tables.catalogue.apply(item_id, Item(item_id=item_id, title=title, price=9.0))
    tables.apply_changes()
    messages = w.messages_of(map(profile, USERS), "users")
    for minutes, user_id in enumerate(USERS * 5):
        rows = view(user_id, "abc"[minutes % 3], minutes), searched(user_id, minutes)
        messages += w.messages_of(rows, "events")
        messages += w.messages_of([told(user_id, "abc"[minutes % 2], minutes)], "signals")
    written = []
    for size in (1, 7, 1_000):
        of = w.settings(
            bench.work / f"size-{size}", campaigns_file=str(bench.work / "campaigns.yaml")
        )
        written.append(w.run_decide(of, tables, w.merged(w.polls(messages, size))))

    first, *others = map(dict, written)
    assert [other == first for other in others] == [True, True]
    kinds = [msgspec.json.decode(value, type=Decision).trigger.type for value in first.values()]
    assert {"price_dropped", "back_in_stock"} <= set(kinds)
    assert len(kinds) >= 60


def polls(*events: Event) -> list[Any]:
    return w.merged(w.polls(w.messages_of(events, "events"), 3))


def test_texts_of_another_encoder_become_signals(tmp_path: Path) -> None:
    written = [
        event("s", "u1", type="search", item_id=None, text="desk lamp"),
        event("c", "u2", type="comment", text="green tea"),
        event("n", "u3", type="search", item_id=None, text="..."),
        event("v", "u4"),
    ]
    found: list[tuple[str, Any]] = []
    users = signals.UserEnds(TestingSource(polls(*written)), TestingSink(found))
    ends = catalog.Ends(TestingSource([]), n_partitions=1, users=users)
    content = catalog.Content(ContentEncoder(HashEncoder()), ItemMedia(0), ItemMedia(0))
    run_main(catalog.build(w.settings(tmp_path), ends, content))

    rows = [msgspec.json.decode(record.value, type=UserSignal) for _, record in found]
    assert sorted((r.user_id, r.type, r.item_id) for r in rows) == [
        ("u1", "searched", None),
        ("u2", "commented", "i1"),
    ]
    [search] = [row for row in rows if row.type == "searched"]
    assert search.encoder == "hash-1"
    assert base64.b64decode(search.vector) == TextVectors(encode_texts).many(["desk lamp"])[0]
