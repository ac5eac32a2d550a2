"""The state store alone: what a checkpoint costs, and how fast users are had.

    python -m bench.state [--epochs N]

Times   the close of an epoch (encode, write, checkpoint, clean-up) for 500 and 5,000 users touched
        of 10,000 and 200,000 held, 288 bytes each in 64 shards; then `get` of hot users and of
        users that must be read from RocksDB and decoded.
Leaves out  Bytewax and its recovery database (about 4 ms an epoch), a slow disk: the directory is
        a temporary one, and where that lies in memory fsync costs nothing.

Users are drawn with a fixed seed. The state is 36 int64, packed by `struct`. The column "cpu ms"
is what to compare where other programs share the cores.
"""

import argparse
import json
import os
import statistics
import struct
import tempfile
import time
from pathlib import Path

import numpy as np

from operators.state import Shard, StateStore

N_SHARDS = 64
STATE = struct.Struct("<36q")  # 288 bytes
N_GETS = 20_000


def open_shards(
    root: Path, n_held: int, hot_capacity: int, seconds: list[float]
) -> tuple[StateStore[list[int]], list[Shard[list[int]]]]:
    """Return a store with `n_held` users, and for each user the shard that holds them."""
    store: StateStore[list[int]] = StateStore(
        root,
        f"held-{n_held}-hot-{hot_capacity}",
        encode=lambda state: STATE.pack(*state),
        decode=lambda value: list(STATE.unpack(value)),
        new=lambda key: [0] * 36,
        run_id="bench",
        n_workers=1,
        hot_capacity=hot_capacity,
        clock=time.perf_counter,
        on_checkpoint=lambda spent, _: seconds.append(spent),
    )
    shards = [store.open_shard(f"{i:02d}", None) for i in range(N_SHARDS)]
    shard_of = [shards[user % N_SHARDS] for user in range(n_held)]
    for user in range(n_held):
        shard_of[user].touch()
        shard_of[user].get(f"user-{user}")[:] = range(user, user + 36)
    shards[0].snapshot()
    return store, shard_of


def checkpoint_ms(
    root: Path, n_held: int, n_touched: int, n_epochs: int
) -> tuple[list[float], list[float]]:
    """Return the milliseconds of each close: by the clock, and of the worker's own CPU time."""
    seconds: list[float] = []
    rng = np.random.default_rng(7)
    store, shard_of = open_shards(root / f"{n_touched}", n_held, 50_000, seconds)
    seconds.clear()
    cpu_seconds = []
    for _ in range(n_epochs):
        users = rng.choice(n_held, n_touched, replace=False).tolist()
        for user in users:
            shard_of[user].touch()
            shard_of[user].get(f"user-{user}")[0] += 1
        started = time.thread_time()
        shard_of[0].snapshot()
        cpu_seconds.append(time.thread_time() - started)
    store.close()
    return [1_000 * s for s in seconds], [1_000 * s for s in cpu_seconds]


def gets_per_second(root: Path, n_held: int) -> dict[str, float]:
    """Return `get` calls per second for hot users, and for users no longer in memory."""
    store, shard_of = open_shards(root / "gets", n_held, N_GETS, [])
    hot = range(n_held - N_GETS, n_held)  # the last ones written are the ones kept
    cold = np.random.default_rng(7).permutation(n_held - N_GETS)[:N_GETS].tolist()
    rates = {}
    for kind, users in (("hot", hot), ("cold", cold)):
        calls = [(shard_of[user], f"user-{user}") for user in users]
        started = time.perf_counter()
        for shard, key in calls:
            shard.get(key)
        rates[kind] = len(calls) / (time.perf_counter() - started)
    store.close()
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    n_epochs = parser.parse_args().epochs
    result: dict[str, object] = {"bench": "state", "epochs": n_epochs, "cores": os.cpu_count()}
    print(f"{'held':>9} {'touched':>9} {'p50 ms':>9} {'max ms':>9} {'cpu ms':>9}")
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for n_held in (10_000, 200_000):
            for n_touched in (500, 5_000):
                spent, cpu_spent = checkpoint_ms(root, n_held, n_touched, n_epochs)
                p50, worst, cpu = statistics.median(spent), max(spent), statistics.median(cpu_spent)
                print(f"{n_held:>9,} {n_touched:>9,} {p50:>9.2f} {worst:>9.2f} {cpu:>9.2f}")
                result[f"checkpoint_ms_{n_held}_{n_touched}"] = round(p50, 2)
                result[f"checkpoint_cpu_ms_{n_held}_{n_touched}"] = round(cpu, 2)
        for kind, rate in gets_per_second(root, 200_000).items():
            print(f"get() of {kind} users, 200,000 held: {rate:,.0f} a second")
            result[f"{kind}_gets_per_second"] = round(rate)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
