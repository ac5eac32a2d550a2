"""A soak: `decide` and `learn` for 20 minutes at 3,000 events a second, to see what grows.

    make soak
    python -m bench.soak [--minutes 20] [--rate 3000] [--users 10000]

Samples each 5 s: resident memory of each process, what the state takes on disk, and how far both
        flows are behind.
Judges  `decide` and `learn`: after the warm-up, the first quarter, the median of the last third
        must be within 5% of the median of the first. The broker and Redis are shown, not judged.
Needs   Java and Maven for the broker, and about 3 GB of disk for its log.
Writes  bench/soak.png; prints a table and one JSON object on the last line.

Memory may grow with the users there are, so their number is steady: the same shoppers come and
go, a day of theirs takes some 40 s, and whoever is away for a day is dropped and comes back as a
stranger. They answer pushes, so that `learn` has rewards to learn.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from bench.chaos_input import TRIGGERS
from bench.chaos_redis import RedisServer
from flows.children import FlowProcess
from flows.loop import Inlet
from flows.simulate import SLOT_MS, Population
from operators.codec import encode
from operators.messages import Event
from tests.flows import world as w
from tests.system.cluster import Nodes
from tests.system.harness import EVENTS, FEEDBACK, USERS, Case, Stage, as_messages, total

matplotlib.use("Agg")  # before pyplot: there may be no display
from matplotlib import pyplot as plt

_SAMPLE_S: Final = 5.0
_TICK_S: Final = 0.02
_WARM_UP: Final = 0.25  # share of the run
_TOLERANCE: Final = 0.05
_JUDGED: Final = ("decide", "learn")
_PICTURE: Final = Path(__file__).with_name("soak.png")
_VALUES: Final = {
    **TRIGGERS,
    "PUSHFLOW_TRIGGERS__IDLE_DAYS": "0.5",
    "PUSHFLOW_STATE__IDLE_DAYS": "1",
    "PUSHFLOW_STATE__EPOCH_SECONDS": "2",
    # So that all bounded caches are full by the end of the warm-up, and what still grows is seen.
    "PUSHFLOW_STATE__BLOCK_CACHE_MB": "8",
    "PUSHFLOW_RANKING__FROZEN": "false",
}

console = Console(stderr=True, highlight=False)


class Sample(NamedTuple):
    """How things stand at a moment."""

    at_s: float
    rss_mb: dict[str, float]  # by process, MB of 10^6 bytes
    state_mb: float
    lag: dict[str, float]  # messages, by flow


class Shoppers:
    """A closed loop: events at a steady pace, and feedback to the decisions that come back.

    Parameters
    ----------
    population
        Whose time goes on with the events that are sent.
    stage, inlet
        To and from Kafka.
    """

    def __init__(self, population: Population, stage: Stage, inlet: Inlet) -> None:
        self._population, self._stage, self._inlet = population, stage, inlet
        self._ahead: deque[Event] = deque()
        self._now_ms = self._slot_ms = population.start_ms
        self.n_sent = self.n_decisions = self.n_feedback = 0

    def send(self, n: int) -> None:
        """Send the next `n` events, and the feedback that happened until then."""
        while len(self._ahead) < n:
            self._slot_ms += SLOT_MS
            self._ahead += self._population.advance(self._slot_ms)
        for event in (self._ahead.popleft() for _ in range(n)):
            self._now_ms = max(self._now_ms, event.time_ms)
            self._put(EVENTS, event)
        self.n_sent += n
        for decision, _read_s in self._inlet.take():
            self.n_decisions += 1
            self._population.respond(decision, self._now_ms)
        for feedback in self._population.advance_feedback(self._now_ms):
            self.n_feedback += 1
            self._put(FEEDBACK, feedback)

    def _put(self, topic: str, message: Any) -> None:
        topic, key = self._stage.topic(topic), message.user_id
        self._stage.writer.send(topic, key, encode(message), timestamp_ms=message.time_ms)


class Watch:
    """Takes samples of processes and of the state's directory.

    Parameters
    ----------
    flows
        `decide` and `learn`.
    others
        Process ids by name.
    state
        The directory.
    """

    def __init__(self, flows: list[FlowProcess], others: dict[str, int], state: Path) -> None:
        self._flows, self._state = flows, state
        pids = {flow.name: flow.pid for flow in flows} | others
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._began = time.monotonic()
        self.samples: list[Sample] = []

    def look(self) -> None:
        """Take a sample; raise if a flow has ended."""
        for flow in self._flows:
            flow.check()
        self.samples.append(
            Sample(
                at_s=time.monotonic() - self._began,
                rss_mb={n: p.memory_info().rss / 1e6 for n, p in self._processes.items()},
                state_mb=disk_bytes(self._state) / 1e6,
                lag={flow.name: total(flow, "pushflow_source_lag") for flow in self._flows},
            )
        )


def disk_bytes(directory: Path) -> int:
    """Return what a directory takes on disk; files with several names count once."""
    blocks: dict[int, int] = {}
    for folder, _names, files in os.walk(directory):
        for name in files:
            try:
                found = os.stat(os.path.join(folder, name))
            except FileNotFoundError:  # a checkpoint that has gone meanwhile
                continue
            blocks[found.st_ino] = found.st_blocks * 512
    return sum(blocks.values())


def growth(values: list[float]) -> float:
    """Return by how much the last third's median is above the first's, after the warm-up.

    >>> round(growth([1.0] * 100 + [100.0] * 100 + [100.0] * 100 + [110.0] * 100), 3)
    0.1
    """
    steady = values[int(_WARM_UP * len(values)) :]
    third = len(steady) // 3
    first, last = float(np.median(steady[:third])), float(np.median(steady[-third:]))
    return last / first - 1 if first else 0.0


def play(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run the soak; return its numbers."""
    with ExitStack() as stack:
        nodes = Nodes(work / "kafka")
        stack.callback(nodes.close)
        redis = RedisServer(work / "redis")
        stack.callback(redis.kill)
        console.print("making the tables")
        world = w.make_world(work)
        population = Population(options.users, n_items=80, seed=1, start_ms=w.START_MS)
        profiles = as_messages(USERS, [(w.START_MS, row) for row in population.profiles()])
        values = {**_VALUES, "PUSHFLOW_REDIS__URL": redis.url}
        stage = Stage(nodes.bootstrap, "", work, values=values)
        stack.callback(stage.close)
        stage.fill_tables(Case(world, population, profiles, [], {}))
        flows = [*stage.start("decide"), *stage.start("learn")]
        kafka_pid = int((work / "kafka" / "node1" / "pid").read_text())
        others = {"kafka": kafka_pid, "redis": redis.pid}
        watch = Watch(flows, others, stage.state)
        inlet = Inlet(stage.client, time.monotonic)
        stack.callback(inlet.close)
        shoppers = Shoppers(population, stage, inlet)
        seconds = drive(options, shoppers, watch)
        codes = [flow.stop() for flow in flows]
    plot(watch.samples, options.picture)
    return summary(options, shoppers, watch.samples, seconds) | {"exit_codes": codes}


