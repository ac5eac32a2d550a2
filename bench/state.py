"""The state store alone: what a checkpoint costs, and how fast users are had.

    python -m bench.state [--epochs N] [--held 50000 200000 1000000] [--touched 500 2000 8000]

Times   the close of an epoch (write what is left, checkpoint, clean-up) against users touched in it
        and users held, and the whole epoch's cost in the flow's thread: the close and the 39 small
        writes before it, as `decide` does them (each 50 ms; RocksDB begins to flush 0.5 s before
        the close). 288 bytes a user in 64 shards, 50,000 users in memory. Then `get` of hot users,
        and of users that must be read from RocksDB and decoded.
Leaves out  reading users who are not in memory, Bytewax and its recovery database, a slow disk: the
        directory is a temporary one, and where that lies in memory fsync costs nothing.

A user who is not in memory costs more than one who is: its state is cold when it is packed, and
must be dropped after. So hold more users than fit in memory to see what the number held costs.

Users are drawn with a fixed seed. The state is 36 int64, packed by `struct`. The columns "cpu" are
what to compare where other programs share the cores; "behind" is what RocksDB's own threads use an
epoch, flushing and merging files.
"""

import argparse
import json
import os
import struct
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from flows.run import settle_garbage_collector
from operators.state import Shard, StateStore

N_SHARDS = 64
STATE = struct.Struct("<36q")  # 288 bytes
HOT = 50_000
N_GETS = 20_000
SLICE_S = 0.05  # between two writes back, on a clock of our own
N_SLICES = 40  # an epoch of 2 s
FLUSH_S = 1.5
_FLUSHING_S = 0.05  # for RocksDB's thread; half a second in the flow


class Held(NamedTuple):
    """A store with users in it, and its clock."""

    store: StateStore[list[int]]
    shard_of: list[Shard[list[int]]]  # by user
    clock: list[float]


class Epoch(NamedTuple):
    """What one epoch took, ms; "cpu" is the flow's thread alone."""

    close: float
    close_cpu: float
    whole_cpu: float
    behind: float


def hold(root: Path, n_held: int, hot_capacity: int) -> Held:
    """Return a store with `n_held` users."""
    clock = [0.0]
    store: StateStore[list[int]] = StateStore(
        root,
        f"held-{n_held}-hot-{hot_capacity}",
        encode=lambda state: STATE.pack(*state),
        decode=lambda value: list(STATE.unpack(value)),
        new=lambda key: [0] * 36,
        run_id="bench",
        n_workers=1,
        hot_capacity=hot_capacity,
        write_back_seconds=SLICE_S,
        flush_seconds=FLUSH_S,
        clock=lambda: clock[0],
    )
    shards = [store.open_shard(f"{i:02d}", None) for i in range(N_SHARDS)]
    shard_of = [shards[user % N_SHARDS] for user in range(n_held)]
    for user in range(n_held):
        shard_of[user].touch()
        shard_of[user].get(f"user-{user}")[:] = range(user, user + 36)
    shards[0].snapshot()
    return Held(store, shard_of, clock)


def epoch(on: Held, users: list[int]) -> Epoch:
    """Touch the users over an epoch, and close it."""
    process, thread = time.process_time(), time.thread_time()
    cpu = 0.0
    per_slice = len(users) // N_SLICES
    for n in range(N_SLICES):
        on.clock[0] += SLICE_S
        mine = users[n * per_slice : (n + 1) * per_slice]
        started = time.thread_time()
        on.shard_of[mine[0]].touch()  # writes the slice before back
        cpu += time.thread_time() - started
        if n * SLICE_S <= FLUSH_S < (n + 1) * SLICE_S:
            time.sleep(_FLUSHING_S)
        for user in mine:
            on.shard_of[user].touch()
            on.shard_of[user].get(f"user-{user}")[0] += 1
    began, started = time.perf_counter(), time.thread_time()
    on.shard_of[0].snapshot()
    close, close_cpu = time.perf_counter() - began, time.thread_time() - started
    behind = (time.process_time() - process) - (time.thread_time() - thread)
    return Epoch(*(1_000 * s for s in (close, close_cpu, cpu + close_cpu, behind)))


