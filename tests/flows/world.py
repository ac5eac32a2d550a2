"""A small world for tests of whole flows: simulated events, and tables learned from them."""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, cluster_main, run_main

from flows import decide, learn
from flows.settings import Settings
from flows.simulate import Population
from flows.tables import Tables
from flows.training import from_events
from models.student import StudentConfig
from models.train import TrainConfig, train_student
from operators.codec import PartitionDecoder, encode
from operators.hops import RawMessage
from operators.messages import (
    Decision,
    Event,
    Feedback,
    ItemStats,
    PolicyShard,
    UserProfile,
    UserSignal,
)

START_MS = 1_767_571_200_000  # Monday 2026-01-05 UTC
DAY_MS = 86_400_000
CAMPAIGNS = Path(decide.__file__).parent / "campaigns.yaml"
KINDS = {
    "users": UserProfile,
    "events": Event,
    "feedback": Feedback,
    "decisions": Decision,
    "signals": UserSignal,
}


def settings(directory: Path, **changes: Any) -> Settings:
    """Settings that touch nothing but a directory."""
    values: dict[str, Any] = {
        "campaigns_file": str(CAMPAIGNS),
        "run_id": "test",
        "redis": {"url": ""},
        "state": {"directory": directory},
    }
    return Settings(**{**values, **changes})


class World(NamedTuple):
    """Messages by partition, and what was learned from their first half."""

    messages: list[RawMessage]
    items: list[Any]
    stats: list[ItemStats]
    policy: list[PolicyShard]
    model: Path
    events: list[Event]

    def tables(self, of: Settings) -> Tables:
        """Tables as they were learned, frozen."""
        tables = Tables(of, clock=lambda: 0.0)
        for item in self.items:
            tables.catalogue.apply(item.item_id, item)
        for row in self.stats:
            tables.catalogue.apply_stats(row)
        for row in self.policy:
            tables.policies.apply(row.shard, row)
        tables.models.load(self.model)
        tables.apply_changes()
        return tables


def partition_of(user_id: str, n_partitions: int) -> int:
    """Return a partition as stable as Kafka's, if another one."""
    return sum(user_id.encode()) % n_partitions


def messages_of(rows: Iterable[Any], topic: str, n_partitions: int = 2) -> list[RawMessage]:
    """Return rows as messages of a topic, in order."""
    return [
        RawMessage(
            topic,
            partition_of(row.user_id, n_partitions),
            offset,
            row.user_id.encode(),
            encode(row),
            getattr(row, "time_ms", -1),
        )
        for offset, row in enumerate(rows)
    ]


def polls(
    messages: list[RawMessage], size: int, n_partitions: int = 2, **options: Any
) -> list[list[Any]]:
    """Return each partition's polls of at most `size` messages, decoded."""
    parts = []
    for partition in range(n_partitions):
        own = [message for message in messages if message.partition == partition]
        decoder = PartitionDecoder(partition, KINDS, n_shards=8, **options)
        parts.append([decoder.decode(own[at : at + size]) for at in range(0, len(own), size)])
    return parts


def merged(parts: list[list[Any]]) -> list[Any]:
    """Return the polls of all partitions in turns."""
    longest = max(map(len, parts))
    return [part[n] for n in range(longest) for part in parts if n < len(part)]


def run_decide(
    of: Settings,
    tables: Tables,
    steps: list[Any],
    *,
    n_workers: int = 1,
    recovery: Path | None = None,
) -> list[tuple[str, bytes]]:
    """Run `decide` over polls; return (decision_id, bytes) in the order they were written."""
    out: list[tuple[str, Any]] = []
    ends = decide.Ends(source=TestingSource(steps), decisions=TestingSink(out))
    flow = decide.build(of, tables, ends, n_workers=n_workers)
    if recovery is not None:
        run_with_recovery(flow, recovery)
    elif n_workers == 1:
        run_main(flow)
    else:
        cluster_main(flow, [], 0, worker_count_per_proc=n_workers)
    return [(record.id, record.value) for _key, record in out]


def run_with_recovery(flow: Any, directory: Path) -> None:
    """Run a flow with a snapshot after each item of its source."""
    if not directory.exists():
        directory.mkdir()
        init_db_dir(directory, 2)
    run_main(flow, epoch_interval=timedelta(0), recovery_config=RecoveryConfig(str(directory)))


def run_learn(of: Settings, steps: list[Any]) -> tuple[list[PolicyShard], list[ItemStats]]:
    """Run `learn` over polls; return the newest row of each key."""
    policy: list[tuple[str, Any]] = []
    stats: list[tuple[str, Any]] = []
    ends = learn.Ends(TestingSource(steps), TestingSink(policy), TestingSink(stats))
    run_main(learn.build(of, ends))
    return (
        [msgspec.json.decode(r.value, type=PolicyShard) for r in dict(policy).values()],
        [msgspec.json.decode(r.value, type=ItemStats) for r in dict(stats).values()],
    )


def make_world(directory: Path) -> World:
    """Simulate two days, decide and learn once through them, and train a small student."""
    population = Population(n_users=60, n_items=80, seed=3, start_ms=START_MS)
    items, profiles = population.items(), population.profiles()
    events = population.advance(START_MS + 2 * DAY_MS)
    histories, item_ids, texts = from_events(
        events, items, decide.rules(settings(directory / "unused"))
    )
    model = directory / "student.pfm"
    config = TrainConfig(StudentConfig(width=16, layers=1, heads=2), epochs=1, threads=1)
    train_student(histories, item_ids, texts, path=model, config=config, seed=1)

    messages = messages_of(profiles, "users") + messages_of(events, "events")
    world = World(messages, items, [], [], model, events)
    first = settings(directory / "first")
    raw = run_decide(first, world.tables(first), merged(polls(messages, 500)))
    decisions = [msgspec.json.decode(value, type=Decision) for _, value in raw]
    feedback = _feedback(population, decisions)
    learned = messages_of(decisions, "decisions") + messages_of(feedback, "feedback")
    options = {"clock_kinds": (Decision, Feedback)}
    steps = merged(polls(messages_of(events, "events") + learned, 500, **options))
    policy, stats = run_learn(settings(directory / "learn"), steps)
    return World(messages, items, stats, policy, model, events)


def _feedback(population: Population, decisions: list[Decision]) -> list[Feedback]:
    out: list[Feedback] = []
    for decision in sorted(decisions, key=lambda d: d.decided_at):
        out += population.respond(decision, decision.decided_at)
    out += population.advance_feedback(START_MS + 3 * DAY_MS)
    unique = {feedback.feedback_id: feedback for feedback in out}
    return sorted(unique.values(), key=lambda f: f.time_ms)
