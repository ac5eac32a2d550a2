"""Recovery: from a checkpoint with a million users to the first event, in a fresh process.

    python -m bench.recovery [--users N] [--pushes N]

Times   opening the checkpoint, rebuilding the timers of all 64 shards, and the first batch of each,
        in one process that starts with nothing in memory; for the users of `decide` and for the
        attribution of `learn`. Memory is the process's own (VmRSS), imports included. "cpu s" is
        what to compare where other programs share the cores.
Leaves out  Kafka, Bytewax, the tables and the model: `python -m bench.chaos` restarts all of it.
        The files are in the page cache, for the state was written a moment ago.

Users come in the order of event time, five events each, 30 days in all, so that a tenth of them
wait for "idle" and the others to expire. The last two rows hold the same users after ten times the
events: a restart reads what is held, and never the log that led to it.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from models.arms import N_ARM, N_POLICY_CONTEXT
from operators import attribution_state, user_state
from operators.attribution import Attribution
from operators.hops import Entry, ShardBatch
from operators.messages import Action, Decision, Delivery, Event, EventType, Learning, TriggerRef
from operators.rewards import RewardRules
from operators.shards import SnapshotRef
from operators.state import Shard, StateStore
from operators.triggers import TriggerRules
from operators.users import UserShard

N_SHARDS = 64
HOT = 50_000
START_MS = 1_767_571_200_000
DAY_MS = 86_400_000
SPAN_MS = 30 * DAY_MS
CHUNK = 2_000  # users built between two touches of the store
SHARDS = [f"{n:02d}" for n in range(N_SHARDS)]


def open_store(root: Path, name: str, codec: Any, run_id: str) -> StateStore[Any]:
    """Return a store as `decide` and `learn` open theirs."""
    return StateStore(
        root,
        name,
        encode=codec.encode_state,
        decode=codec.decode_state,
        new=codec.new_state,
        run_id=run_id,
        n_workers=1,
        hot_capacity=HOT,
        block_cache_bytes=64 << 20,
    )


def user_shard(name: str, states: Shard[Any]) -> UserShard:
    """Return what `decide` keeps of users."""
    return UserShard(name, states, TriggerRules(), lambda item_id: item_id[-2:])


def attribution_shard(_name: str, states: Shard[Any]) -> Attribution:
    """Return what `learn` keeps of pushes."""
    rules = RewardRules(1.0, 0.5, 1.0, -0.3, -5.0, -0.05, window_ms=4 * 3_600_000)
    return Attribution(states, rules)


def event(user: int, number: int, time_ms: int, item: int) -> Event:
    """Return a view, or the first of two an addition to the cart of every fourth user."""
    kind: EventType = "cart" if number == 1 and user % 4 == 0 else "view"
    return Event(
        event_id=f"event-{user:07d}-{number:03d}",
        user_id=f"user-{user:07d}",
        type=kind,
        time_ms=time_ms,
        item_id=f"item-{item:05d}",
        value=9.5 if kind == "cart" else None,
    )


def event_batches(n_users: int, n_events: int) -> Iterator[tuple[int, ShardBatch]]:
    """Yield each shard's events of some users, `n_events` each, in order of event time."""
    items = np.random.default_rng(7).integers(0, 40_000, (n_users, n_events)).tolist()
    for begin in range(0, n_users, CHUNK):
        time_ms = START_MS + SPAN_MS * begin // n_users
        for shard in range(N_SHARDS):
            users = [u for u in range(begin, min(begin + CHUNK, n_users)) if u % N_SHARDS == shard]
            entries: list[tuple[int, Entry]] = [
                (time_ms, event(u, n, time_ms + n * 30_000, items[u][n]))
                for u in users
                for n in range(n_events)
            ]
            yield shard, ShardBatch(SHARDS[shard], 0, time_ms, entries)


def decision(number: int, time_ms: int) -> Decision:
    """Return a push to one of 20 arms."""
    arms = [round(0.01 * (number % 50 + k), 4) for k in range(N_ARM)]
    return Decision(
        decision_id=f"{number:032x}",
        trigger=TriggerRef("idle", "e1"),
        user_id=f"user-{number:07d}",
        decided_at=time_ms,
        outcome="send",
        reason_codes=[],
        delivery=Delivery(
            channel="any",
            send_after=time_ms,
            expires_at=time_ms + 3_600_000,
            priority="normal",
            collapse_key="c",
        ),
        content=None,
        learning=Learning(
            policy_id="squarecb",
            policy_version="0-0",
            model_version="m",
            feature_spec="",
            campaign_id="c1",
            arm="policy",
            context=[0.5] * N_POLICY_CONTEXT,
            action_set=[Action(f"item-{number % 40_000:05d}", "trend", 1.0, 1.0, arms)],
            chosen=0,
            propensity=1.0,
            is_exploration=False,
            reward_deadline=time_ms + 4 * 3_600_000,
        ),
        explanation=[],
    )


