"""The student: users scored a second, and how well it ranks on real data.

Times   one call with full histories of 50 and 100 candidates, on one thread: the torch module
        as it stands (eager, fp32, newest position asked at the end), the users' vectors by
        `StudentScorer` with its buckets and scaling, and these with products and masking. Best of
        7 rounds.
        Then how long a trigger's scores take as `operators.ranking` asks for them: users' vectors
        and scores of as many candidates as `decide` has, and of five times as many, from a table
        in float16; median and 99th percentile of single calls on one thread, by the clock and,
        since a busy machine makes the clock's any number, by the thread's CPU time.
Leaves  out building the item table and reading the model file. Weights are random: they do
        not change the time.
--train trains on ml-latest-small and online-retail instead and prints their test metrics;
        needs ../shared/data. --demo trains on a planted set of the demo's size.

    python -m bench.student [--train | --demo] [--reach 43,7] [--seed 0]

Prints a table, then one JSON line.
"""

import argparse
import csv
import gzip
import json
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.checkpoint import write_model
from models.dataset import Histories, build_histories, gap_buckets, time_bucket
from models.export import export_student
from models.features import CANDIDATES, EVENT_CODE, HISTORY, N_CONTEXT, TEXT_DIM, scale_context
from models.serving import StudentScorer, Table
from models.student import Student, StudentConfig
from models.text import item_text
from models.train import TrainConfig, train_student

DATA = Path(__file__).parents[2] / "shared" / "data"
N_ITEMS = 5_000
BATCHES = (1, 8, 32, 128)
TRIGGERS = (1, 8, 32)  # that `decide` scores at once
CALLS = 2_000  # of each: the 99th percentile is that of the 20 slowest
SETS = 16  # of requests, turn and turn about: no call finds its rows in the cache by habit
ROUNDS = 7

Corpus = tuple[Histories, list[str], list[str]]


