"""Keys and values kept for hot users: what an event costs, and whether it pays on the real job.

Times   user vectors of full histories of 50 by the whole window, float and int8, with full and with
        short reach; and by `IncrementalScorer` with one to twenty new events a user, comparing
        and writing back included, users drawn from 10,000 that are kept. CPU time of one
        thread, so that neighbours do not count; the least of many calls, a few of a kind in a row.
Leaves  out the products with candidates, which are the same for all. Weights are random: they do
        not change the time.

    python -m bench.incremental [--users 10000]

The job's table says what an event costs where a share of events triggers a decision: by the whole
window at each trigger; by a memory written at each event; by a memory brought up to date at each
trigger. Prints tables, then one JSON line.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.student import N_ITEMS, eager, graph_inputs, make_requests
from models.checkpoint import write_model
from models.compress import int8_ranges
from models.dataset import Requests
from models.export import export_student
from models.features import HISTORY, N_CONTEXT, TEXT_DIM
from models.incremental import Asked, IncrementalScorer, incremental_parts
from models.serving import StudentScorer
from models.student import Student, StudentConfig

REACH = (43, 7)
BATCHES = (8, 32)
ROUNDS = 15
IN_A_ROW = 5  # calls of a kind, as a busy server makes them
NEW = (1, 2, 3, 5, 10, 20)  # events of a user since the last call
WHOLE = 0  # new events of a user who is rebuilt
SHARES = (1.0, 0.5, 0.33, 0.2, 0.1, 0.05)


class Stream:
    """Users with full histories, whose events come when they are asked about."""

    def __init__(self, n_users: int) -> None:
        self.rng = np.random.default_rng(0)
        shape = (n_users, HISTORY)
        self.names = [f"u{n}" for n in range(n_users)]
        self.items = self.rng.integers(1, N_ITEMS + 1, shape)
        self.types = self.rng.integers(1, 12, shape)
        self.times = np.cumsum(self.rng.integers(1, 10_000, shape), axis=1)
        self.tokens = self.rng.integers(1, 1 << 62, shape)
        self.context = self.rng.exponential(3, (n_users, N_CONTEXT)).astype(np.float32)

    def ask(self, who: NDArray[np.int64], n_new: int) -> tuple[list[str], Asked]:
        """Return a request after `n_new` events of each; after all of them new where 0."""
        n_moved = n_new or HISTORY
        for columns, low, high in (
            (self.items, 1, N_ITEMS + 1),
            (self.types, 1, 12),
            (self.tokens, 1, 1 << 62),
        ):
            columns[who] = np.roll(columns[who], -n_moved, axis=1)
            columns[who, -n_moved:] = self.rng.integers(low, high, (len(who), n_moved))
        self.times[who] = np.roll(self.times[who], -n_moved, axis=1)
        newest = np.cumsum(self.rng.integers(1, 10_000, (len(who), n_moved)), axis=1)
        self.times[who, -n_moved:] = self.times[who].max(axis=1)[:, None] + newest
        asked = Asked(
            self.tokens[who],
            self.items[who],
            self.types[who],
            self.times[who],
            self.times[who, -1] + 60,
            self.context[who],
        )
        return [self.names[n] for n in who.tolist()], asked


def least(calls: dict[str, Callable[[], Callable[[], object]]], n_users: int) -> dict[str, float]:
    """Return µs a user of each call; what a call needs is made before, and not timed."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, make in calls.items():
            for call in [make() for _ in range(IN_A_ROW)]:
                began = time.thread_time()
                call()
                best[name] = min(best[name], 1e6 * (time.thread_time() - began) / n_users)
    return best


def scorers(student: Student, folder: Path, requests: Requests) -> list[StudentScorer]:
    """Return a student's scorers, in float and in int8."""
    path = folder / "student.pfm"
    ids = [str(n) for n in range(N_ITEMS)]
    write_model(path, export_student(student, ids, {}))
    plain = StudentScorer(path)
    ranges = int8_ranges(student, table_of(plain), requests)
    write_model(path, export_student(student, ids, {}, None, ranges))
    return [plain, StudentScorer(path)]


def table_of(scorer: StudentScorer) -> NDArray[np.float32]:
    texts = np.random.default_rng(1).standard_normal((N_ITEMS, TEXT_DIM)).astype(np.float32)
    vectors = scorer.embed_items([str(n) for n in range(N_ITEMS)], texts)
    return np.vstack((np.zeros((1, scorer.dim), np.float32), vectors))


