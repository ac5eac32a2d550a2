"""`catalog` killed, and how fresh the catalogue is: an item's way into the candidates and out."""

import base64
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from flows.children import FlowProcess
from models.encoders import ContentEncoder, HashEncoder
from models.fusion import Fusion
from models.taste import unpack_vector
from operators.codec import encode
from operators.hops import RawMessage
from operators.messages import Consent, Decision, Event, Item, ItemVector, UserProfile
from tests.system.conftest import own_stage
from tests.system.harness import DECISIONS, EVENTS, USERS, Stage, wait

pytestmark = [pytest.mark.system, pytest.mark.slow]

ITEMS, VECTORS = "push.items.v1", "push.item-vectors.v1"
COLUMNS = 8  # of pictures: with them even hashed text is an encoder that `decide` has not
OF_CATALOG = {"PUSHFLOW_CATALOG__IMAGE_COLUMNS": str(COLUMNS)}
# Tables are followed, and what is new is found by its content or not at all.
FOLLOWING = {
    "PUSHFLOW_RANKING__FROZEN": "false",
    "PUSHFLOW_CANDIDATES__WEIGHTS__TREND": "0",
    "PUSHFLOW_CANDIDATES__EXPLORE_SHARE": "0",
}
# Sent at any hour, and to everybody.
CAMPAIGNS = """
campaigns:
  - campaign_id: now
    trigger: intent
    quiet_hours: null
    experiment: {holdout: 0.0, arms: {}}
    templates: {en: {title: "{item_title}", body: "Have a look"}}
"""
CONTENT = ContentEncoder(HashEncoder(), Fusion.untrained(64, COLUMNS))
N_ITEMS = 400


def titled(number: int, change: int) -> Item:
    return Item(item_id=f"item{number}", title=f"thing {number} of change {change}")


def put(stage: Stage, item: Item) -> None:
    stage.writer.send(stage.topic(ITEMS), item.item_id, encode(item))


def table(rows: Sequence[tuple[str, bytes | None]]) -> dict[str, ItemVector]:
    """Return the topic of vectors as compaction leaves it."""
    newest = dict(rows)
    return {k: msgspec.json.decode(v, type=ItemVector) for k, v in newest.items() if v}


def by_key(message: RawMessage) -> tuple[str, bytes | None]:
    return (message.key or b"").decode(), message.value


def items_of(found: dict[str, ItemVector], encoder: str) -> dict[str, ItemVector]:
    return {row.item_id: row for row in found.values() if row.encoder == encoder and row.item_id}


def count_of(found: dict[str, ItemVector], encoder: str) -> int:
    """Return how many vectors the shards say there are; -1 before all have said so."""
    words = [row for row in found.values() if row.encoder == encoder and not row.item_id]
    is_whole = bool(words) and len(words) >= words[0].n_shards
    return sum(word.n_items for word in words) if is_whole else -1