def drive(options: argparse.Namespace, shoppers: Shoppers, watch: Watch) -> float:
    """Send at the pace and look on; return how long that took."""
    began = sampled = time.monotonic()
    end = began + 60 * options.minutes
    while (now := time.monotonic()) < end:
        due = int((now - began) * options.rate) - shoppers.n_sent
        shoppers.send(min(due, options.rate))
        if now - sampled >= _SAMPLE_S:
            sampled = now
            watch.look()
            tell(watch.samples[-1], shoppers)
        time.sleep(max(0.0, _TICK_S - (time.monotonic() - now)))
    return time.monotonic() - began


def tell(sample: Sample, shoppers: Shoppers) -> None:
    """Print a line of progress."""
    rss = ", ".join(f"{name} {mb:,.0f}" for name, mb in sample.rss_mb.items())
    console.print(
        f"{sample.at_s:6.0f} s  {shoppers.n_sent:,} events, {shoppers.n_decisions:,} decisions; "
        f"MB: {rss}, state {sample.state_mb:,.0f}; behind {sum(sample.lag.values()):,.0f}",
        soft_wrap=True,
    )


def summary(
    options: argparse.Namespace, shoppers: Shoppers, samples: list[Sample], seconds: float
) -> dict[str, Any]:
    """Return the numbers of a run."""
    grown = {name: growth([s.rss_mb[name] for s in samples]) for name in samples[0].rss_mb}
    steady = samples[int(_WARM_UP * len(samples)) :]
    return {
        "minutes": options.minutes,
        "users": options.users,
        "events": shoppers.n_sent,
        "events_per_second": round(shoppers.n_sent / seconds),
        "decisions": shoppers.n_decisions,
        "feedback": shoppers.n_feedback,
        "rss_mb": {n: round(float(np.median([s.rss_mb[n] for s in steady]))) for n in grown},
        "rss_growth": {name: round(value, 4) for name, value in grown.items()},
        "state_mb": round(float(np.median([s.state_mb for s in steady])), 1),
        "state_growth": round(growth([s.state_mb for s in samples]), 4),
        "lag_max": {n: max(s.lag[n] for s in steady) for n in samples[0].lag},
        "is_flat": all(abs(grown[name]) <= _TOLERANCE for name in _JUDGED),
    }


def plot(samples: list[Sample], path: Path) -> None:
    """Draw memory, disk and lag over time."""
    minutes = [s.at_s / 60 for s in samples]
    figure, (memory, disk, lag) = plt.subplots(3, 1, figsize=(9, 9), sharex=True)
    for name in samples[0].rss_mb:
        memory.plot(minutes, [s.rss_mb[name] for s in samples], label=name)
    memory.set_ylabel("resident memory, MB")
    disk.plot(minutes, [s.state_mb for s in samples], label="state of both flows")
    disk.set_ylabel("disk, MB")
    for name in samples[0].lag:
        lag.plot(minutes, [s.lag[name] for s in samples], label=name)
    lag.set_ylabel("messages behind")
    lag.set_xlabel("minutes")
    for axes in (memory, disk, lag):
        axes.axvline(_WARM_UP * minutes[-1], color="grey", linestyle=":", linewidth=1)
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower right")
        axes.grid(alpha=0.3)
    figure.suptitle("decide and learn: warm until the dotted line, judged after it")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def table(found: dict[str, Any]) -> Table:
    """Return the numbers for the terminal."""
    title = f"{found['minutes']:g} minutes at {found['events_per_second']:,} events a second"
    rows = Table("what", "median after the warm-up, MB", "grown by", title=title)
    for name, mb in found["rss_mb"].items():
        rows.add_row(name, f"{mb:,}", f"{found['rss_growth'][name]:+.1%}")
    rows.add_row("state on disk", f"{found['state_mb']:,}", f"{found['state_growth']:+.1%}")
    return rows


def main() -> int:
    """Read the command line, run, and say whether memory is flat."""
    parser = argparse.ArgumentParser(prog="bench.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=int, default=3_000, help="events a second")
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--picture", type=Path, default=_PICTURE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pushflow-soak-", ignore_cleanup_errors=True) as work:
        found = play(options, Path(work))
    Console(highlight=False).print(table(found))
    print(json.dumps(found), flush=True)
    return 0 if found["is_flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
