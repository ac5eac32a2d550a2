"""Each step of `decide` alone, in one process without Kafka or Bytewax.

Times   CPU time of: decode and grouping by shard; users (sessions, counters, timers, features);
        rank (campaign, candidates, student, arm features); decide (eligibility, policy, content);
        encode. Batches of 1,000 events with 5% triggers, 20,000 users, 4,000 items, state in
        dictionaries. Medians over batches.
Leaves out Kafka, Bytewax, RocksDB and Redis: see `bench.path` and `bench.state`.

    python -m bench.steps [--events 60000]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench import load as made
from flows import decide
from flows.run import settle_garbage_collector
from flows.settings import Settings
from flows.tables import Tables
from operators import fatigue, user_state, users
from operators.codec import PartitionDecoder, encode
from operators.decider import Decider
from operators.hops import RawMessage, ShardBatch
from operators.messages import Event, UserProfile
from operators.shards import DictShard
from operators.users import UserShard

N_SHARDS = 64
BATCH = 1_000


def tables(settings: Settings) -> Tables:
    """Return full tables with a student."""
    with tempfile.TemporaryDirectory() as folder:
        found = Tables(settings, time.monotonic)
        for item in made.items():
            found.catalogue.apply(item.item_id, item)
        for row in made.item_stats(np.random.default_rng(1)):
            found.catalogue.apply_stats(row)
        campaign = made.campaign()
        found.campaigns.apply(campaign.campaign_id, campaign)
        made.student(Path(folder) / "student.pfm")
        found.models.load(Path(folder) / "student.pfm")
        found.apply_changes()
        return found


class Job:
    """The steps of `decide`, called one after another."""

    def __init__(self, settings: Settings, of: Tables) -> None:
        self.decoder = PartitionDecoder(0, {"e": Event, "u": UserProfile}, n_shards=N_SHARDS)
        self.ranker = decide._ranker(settings, of)
        rules, category_of = decide.rules(settings), of.catalogue.category_of
        self.users = {}
        self.deciders = {}
        for number in range(N_SHARDS):
            shard = f"{number:02d}"
            states = DictShard(
                shard,
                encode=user_state.encode_state,
                decode=user_state.decode_state,
                new=user_state.new_state,
            )
            self.users[shard] = UserShard(shard, states, rules, category_of)
            pushes = DictShard(
                shard,
                encode=fatigue.encode_state,
                decode=fatigue.decode_state,
                new=fatigue.new_state,
            )
            self.deciders[shard] = Decider(
                pushes,
                campaigns=of.campaigns,
                policies=of.policies,
                item_of=of.catalogue.item,
                window_ms=14_400_000,
            )

    def run(self, messages: list[RawMessage], clock: Callable[[], float]) -> dict[str, float]:
        """Take one batch through all steps; return seconds by step, and counts."""
        times = [clock()]
        poll = self.decoder.decode(messages)
        times.append(clock())
        outputs = [(b.shard, out) for b in poll.shards for out in self._users_of(b)]
        times.append(clock())
        ranked = decide.rank(self.ranker, outputs)
        times.append(clock())
        decided: list[tuple[str, Any]] = []
        for shard, entry in ranked:
            decided += [(shard, d) for d in self.deciders[shard].on_batch([entry])]
        times.append(clock())
        decide.decision_records(decided)
        times.append(clock())
        names = ("decode", "users", "rank", "decide", "encode")
        spent = {n: b - a for n, a, b in zip(names, times, times[1:], strict=False)}
        return spent | {"triggers": float(len(decided))}

    def _users_of(self, batch: ShardBatch) -> list[users.ShardOutput]:
        return self.users[batch.shard].on_batch([batch])


def main() -> None:
    """Print microseconds by step."""
    parser = argparse.ArgumentParser(prog="python -m bench.steps", description=__doc__)
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=BATCH, help="events a batch; 20: a trigger")
    options = parser.parse_args()
    settings = Settings(run_id="bench", redis={"url": ""}, triggers={"session_ended_min_events": 0})
    job = Job(settings, tables(settings))
    load = made.Load(options.users, 0.05, speed=600_000 / options.users / 10)
    rows = [
        RawMessage("u", 0, 0, None, encode(made.profile(user_id)), -1)
        for user_id in load.who_may_fire()
    ]
    rows += [RawMessage("e", 0, 0, None, m.value, -1) for m in load.warm()]
    for start in range(0, len(rows), BATCH):
        job.run(rows[start : start + BATCH], time.process_time)
    settle_garbage_collector()
    events = [RawMessage("e", 0, 0, None, m.value, -1) for m in load.events(options.events)]
    size = options.batch
    runs = [
        job.run(events[start : start + size], time.process_time)
        for start in range(0, len(events), size)
    ]
    firing = [run for run in runs if run["triggers"]]
    found = {
        "decode": 1e6 * median(r["decode"] for r in runs) / size,
        "users": 1e6 * median(r["users"] for r in runs) / size,
        "rank": 1e6 * median(r["rank"] / r["triggers"] for r in firing),
        "decide": 1e6 * median(r["decide"] / r["triggers"] for r in firing),
        "encode": 1e6 * median(r["encode"] / r["triggers"] for r in firing),
    }
    for name, value in found.items():
        print(f"{name:8} {value:8.2f} us a {'event' if name in ('decode', 'users') else 'trigger'}")
    a_trigger = found["rank"] + found["decide"] + found["encode"]
    total = found["decode"] + found["users"] + 0.05 * a_trigger
    print(f"together {total:8.2f} us an event with 5% triggers")
    print(
        json.dumps(
            {
                "bench": "steps",
                **{k: round(v, 2) for k, v in found.items()},
                "total": round(total, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
