"""Latency from event to decision, and what recovery costs of it: used by `bench.path`.

Owns    how an event is timed, and how two settings are compared on a noisy machine: in turn, on the
        same users, topics and broker, so that what slows the machine down slows both.
"""

import argparse
import gc
import json
import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from bench import load as made
from bench.rig import Options, Rig, broker, rig
from flows.children import Samples

_N_FIRING = 50_000  # users who may fire: more than any run has triggers
_SETTLING_S = 5.0  # at the start of each run, not counted
_STORES = ("users", "pushes")


class Measured(NamedTuple):
    """What one run gave."""

    took_ms: list[float]
    n_lost: int  # decisions that did not come back
    checkpoint_ms: float  # mean of one epoch's close, both stores together; 0 without any
    touched: float  # users written at one close and since the one before

    def row(self) -> dict[str, float]:
        """Return percentiles in ms, and counts."""
        return {
            **percentiles(self.took_ms),
            "max_ms": round(max(self.took_ms), 2),
            "measured": len(self.took_ms),
            "lost": self.n_lost,
            "checkpoint_ms": round(self.checkpoint_ms, 2),
            "touched": round(self.touched),
        }


def percentiles(took_ms: list[float]) -> dict[str, float]:
    """Return the percentiles of a latency, ms."""
    p50, p99, p999 = np.percentile(took_ms, [50, 99, 99.9]).tolist()
    return {"p50_ms": round(p50, 2), "p99_ms": round(p99, 2), "p999_ms": round(p999, 2)}


def load_of(n_users: int, share: float, rate: int) -> made.Load:
    """Return a load whose event time runs as the clock does at `rate` events a second."""
    return made.Load(n_users, share, speed=1_000 / rate, n_firing=_N_FIRING)


def measure(on: Rig, load: made.Load, rate: int, seconds: float) -> Measured:
    """Send events at `rate` a second; time each trigger from its event to its decision.

    Our own garbage is collected before and after, not meanwhile: this process holds all events and
    torch, and a collection would stop the load, and whoever reads the decisions, for 50 to 200 ms.
    """
    messages = load.events(int(rate * (_SETTLING_S + seconds)))
    gc.collect()
    gc.disable()
    try:
        return _measure(on, messages, rate)
    finally:
        gc.enable()


def _measure(on: Rig, messages: list[made.Message], rate: int) -> Measured:
    decided = on.decisions.n_read
    before: Samples = {}
    sent: dict[str, float] = {}
    began = time.perf_counter()
    for n, message in enumerate(messages):
        due = began + n / rate
        while (now := time.perf_counter()) < due:
            time.sleep(min(due - now, 0.001))
        if n == int(rate * _SETTLING_S / 2):
            before = on.samples()
        if message.is_trigger:
            sent[message.event_id] = time.perf_counter()
        on.send_event(message)
    on.decisions.wait(decided + len(sent))
    after = on.samples()
    at, counted_from = on.decisions.at, began + _SETTLING_S
    took = [1_000 * (at[e] - s) for e, s in sent.items() if e in at and s >= counted_from]
    if not took:
        raise RuntimeError("no decision came back: see decide's log")
    n_lost = sum(event_id not in at for event_id in sent)
    return Measured(took, n_lost, *_checkpoints(before, after))


def _checkpoints(before: Samples, after: Samples) -> tuple[float, float]:
    """Return the mean milliseconds of an epoch's close between two looks, and users touched."""
    milliseconds = 0.0
    closes = 0.0
    for store in _STORES:
        seconds, closes = (
            _grown(before, after, f"pushflow_checkpoint_seconds_{part}", store)
            for part in ("sum", "count")
        )
        milliseconds += 1_000 * seconds / closes if closes else 0.0
    touched = _grown(before, after, "pushflow_state_touched_total", "users")
    return milliseconds, touched / closes if closes else 0.0


def _grown(before: Samples, after: Samples, name: str, store: str) -> float:
    where = name, frozenset({("store", store)})
    return after.get(where, 0.0) - before.get(where, 0.0)


def compare(options: Options, arguments: argparse.Namespace) -> None:
    """Print recovery on against off for each number of users; JSON last."""
    result: dict[str, object] = {"bench": "path_recovery", "rate": arguments.rate}
    lines = []
    with broker(options) as client:
        for n_users in arguments.users:
            load = load_of(n_users, arguments.share, arguments.rate)
            began = time.perf_counter()
            with rig(client, options) as on:
                on.warm(load)
                memory_mb = on.memory_mb()
                print(
                    f"{n_users:,} users taken in by {time.perf_counter() - began:.0f} s,"
                    f" memory of decide {memory_mb:,} MB",
                    flush=True,
                )
                measure(on, load, arguments.rate, arguments.seconds)  # warms the broker's Java
                runs: dict[str, list[Measured]] = {"off": [], "on": []}
                for _ in range(arguments.rounds):
                    for recovery, of in runs.items():
                        on.restart(load, has_recovery=recovery == "on")
                        of.append(measure(on, load, arguments.rate, arguments.seconds))
                        print(f"  recovery {recovery:3}", of[-1].row(), flush=True)
            result[f"memory_mb_{n_users}"] = memory_mb
            result |= _compared(n_users, runs)
            lines += _lines(n_users, runs)
    print(f"\n{'users':>10} {'recovery':>9} {'p50 ms':>8} {'p99 ms':>8} {'p99.9 ms':>9} "
          f"{'max ms':>8} {'p99 of each run':>24} {'a close ms':>11} {'touched':>8}")  # fmt: skip
    print("\n".join(lines))
    print(json.dumps(result))


def _all(runs: Iterable[Measured]) -> list[float]:
    return [ms for run in runs for ms in run.took_ms]


def _lines(n_users: int, runs: dict[str, list[Measured]]) -> list[str]:
    lines = []
    for recovery, of in runs.items():
        p50, p99, p999 = percentiles(_all(of)).values()
        each = ", ".join(f"{run.row()['p99_ms']:.1f}" for run in of)
        close = np.mean([run.checkpoint_ms for run in of])
        lines.append(
            f"{n_users:>10,} {recovery:>9} {p50:>8.1f} {p99:>8.1f} {p999:>9.1f} "
            f"{max(_all(of)):>8.1f} {each:>24} {close:>11.1f} "
            f"{np.mean([run.touched for run in of]):>8,.0f}"
        )
    ratio = _compared(n_users, runs)[f"p99_ratio_{n_users}"]
    lines.append(f"{n_users:>10,}  p99 with recovery is {ratio} times of without")
    return lines


def _compared(n_users: int, runs: dict[str, list[Measured]]) -> dict[str, float]:
    """Return the result's numbers of one number of users."""
    p99 = {recovery: percentiles(_all(of))["p99_ms"] for recovery, of in runs.items()}
    return {
        f"p99_ms_{n_users}_on": p99["on"],
        f"p99_ms_{n_users}_off": p99["off"],
        f"p99_ratio_{n_users}": round(p99["on"] / p99["off"], 2),
        f"lost_{n_users}": sum(run.n_lost for of in runs.values() for run in of),
    }