def epochs(on: Held, n_touched: int, n_epochs: int) -> list[Epoch]:
    """Return some epochs that touch users drawn at random, after one that is not counted."""
    rng = np.random.default_rng(7)
    draws = (rng.choice(len(on.shard_of), n_touched, replace=False) for _ in range(n_epochs + 1))
    return [epoch(on, users.tolist()) for users in draws][1:]


def gets_per_second(root: Path, n_held: int) -> dict[str, float]:
    """Return `get` calls per second for hot users, and for users no longer in memory."""
    on = hold(root / "gets", n_held, N_GETS)
    hot = range(n_held - N_GETS, n_held)  # the last ones written are the ones kept
    cold = np.random.default_rng(7).permutation(n_held - N_GETS)[:N_GETS].tolist()
    rates = {}
    for kind, users in (("hot", hot), ("cold", cold)):
        calls = [(on.shard_of[user], f"user-{user}") for user in users]
        started = time.perf_counter()
        for shard, key in calls:
            shard.get(key)
        rates[kind] = len(calls) / (time.perf_counter() - started)
    on.store.close()
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.state",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--held", type=int, nargs="+", default=[50_000, 200_000, 1_000_000])
    parser.add_argument("--touched", type=int, nargs="+", default=[500, 2_000, 8_000])
    options = parser.parse_args()
    result: dict[str, object] = {"bench": "state", "cores": os.cpu_count()}
    medians: dict[tuple[int, int], Epoch] = {}
    names = ("held", "touched", "close ms", "max ms", "close cpu", "epoch cpu", "behind")
    print(" ".join(f"{name:>10}" for name in names))
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for n_held in options.held:
            on = hold(root, n_held, HOT)
            settle_garbage_collector()
            for n_touched in options.touched:
                of = epochs(on, n_touched, options.epochs)
                middle = Epoch(*(median(column) for column in zip(*of, strict=True)))
                worst = max(one.close for one in of)
                row = (middle.close, worst, *middle[1:])
                numbers = " ".join(f"{ms:>10.2f}" for ms in row)
                print(f"{n_held:>10,} {n_touched:>10,} {numbers}", flush=True)
                medians[n_held, n_touched] = middle
                for name, ms in middle._asdict().items():
                    result[f"{name}_ms_{n_held}_{n_touched}"] = round(ms, 2)
            on.store.close()
        result |= _ratios(medians, options.held, options.touched)
        for kind, rate in gets_per_second(root, 200_000).items():
            print(f"get() of {kind} users, 200,000 held: {rate:,.0f} a second")
            result[f"{kind}_gets_per_second"] = round(rate)
    print(json.dumps(result))


def _ratios(
    medians: dict[tuple[int, int], Epoch], held: list[int], touched: list[int]
) -> dict[str, float]:
    """Print how the cost grows with users held, and with users touched."""
    ratios: dict[str, float] = {}
    for column in ("close_cpu", "whole_cpu"):
        for n in touched:
            costs = [getattr(medians[m, n], column) for m in (held[0], held[-1])]
            ratios[f"{column}_by_held_{n}"] = round(costs[1] / costs[0], 2)
        for n in held:
            costs = [getattr(medians[n, m], column) for m in (touched[0], touched[-1])]
            ratios[f"{column}_by_touched_{n}"] = round(costs[1] / costs[0], 2)
    more = {"held": held[-1] / held[0], "touched": touched[-1] / touched[0]}
    for name, column in (("a close", "close_cpu"), ("an epoch", "whole_cpu")):
        for what, times in more.items():
            found = [r for key, r in ratios.items() if key.startswith(f"{column}_by_{what}_")]
            print(f"{times:,.0f} times the users {what}: {name} takes", *found, "times the cpu")
    return ratios


if __name__ == "__main__":
    main()
