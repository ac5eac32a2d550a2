"""Flows as child processes on a broker, for tests that kill them, feed them rubbish, add to them.

Owns    a stage: topics of its own on a broker, children with their settings, a reader of what
        they write, and the decisions that an undisturbed run in this process makes.

The embedded broker keeps about 5 MB a partition, so what flows write is read while they write it.
The input is simulated shoppers with frozen tables, dated as `pushflow replay` dates it, and ends
with one event in each partition two hours later: what was due in between is decided whatever the
last batches were.
"""

import itertools
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from flows import decide
from flows.children import FlowProcess
from flows.settings import Settings
from flows.simulate import Population
from flows.supervisor import free_ports
from flows.topics import specs
from flows.training import card_of
from operators.codec import encode
from operators.hops import RawMessage
from operators.kafka_admin import create_topics
from operators.kafka_client import (
    address,
    consumer_settings,
    count_partitions,
    open_consumer,
    watermarks,
)
from operators.kafka_sink import Writer, partition_of
from operators.kafka_tables import Reader
from operators.messages import Decision, Event, UserProfile
from tests.flows import world as w

N_PARTITIONS = 4
EVENTS, USERS, FEEDBACK = "push.events.v1", "push.users.v1", "push.feedback.v1"
DECISIONS, DEAD, POLICY = "push.decisions.v1", "push.dlq.v1", "push.policy.v1"
PACE = 2_000  # messages a second, where a test sends steadily
_STOP_SECONDS = 100  # no test is about how long a busy machine takes to stop
_HOUR_MS = 3_600_000


class Case(NamedTuple):
    """An input of `decide`, and the decisions that follow from it: decision_id -> bytes."""

    world: w.World
    population: Population
    profiles: list[RawMessage]
    events: list[RawMessage]
    expected: dict[str, bytes]


def make_case(directory: Path, n_users: int = 400, days: int = 2) -> Case:
    """Simulate shoppers, and decide in this process, undisturbed."""
    world = w.make_world(directory)
    population = Population(n_users, n_items=80, seed=3, start_ms=w.START_MS)
    end_ms = w.START_MS + days * w.DAY_MS
    events = population.advance(end_ms)
    profiles = population.profiles()
    events += [
        Event(event_id=f"last-{user_id}", user_id=user_id, type="app_open", time_ms=time_ms)
        for time_ms in [end_ms + 2 * _HOUR_MS]
        for user_id in one_a_partition(profiles)
    ]
    users = as_messages(USERS, [(w.START_MS, row) for row in profiles])
    messages = as_messages(EVENTS, [(event.time_ms, event) for event in events])
    expected = decided(world, users, messages, directory / "expected")
    return Case(world, population, users, messages, expected)


def one_a_partition(profiles: Sequence[UserProfile]) -> list[str]:
    """Return a user of each partition."""
    return list({partition_of(p.user_id, N_PARTITIONS): p.user_id for p in profiles}.values())


def as_messages(topic: str, rows: Iterable[tuple[int, Any]]) -> list[RawMessage]:
    """Return (time in ms, row) as messages of an empty topic."""
    numbers: Counter[int] = Counter()
    out = []
    for time_ms, row in rows:
        partition = partition_of(row.user_id, N_PARTITIONS)
        key = row.user_id.encode()
        out.append(RawMessage(topic, partition, numbers[partition], key, encode(row), time_ms))
        numbers[partition] += 1
    return out


def in_time_order(*topics: Sequence[RawMessage]) -> list[RawMessage]:
    """Merge messages of several topics by time."""
    merged = [message for topic in topics for message in topic]
    return sorted(merged, key=lambda message: message.timestamp_ms)


def decided(
    world: w.World, profiles: list[RawMessage], events: list[RawMessage], directory: Path
) -> dict[str, bytes]:
    """Return the decisions of an undisturbed run in this process."""
    of = w.settings(directory)
    steps = []
    for partition in range(N_PARTITIONS):
        decoder = decide.decoder(of, decide.TOPICS, decide.CLOCK)(partition, None)
        for rows in (profiles, events):
            own = [row for row in rows if row.partition == partition]
            steps += [decoder.decode(own[at : at + 200]) for at in range(0, len(own), 200)]
    written = w.run_decide(of, world.tables(of), steps)
    assert len(written) == len(dict(written))
    return dict(written)