def build_users(root: str, n_users: int, n_events: int) -> None:
    """Write a checkpoint of users, as the events of a month leave them."""
    store = open_store(Path(root), "users", user_state, "built")
    states = [store.open_shard(name, None) for name in SHARDS]
    shards = [user_shard(name, shard) for name, shard in zip(SHARDS, states, strict=True)]
    for number, batch in event_batches(n_users, n_events):
        states[number].touch()
        shards[number].on_batch([batch])
    for shard, view in zip(shards, states, strict=True):
        view.touch()
        shard.on_batch([ShardBatch(view.name, 0, START_MS + SPAN_MS, [])])
    _save(states)


def build_attribution(root: str, n_pushes: int, _n_events: int) -> None:
    """Write a checkpoint of as many users with one push each that is not settled."""
    store = open_store(Path(root), "attribution", attribution_state, "built")
    states = [store.open_shard(name, None) for name in SHARDS]
    shards = [attribution_shard(name, shard) for name, shard in zip(SHARDS, states, strict=True)]
    for number in range(n_pushes):
        time_ms = START_MS + number % 3_600_000
        states[number % N_SHARDS].touch()
        joined = shards[number % N_SHARDS]
        joined.interaction(f"user-{number:07d}", 0, time_ms).recent.append(("item-1", time_ms))
        joined.on_decision(decision(number, time_ms), 0, START_MS)
    _save(states)


def _save(states: list[Shard[Any]]) -> None:
    for state in states:
        state.snapshot()
    # No `close`: as after a kill, the checkpoint is all that is left.


def resume(root: str, kind: str, results: Any) -> None:
    """Resume a checkpoint in this fresh process; put seconds by phase."""
    codec, make, name = PARTS[kind]
    before = memory_mb()["VmRSS"]
    times, cpu = [time.perf_counter()], time.process_time()
    store = open_store(Path(root), name, codec, f"resumed-{time.time_ns()}")
    states = [store.open_shard(s, SnapshotRef(s, "built-0", 1)) for s in SHARDS]
    states[0].touch()
    times.append(time.perf_counter())
    shards = [make(name, state) for name, state in zip(SHARDS, states, strict=True)]
    times.append(time.perf_counter())
    for number, (shard, state) in enumerate(zip(shards, states, strict=True)):
        state.touch()
        time_ms = START_MS + SPAN_MS
        if kind == "users":
            seen = event(number, 999, time_ms, 1)
            shard.on_batch([ShardBatch(state.name, 0, time_ms, [(time_ms, seen)])])
        else:
            shard.on_decision(decision(number, START_MS + 1), 0, START_MS)
    times.append(time.perf_counter())
    memory = memory_mb()
    results.put(
        {
            "open_s": times[1] - times[0],
            "timers_s": times[2] - times[1],
            "first_batch_s": times[3] - times[2],
            "total_s": times[3] - times[0],
            "cpu_s": time.process_time() - cpu,
            "imports_mb": before,
            "rss_mb": memory["VmRSS"],
        }
    )


PARTS: dict[str, tuple[Any, Callable[[str, Shard[Any]], Any], str]] = {
    "users": (user_state, user_shard, "users"),
    "attribution": (attribution_state, attribution_shard, "attribution"),
}


def memory_mb() -> dict[str, float]:
    """Return this process's memory by the kernel's names, MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found = (line.split() for line in lines if line.startswith("Vm"))
    return {name.rstrip(":"): int(value) / 1024 for name, value, *_ in found}


def in_fresh_process(target: Callable[..., None], *arguments: Any) -> None:
    """Run a function in a process of its own, that starts with nothing of ours in memory."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{target.__name__} failed: exit code {process.exitcode}")


def measure(build: Callable[..., None], kind: str, n: int, n_events: int) -> dict[str, float]:
    """Build a checkpoint, resume it, and print the row."""
    with tempfile.TemporaryDirectory(prefix="pushflow-recovery-") as root:
        in_fresh_process(build, root, n, n_events)
        files = (Path(root) / PARTS[kind][2] / "built-0" / "1").glob("*.sst")
        disk_mb = sum(file.stat().st_size for file in files) / (1 << 20)
        results = multiprocessing.get_context("spawn").SimpleQueue()
        in_fresh_process(resume, root, kind, results)
        found: dict[str, float] = results.get()
    found["disk_mb"] = disk_mb
    columns = (
        "open_s",
        "timers_s",
        "first_batch_s",
        "total_s",
        "cpu_s",
        "rss_mb",
        "disk_mb",
    )
    print(f"{kind:12} {n:>9,} {n_events:>6}", *(f"{found[c]:>13.2f}" for c in columns), flush=True)
    return found


def main() -> None:
    """Print one row a checkpoint, then JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--pushes", type=int, default=200_000)
    options = parser.parse_args()
    columns = (
        "open s",
        "timers s",
        "first batch s",
        "total s",
        "cpu s",
        "rss MiB",
        "disk MiB",
    )
    print(f"{'state':12} {'users':>9} {'events':>6}", *(f"{c:>13}" for c in columns))
    rows = {
        "users": measure(build_users, "users", options.users, 5),
        "attribution": measure(build_attribution, "attribution", options.pushes, 1),
        "tenth": measure(build_users, "users", options.users // 10, 5),
        "tenth_long_log": measure(build_users, "users", options.users // 10, 50),
    }
    result: dict[str, Any] = {"bench": "recovery", "users": options.users}
    for row, found in rows.items():
        result |= {f"{row}_{name}": round(value, 2) for name, value in found.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