def best_seconds(call: Callable[[], object], n_users: int) -> float:
    repeats = max(3, 256 // n_users)
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        best = min(best, (time.perf_counter() - start) / repeats)
    return best


def make_requests(
    n_users: int, n_candidates: int = CANDIDATES, seed: int = 0
) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng([n_users, seed])
    shape = (n_users, HISTORY)
    return {
        "history_rows": rng.integers(1, N_ITEMS + 1, shape),
        "history_types": rng.integers(1, 12, shape),
        "history_age_s": np.sort(rng.exponential(1e5, shape))[:, ::-1].astype(np.float32),
        "context": rng.exponential(3, (n_users, N_CONTEXT)).astype(np.float32),
        "candidate_rows": rng.integers(1, N_ITEMS + 1, (n_users, n_candidates)),
    }


def graph_inputs(requests: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    rows, age_s = requests["history_rows"], requests["history_age_s"]
    return {
        "rows": rows,
        "types": requests["history_types"],
        "gaps": gap_buckets(rows, age_s),
        "context": scale_context(requests["context"]),
        "age": time_bucket(age_s[:, -1]),
    }


def histories_of(requests: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: values for name, values in requests.items() if name != "candidate_rows"}


def serve(
    scorer: StudentScorer, table: Table, requests: dict[str, NDArray[Any]]
) -> NDArray[np.float32]:
    users = scorer.user_vectors(table, **histories_of(requests))
    return scorer.score(table, users, requests["candidate_rows"])


def eager(student: Student, table: torch.Tensor, t: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        states = student.encode(table, t["rows"], t["types"], t["gaps"])[:, -1]
        users = student.users(states, t["context"], t["age"])
        return table[t["candidates"]] @ users[:, :, None]


def served(student: Student) -> StudentScorer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.pfm"
        write_model(path, export_student(student, [str(i) for i in range(N_ITEMS)], {}))
        return StudentScorer(path)


def time_serving(config: StudentConfig) -> dict[str, float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    student = Student(config, N_ITEMS).eval()
    scorer = served(student)
    vectors = student.item_table(torch.randn(N_ITEMS, TEXT_DIM)).detach()
    table = vectors.numpy()
    found: dict[str, float] = {}
    print(
        f"{'users a call':>12} {'eager µs/user':>14} {'users µs/user':>14} {'scorer µs/user':>15}"
    )
    for n_users in BATCHES:
        requests = make_requests(n_users)
        inputs = graph_inputs(requests)
        asked = {**inputs, "candidates": requests["candidate_rows"]}
        tensors = {name: torch.from_numpy(values) for name, values in asked.items()}
        calls: dict[str, Callable[[], object]] = {
            "eager": partial(eager, student, vectors, tensors),
            "users": partial(scorer.user_vectors, table, **histories_of(requests)),
            "scorer": partial(serve, scorer, table, requests),
        }
        micros = {k: best_seconds(call, n_users) / n_users * 1e6 for k, call in calls.items()}
        print("{:12d} {:14.1f} {:14.1f} {:15.1f}".format(n_users, *micros.values()))
        found |= {f"{name}_us_{n_users}": round(value, 1) for name, value in micros.items()}
        found |= {f"{n}_users_per_s_{n_users}": round(1e6 / v) for n, v in micros.items()}
    return found | time_scores(scorer, table.astype(np.float16))


def time_scores(scorer: StudentScorer, table: Table) -> dict[str, float]:
    found: dict[str, float] = {}
    columns = ("p50", "p99", "cpu_p99")
    print(
        f"\n{'users a call':>12} {'candidates':>11}" + "".join(f"{c + ' ms':>12}" for c in columns)
    )
    for n_users, n in product(TRIGGERS, (CANDIDATES, 5 * CANDIDATES)):
        sets = [make_requests(n_users, n, seed) for seed in range(SETS)]
        took_s = []
        for requests in islice(cycle(sets), SETS + CALLS):
            start = time.perf_counter(), time.thread_time()
            serve(scorer, table, requests)
            took_s.append((time.perf_counter() - start[0], time.thread_time() - start[1]))
        wall, cpu = 1e3 * np.array(took_s[SETS:]).T  # without the first of each set
        ms = [np.percentile(wall, 50), np.percentile(wall, 99), np.percentile(cpu, 99)]
        print(f"{n_users:12d} {n:11d}" + "".join(f"{x:12.3f}" for x in ms))
        found |= {
            f"{name}_ms_{n_users}x{n}": round(float(x), 3)
            for name, x in zip(columns, ms, strict=True)
        }
    return found


def movielens() -> Corpus:
    folder = DATA / "ml-latest-small"
    with (folder / "ratings.csv").open() as file:
        ratings = list(csv.DictReader(file))
    rated = {row["movieId"] for row in ratings}
    with (folder / "movies.csv").open() as file:
        movies = [row for row in csv.DictReader(file) if row["movieId"] in rated]
    ids = [row["movieId"] for row in movies]
    texts = [item_text(row["title"], categories=row["genres"].split("|")) for row in movies]
    users, items = [row["userId"] for row in ratings], [row["movieId"] for row in ratings]
    times = [int(row["timestamp"]) for row in ratings]
    kinds = [EVENT_CODE["rate"]] * len(ratings)
    return build_histories(users, items, kinds, times, item_ids=ids), ids, texts


def retail() -> Corpus:
    with gzip.open(DATA / "online-retail" / "online_retail.csv.gz", "rt") as file:
        lines = [
            row
            for row in csv.DictReader(file)
            if row["CustomerID"] and not row["InvoiceNo"].startswith("C")
        ]
    titles = {row["StockCode"]: row["Description"] for row in reversed(lines)}
    ids = sorted(titles)
    times = [int(datetime.fromisoformat(row["InvoiceDate"] + "Z").timestamp()) for row in lines]
    users, items = [row["CustomerID"] for row in lines], [row["StockCode"] for row in lines]
    kinds = [EVENT_CODE["purchase"]] * len(lines)
    histories = build_histories(users, items, kinds, times, item_ids=ids)
    return histories, ids, [titles[item_id] for item_id in ids]


def planted() -> Corpus:
    """Return 2,000 users with 60 events each on 500 items of 20 tastes."""
    rng = np.random.default_rng(0)
    n_users, n_events, n_items, n_tastes = 2_000, 60, 500, 20
    ids = [f"i{n}" for n in range(n_items)]
    own = rng.integers(n_tastes, size=(n_users, 1))
    is_own = rng.random((n_users, n_events)) < 0.8
    tastes = np.where(is_own, own, rng.integers(n_tastes, size=(n_users, n_events)))
    items = tastes + n_tastes * rng.integers(n_items // n_tastes, size=tastes.shape)
    users = np.repeat(np.arange(n_users), n_events)
    times = (np.arange(n_events) * 10_000 + rng.integers(0, 86_400, (n_users, 1))).ravel()
    types = rng.choice([1, 2, 4, 6], users.size)
    histories = build_histories(
        users.astype(str), [ids[i] for i in items.ravel()], types, times, item_ids=ids
    )
    return histories, ids, [f"taste {n % n_tastes} item {n}" for n in range(n_items)]


def train_on(
    corpora: dict[str, Callable[[], Corpus]], config: TrainConfig, seed: int
) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, load in corpora.items():
        histories, ids, texts = load()
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "student.pfm"
            trained = train_student(histories, ids, texts, path=path, config=config, seed=seed)
        metrics = trained.metrics
        metrics["seconds"] = time.perf_counter() - start
        print(
            f"{name}: {len(histories.user_ids)} users, {len(ids)} items, "
            f"{len(histories.rows)} events"
        )
        for key, value in metrics.items():
            print(f"  {key:24} {value:10.4f}")
        found |= {f"{name}_{key}": round(value, 4) for key, value in metrics.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--train", action="store_true", help="train on the two real data sets")
    which.add_argument("--demo", action="store_true", help="train on a set of the demo's size")
    parser.add_argument("--epochs", type=int, default=TrainConfig().epochs)
    parser.add_argument("--threads", type=int, default=TrainConfig().threads)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reach", default="", help="positions each layer sees, as 43,7; all")
    args = parser.parse_args()
    reach = tuple(int(n) for n in args.reach.split(",")) if args.reach else ()
    student = StudentConfig(reach=reach)
    config = TrainConfig(student=student, epochs=args.epochs, threads=args.threads)
    if args.train:
        found = train_on({"movielens": movielens, "retail": retail}, config, args.seed)
    elif args.demo:
        found = train_on({"planted": planted}, config, args.seed)
    else:
        found = time_serving(student)
    print(json.dumps({"bench": "student", **found}))


if __name__ == "__main__":
    main()