def test_two_kills_of_catalog_leave_each_item_one_current_vector(one_stage: Stage) -> None:
    stage, rng = one_stage, np.random.default_rng(7)
    vectors = stage.collect(VECTORS, by_key)
    current: dict[str, Item] = {}
    child: FlowProcess | None = None
    for stretch in range(3):
        [child] = stage.start("catalog", **OF_CATALOG)
        n_rows = len(vectors.rows)
        for number in rng.permutation(N_ITEMS)[: N_ITEMS // 2].tolist():
            item = titled(number, stretch)
            put(stage, item)
            current[item.item_id] = item
        for item_id in sorted(current)[stretch::20]:
            stage.writer.send(stage.topic(ITEMS), item_id, None)
            del current[item_id]
        stage.writer.flush()
        wait("a new row", lambda n=n_rows: len(vectors.rows) > n, [child])  # type: ignore[misc]
        if stretch < 2:
            child.kill()
    assert child is not None

    def is_current() -> bool:
        found = table(vectors.rows)
        there = items_of(found, CONTENT.id)
        return there.keys() == current.keys() and count_of(found, CONTENT.id) == len(current)

    assert wait("all vectors", is_current, [child])
    assert child.stop() == 0
    found = items_of(table(vectors.close()), CONTENT.id)
    names = sorted(current)
    truth = CONTENT.encode_items([[current[name].title] for name in names])
    stored = [unpack_vector(base64.b64decode(found[name].vector)) for name in names]
    assert found.keys() == current.keys()
    assert np.array_equal(stored, truth)


def test_a_new_encoder_takes_the_old_ones_place(one_stage: Stage) -> None:
    stage = one_stage
    vectors = stage.collect(VECTORS, by_key)
    for number in range(40):
        put(stage, titled(number, 0))
    stage.writer.flush()
    of_next = {"PUSHFLOW_CATALOG__AUDIO_COLUMNS": "8", "PUSHFLOW_CATALOG__RETIRE_SECONDS": "0.1"}
    following = ContentEncoder(HashEncoder(), Fusion.untrained(64, COLUMNS, 8)).id

    [first] = stage.start("catalog", **OF_CATALOG)
    assert wait("all vectors", lambda: count_of(table(vectors.rows), CONTENT.id) == 40, [first])
    first_code = first.stop()
    new = stage.supervise("catalog", 2, **OF_CATALOG, **of_next)

    def is_new() -> bool:
        found = table(vectors.rows)
        return count_of(found, following) == 40 and {r.encoder for r in found.values()} == {
            following
        }

    assert wait("the new encoder alone", is_new, [new])
    assert (first_code, new.stop(40)) == (0, 0)
    assert len(items_of(table(vectors.close()), following)) == 40


@pytest.fixture
def shop(embedded_bootstrap: str, tmp_path: Path) -> Iterator[Stage]:
    """A stage on the embedded broker whose tables are followed."""
    stage = next(stages := own_stage(embedded_bootstrap, tmp_path))
    yield stage
    next(stages, None)


class Traffic:
    """Users who look around, 1,000 events a second, until `close`."""

    _PER_TICK = 10
    _TICK_S = 0.01

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.n_sent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        began = time.monotonic()
        for tick in itertools.count():
            if self._stop.wait(max(0.0, began + tick * self._TICK_S - time.monotonic())):
                return
            for _ in range(self._PER_TICK):
                self.n_sent += 1
                user, number = self.n_sent % 997, self.n_sent * 7 % N_ITEMS
                view(self._stage, f"passer-by-{user}", f"item{number}", self.n_sent)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def view(stage: Stage, user_id: str, item_id: str, number: int) -> None:
    now_ms = time.time_ns() // 1_000_000
    event = Event(
        event_id=f"{user_id}-{number}",
        user_id=user_id,
        type="view",
        time_ms=now_ms,
        item_id=item_id,
    )
    stage.put(RawMessage(EVENTS, 0, 0, user_id.encode(), encode(event), now_ms))


class Answer(NamedTuple):
    """A decision for a user who looked at lamps."""

    read_at: float
    sources: dict[str, str]  # by item

    def has(self, item_id: str) -> bool:
        """Return whether the item is there for what it is like."""
        return self.sources.get(item_id) == "content"


class Lovers:
    """Users who look at three lamps each, one user after another, and what is decided for them.

    Their profiles are sent first: `decide` reads what is there of them before any event.
    """

    _MOST = 6_000  # of three waits of a minute, one every 30 ms

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        for number in range(self._MOST):
            profile = UserProfile(user_id=f"lover-{number}", consent=Consent(push=True))
            key = profile.user_id.encode()
            stage.put(RawMessage(USERS, 0, 0, key, encode(profile), 0))
        stage.writer.flush()
        self._numbers = itertools.count()
        self._decisions = stage.collect(DECISIONS, self._seen)

    @staticmethod
    def _seen(message: RawMessage) -> tuple[float, Decision]:
        return time.monotonic(), msgspec.json.decode(message.value or b"", type=Decision)

    def look(self) -> None:
        """Send the next user's events."""
        user_id = f"lover-{next(self._numbers)}"
        for number in range(3):
            view(self._stage, user_id, f"lamp{number}", number)

    def answers(self) -> list[Answer]:
        """Return when each decision was read, and the sources of its items, in order."""
        return [
            Answer(read_at, {a.item_id: a.source for a in decision.learning.action_set})
            for read_at, decision in list(self._decisions.rows)
            if decision.user_id.startswith("lover")
        ]

    def look_until(
        self, is_so: Callable[[list[Answer]], bool], children: list[FlowProcess]
    ) -> bool:
        """Send a user every 50 ms until the answers are so; say whether they were in a minute."""

        def look_and_see() -> bool:
            self.look()
            time.sleep(0.03)
            return is_so(self.answers())

        return wait("the answers", look_and_see, children)


@pytest.mark.parametrize("flows", [("decide",), ("catalog", "decide")], ids="+".join)
def test_an_item_is_found_at_once_and_gone_at_once(
    flows: tuple[str, ...],
    shop: Stage,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    (tmp_path / "campaigns.yaml").write_text(CAMPAIGNS, "utf-8")
    for number in range(N_ITEMS):
        put(shop, titled(number, 0))
    for number in range(3):
        put(shop, lamp(f"lamp{number}", "red desk lamp"))
    shop.writer.flush()
    lovers = Lovers(shop)
    values = FOLLOWING | {"PUSHFLOW_CAMPAIGNS_FILE": str(tmp_path / "campaigns.yaml")}
    values |= OF_CATALOG if "catalog" in flows else {}
    vectors = shop.collect(VECTORS, by_key)
    children = [child for name in flows for child in shop.start(name, **values)]
    if "catalog" in flows:
        n_items = N_ITEMS + 3
        assert wait("all vectors", lambda: count_of(table(vectors.rows), CONTENT.id) == n_items)
    traffic = Traffic(shop)
    assert lovers.look_until(lambda answers: len(answers) > 20, children)

    came, sent = time.monotonic(), traffic.n_sent
    put(shop, lamp("newest", "red reading lamp"))
    assert lovers.look_until(lambda answers: any(a.has("newest") for a in answers), children)
    found_s = next(a.read_at for a in lovers.answers() if a.has("newest")) - came

    went = time.monotonic()
    shop.writer.send(shop.topic(ITEMS), "newest", None)
    assert lovers.look_until(
        lambda answers: not any("newest" in answer.sources for answer in answers[-20:]), children
    )
    last_at = max(a.read_at for a in lovers.answers() if "newest" in a.sources)
    gone_s = max(0.0, last_at - went)
    rate = (traffic.n_sent - sent) / (time.monotonic() - came)
    traffic.close()

    said = f"{'+'.join(flows)}: found {found_s:.2f} s, gone {gone_s:.2f} s, {rate:,.0f} events/s"
    print(said)
    record_property("freshness", said)
    assert [child.stop() for child in children] == [0] * len(children)


def lamp(item_id: str, title: str) -> Item:
    return Item(item_id=item_id, title=title, categories=["lamps"])