def whole_call(scorer: StudentScorer, n_users: int) -> Callable[[], Callable[[], object]]:
    asked = {k: v for k, v in make_requests(n_users).items() if k != "candidate_rows"}
    call = partial(scorer.user_vectors, table_of(scorer).astype(np.float16), **asked)
    return lambda: call


def step_call(
    scorer: IncrementalScorer, stream: Stream, table: NDArray[np.float16], n_users: int, n_new: int
) -> Callable[[], Callable[[], object]]:
    def make() -> Callable[[], object]:
        who = stream.rng.choice(len(stream.names), n_users, replace=False)
        return partial(scorer.user_vectors, *stream.ask(who, n_new), table)

    return make


def eager_call(student: Student, n_users: int) -> Callable[[], Callable[[], object]]:
    requests = make_requests(n_users)
    asked = {**graph_inputs(requests), "candidates": requests["candidate_rows"]}
    table = student.item_table(torch.randn(N_ITEMS, TEXT_DIM)).detach()
    call = partial(eager, student, table, {k: torch.from_numpy(v) for k, v in asked.items()})
    return lambda: call


def measure(n_hot: int) -> dict[int, dict[str, float]]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    full, narrow = Student(StudentConfig(), N_ITEMS), Student(StudentConfig(reach=REACH), N_ITEMS)
    asked = make_requests(256)
    requests = Requests(
        asked["history_rows"],
        asked["history_types"],
        asked["history_age_s"],
        asked["context"],
        asked["candidate_rows"][:, 0],
    )
    with tempfile.TemporaryDirectory() as folder:
        wide = scorers(full.eval(), Path(folder), requests)
        short = scorers(narrow.eval(), Path(folder), requests)
    stream, kept = Stream(n_hot), IncrementalScorer(incremental_parts(narrow), n_hot)
    table = table_of(short[0]).astype(np.float16)
    for start in range(0, n_hot, 1_000):
        who = np.arange(start, min(start + 1_000, n_hot))
        kept.user_vectors(*stream.ask(who, WHOLE), table)
    found = {}
    for n_users in BATCHES:
        calls = {
            "eager fp32": eager_call(full, n_users),
            "fp32": whole_call(wide[0], n_users),
            "int8": whole_call(wide[1], n_users),
            "short reach, fp32": whole_call(short[0], n_users),
            "short reach, int8": whole_call(short[1], n_users),
        }
        for n_new in NEW:
            calls[f"kept, {n_new} new"] = step_call(kept, stream, table, n_users, n_new)
        calls["kept, rebuilt"] = step_call(kept, stream, table, n_users, WHOLE)
        found[n_users] = least(calls, n_users)
    return found


def of_the_job(us: dict[str, float], share: float) -> dict[str, float]:
    """Return µs an event of three ways, where a share of events triggers, evenly spread."""
    whole, between = us["short reach, int8"], round(1 / share)
    at_trigger = us[f"kept, {between} new"]
    return {
        "whole window": share * whole,
        "written at events": us["kept, 1 new"],
        "brought up to date": share * at_trigger,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--users", type=int, default=10_000, help="that are kept")
    found = measure(parser.parse_args().users)
    print(f"{'µs a user, one thread':28}" + "".join(f"{f'batch {n}':>12}" for n in found))
    for name in found[BATCHES[0]]:
        print(f"{name:28}" + "".join(f"{found[n][name]:12.1f}" for n in found))
    ratios = {
        name: {n: us[slow] / us[fast] for n, us in found.items()}
        for name, slow, fast in (
            ("int8 over eager", "eager fp32", "int8"),
            ("short int8 over eager", "eager fp32", "short reach, int8"),
            ("kept over int8", "int8", "kept, 1 new"),
            ("kept over short int8", "short reach, int8", "kept, 1 new"),
        )
    }
    for name, by_batch in ratios.items():
        print(f"{name + ', times':28}" + "".join(f"{ratio:12.2f}" for ratio in by_batch.values()))
    us = found[BATCHES[-1]]
    print(f"\n{'events that trigger':24}" + "".join(f"{name:>20}" for name in of_the_job(us, 1.0)))
    job = {share: of_the_job(us, share) for share in SHARES}
    for share, ways in job.items():
        print(f"{share:<24.0%}" + "".join(f"{cost:17.1f} µs" for cost in ways.values()))
    told = {"batches": found, "ratios": ratios, "job": job}
    print(json.dumps({"bench": "incremental", **told}))


if __name__ == "__main__":
    main()