def _ends(client: dict[str, Any], topics: list[str]) -> dict[tuple[str, int], int]:
    """Return where each partition ends for this client."""
    with open_consumer(consumer_settings(client)) as consumer:
        numbers = {t: range(count_partitions(consumer, t, address(client))) for t in topics}
        places = [(topic, number) for topic in topics for number in numbers[topic]]
        return {place: watermarks(consumer, *place)[1] for place in places}


class Collector:
    """Reads topics in a thread, from their first messages on.

    Parameters
    ----------
    keep
        What to keep of a message.
    """

    def __init__(
        self, client: dict[str, Any], topics: list[str], keep: Callable[[RawMessage], Any]
    ) -> None:
        self._client, self._topics = client, topics
        self._reader = Reader(client, topics)
        self._keep = keep
        self.rows: list[Any] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._take(0.02)

    def _take(self, timeout_s: float) -> None:
        self.rows += map(self._keep, self._reader.read(2_000, timeout_s))

    def _await_commits(self) -> None:
        """Wait until all that is written is committed or aborted: at the end of a transaction the
        broker still has to mark it, and what a killed process left open times out in a minute.
        """
        written = _ends(self._client | {"isolation.level": "read_uncommitted"}, self._topics)

        def is_readable() -> bool:
            readable = _ends(self._client, self._topics)
            return all(readable[place] >= end for place, end in written.items())

        wait("commits", is_readable, timeout_s=90)

    def close(self) -> list[Any]:
        """Read to the end, stop, and return all rows; a second call does nothing more."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self._await_commits()
            while not self._reader.at_end():
                self._take(0.1)
            self._reader.close()
        return self.rows


def by_id(message: RawMessage) -> tuple[str, bytes]:
    """Return (decision_id, bytes) of a decision."""
    value = message.value or b""
    return msgspec.json.decode(value, type=Decision).decision_id, value


class Verdict(NamedTuple):
    """Decisions as they were read beside those expected; all zeros but `n` is right."""

    n: int
    lost: int
    twice: int
    unknown: int
    other_bytes: int


def judge(found: list[tuple[str, bytes]], expected: dict[str, bytes]) -> Verdict:
    """Compare what was read with what an undisturbed run decides."""
    counts = Counter(decision_id for decision_id, _ in found)
    values = dict(found)
    return Verdict(
        n=len(found),
        lost=len(expected.keys() - values.keys()),
        twice=sum(n - 1 for n in counts.values()),
        unknown=len(values.keys() - expected.keys()),
        other_bytes=sum(expected.get(key, value) != value for key, value in values.items()),
    )


class Stage:
    """Topics of its own on a broker, and flows as children; `close` ends all.

    Parameters
    ----------
    bootstrap
        The broker's address.
    prefix
        Of the topics' names.
    work
        For state and logs.
    replication
        Copies of each partition.
    values
        More PUSHFLOW_* variables of every child.
    """

    def __init__(
        self,
        bootstrap: str,
        prefix: str,
        work: Path,
        *,
        replication: int = 1,
        values: Mapping[str, str] | None = None,
    ) -> None:
        kafka = {
            "bootstrap_servers": bootstrap,
            "topic_prefix": prefix,
            "partitions": N_PARTITIONS,
            "replication": replication,
            "retention_ms": -1,
        }
        self.settings = Settings(kafka=kafka)  # type: ignore[arg-type] # pydantic converts it
        self.client = self.settings.kafka.client()
        self.topic = self.settings.kafka.topic
        self._work = work
        self.state = work / "state"
        self._values = {
            "PUSHFLOW_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
            "PUSHFLOW_KAFKA__TOPIC_PREFIX": prefix,
            "PUSHFLOW_STATE__DIRECTORY": str(self.state),
            "PUSHFLOW_STATE__EPOCH_SECONDS": "0.3",
            "PUSHFLOW_REDIS__URL": "",
            "PUSHFLOW_RANKING__FROZEN": "true",
            "PUSHFLOW_CAMPAIGNS_FILE": str(w.CAMPAIGNS),
            "OMP_NUM_THREADS": "1",
            **(values or {}),
        }
        self._starts = itertools.count()
        self._children: list[FlowProcess] = []
        self._collectors: list[Collector] = []
        create_topics(self.client, specs(self.settings))
        self.writer = Writer(self.client)

    def fill_tables(self, case: Case) -> None:
        """Send what `decide` must know before the first event."""
        rows: list[tuple[str, str, Any]] = [
            ("push.items.v1", i.item_id, i) for i in case.world.items
        ]
        rows += [("push.item-stats.v1", row.item_id, row) for row in case.world.stats]
        rows += [(POLICY, row.shard, row) for row in case.world.policy]
        card = card_of(case.world.model, "test")
        rows.append(("push.models.v1", card.name, card))
        for topic, key, row in rows:
            self.writer.send(self.topic(topic), key, encode(row))
        self.send(case.profiles)

    def send(self, messages: Sequence[RawMessage], pace: float = 0) -> None:
        """Send messages in order, `pace` a second, or as fast as it goes; wait for the broker."""
        began = time.monotonic()
        for number, message in enumerate(messages):
            if pace and number % 10 == 0:
                time.sleep(max(0.0, began + number / pace - time.monotonic()))
            self.put(message)
        self.writer.flush()

    def put(self, message: RawMessage) -> None:
        """Send one message, and do not wait."""
        key = (message.key or b"").decode()
        self.writer.send(
            self.topic(message.topic), key, message.value, timestamp_ms=message.timestamp_ms
        )

    def start(self, name: str, *arguments: str, size: int = 1, **values: str) -> list[FlowProcess]:
        """Start a flow as a cluster of `size` processes on the state that is there.

        `arguments` are more words on its command line, `values` more variables.
        """
        number = next(self._starts)
        more = [list(arguments)]
        if size > 1:
            places = ",".join(f"127.0.0.1:{port}" for port in free_ports(size))
            more = [
                [*arguments, "--process-id", str(i), "--addresses", places] for i in range(size)
            ]
            values = {"PUSHFLOW_RUN_ID": f"start-{number}", **values}
        started = []
        for process, words in enumerate(more):
            folder = self._work / f"start-{number}-{process}"
            folder.mkdir()
            started.append(FlowProcess(name, self._values | values, folder, words))
            self._children.append(started[-1])
        for child in started:
            child.wait_ready(90)
        return started

    def told(self) -> str:
        """Return all that the children logged, in the order of their starts: why a test failed."""
        return "\n".join(
            f"--- {child.log.parent.name}\n{child.log.read_text(errors='replace')}"
            for child in self._children
        )

    def supervise(self, name: str, size: int, **values: str) -> FlowProcess:
        """Start a flow as a supervised cluster on the state that is there."""
        folder = self._work / f"start-{next(self._starts)}"
        folder.mkdir()
        patience = ("--stop-seconds", str(_STOP_SECONDS))
        child = FlowProcess(name, self._values | values, folder, patience, processes=size)
        self._children.append(child)
        child.wait_ready(90)
        return child

    def collect(self, topic: str, keep: Callable[[RawMessage], Any]) -> Collector:
        """Begin to read a topic."""
        self._collectors.append(Collector(self.client, [self.topic(topic)], keep))
        return self._collectors[-1]

    def tell(self) -> None:
        """Print what children said that ended by themselves, and not in order."""
        for child in self._children:
            if child.code not in (None, 0, -signal.SIGKILL):
                print(child.last_words())

    def close(self) -> None:
        """Kill what still runs, and stop reading."""
        for child in self._children:
            child.kill()
        for collector in self._collectors:
            collector.close()


def wait(
    what: str,
    is_so: Callable[[], bool],
    children: Sequence[FlowProcess] = (),
    timeout_s: float = 60.0,
) -> bool:
    """Wait until `is_so`, or the time is up; a child that ends raises what it said last."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        for child in children:
            child.check()
        if time.monotonic() > deadline:
            print(f"not within {timeout_s:.0f} s: {what}")
            for child in children:
                print(child.last_words())
            return False
        time.sleep(0.02)
    return True


def total(child: FlowProcess, name: str, label: str = "", process: int = 0) -> float:
    """Return a counter of a child's process, summed over the labels that end with `label`."""
    return sum(
        value
        for (found, labels), value in child.samples(process).items()
        if found == name and (not label or any(text.endswith(label) for _, text in labels))
    )


def stop(children: list[FlowProcess]) -> list[int]:
    """Ask all processes of a cluster to finish, as a supervisor does; return their exit codes."""
    for child in children:
        child.ask_to_stop()
    return [child.stop() for child in children]


def moments(seed: int, n_messages: int, n_kills: int) -> list[int]:
    """Return when to kill, in messages sent: at random in each of equal stretches but the last."""
    rng = np.random.default_rng(seed)
    stretch = n_messages / (n_kills + 1)
    return [int(stretch * (i + rng.uniform(0.3, 0.9))) for i in range(n_kills)]
