"""The index of vectors and the rows of the catalogue: recall, speed, upkeep, memory.

    python -m bench.index [--rows N] [--million N] [--data PATH]

Times   searches for 100 of 100,000 vectors of 64 columns against exact search, one by one and by
        batches of 32; building, inserts and changes while serving, a refresh after 1,000 new
        items; a batch of 32 triggers through all sources and the merge, at 4,000 and 100,000
        items. CPU time of one thread, the best of several rounds. Exact search is the faster of
        faiss's IndexFlatIP and a BLAS product with a partition.
Counts  what a process grows by for 1,000,000 items, all that `decide` holds of them: rows, ids,
        what is shown, statistics, neighbours, a student's vectors and both indexes.
Leaves out  Kafka, decoding, the student's own work.

Vectors are normal ones (the worst case: no structure), clusters, and hashed texts made of the
titles of online-retail and ml-latest-small, two of them each, for there are too few.
"""

import argparse
import csv
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import faiss
import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.made_up import made_up, made_up_triggers
from flows.recorded import retail
from flows.settings import Candidates
from models.features import TEXT_DIM
from models.intent_source import IntentSource
from models.item_counts import NEIGHBOURS
from models.neighbours import to_grid
from models.sources import Source
from models.text import encode_texts
from models.vector_index import VectorIndex
from operators.candidates import CandidateGenerator, weighed_sources
from operators.catalogue import Catalogue
from operators.messages import Item

Floats = NDArray[np.float32]

LIMIT = 100
BATCH = 32
N_QUERIES = 320
DATA = Path("../shared/data")


class Vectors(NamedTuple):
    """Vectors to find, and some to find them by."""

    rows: Floats
    queries: Floats


def cpu_us(call: Callable[[], object], n: int, rounds: int = 5) -> float:
    """Return the CPU time of one of n things that a call does, microseconds, at best."""
    times = []
    for _ in range(rounds):
        started = time.thread_time_ns()
        call()
        times.append(time.thread_time_ns() - started)
    return min(times) / n / 1_000


def normal(n: int) -> Vectors:
    drawn = unit(np.random.default_rng(0).normal(size=(n + N_QUERIES, TEXT_DIM)))
    return Vectors(drawn[:n], drawn[n:])


def clustered(n: int) -> Vectors:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(1_000, TEXT_DIM))
    drawn = centres[rng.integers(0, 1_000, n + N_QUERIES)]
    drawn = unit(drawn + 0.6 * rng.normal(size=drawn.shape))
    return Vectors(drawn[:n], drawn[n:])


def titles(n: int, data: Path) -> Vectors:
    decoder = msgspec.json.Decoder(Item)
    goods = retail(data / "online-retail/online_retail.csv.gz").items
    known = [decoder.decode(record.value).title for record in goods]
    with (data / "ml-latest-small/movies.csv").open(encoding="utf-8") as file:
        known += [row["title"] for row in csv.DictReader(file)]
    pairs = np.random.default_rng(2).integers(0, len(known), (n + N_QUERIES, 2)).tolist()
    found = to_grid(encode_texts([f"{known[a]} {known[b]}" for a, b in pairs]))
    return Vectors(found[:n], found[n:])


def unit(vectors: NDArray[np.float64]) -> Floats:
    return to_grid(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def index_of(vectors: Floats) -> VectorIndex:
    """Return an empty index over vectors that are held as `decide` holds them."""
    steps = np.rint(vectors * 2_048).astype(np.int16)
    hashes = np.random.default_rng(3).integers(0, 2**63, len(vectors))
    return VectorIndex(
        vectors.shape[1],
        lambda rows: steps[rows].astype(np.float32) * np.float32(1 / 2_048),
        lambda rows: hashes[rows],
    )


def by(search: Callable[[Floats], object], queries: Floats, size: int) -> Callable[[], object]:
    return lambda: [search(queries[at : at + size]) for at in range(0, len(queries), size)]


def searches(made: Vectors) -> dict[str, float]:
    """Return recall, and microseconds a query by way of searching and size of batch."""
    rows, queries = made
    n = len(rows)
    flat = faiss.IndexFlatIP(TEXT_DIM)
    flat.add(rows)
    index = index_of(rows)
    index.put(np.arange(n))
    found = index.search(queries, LIMIT)
    least = flat.search(queries, LIMIT)[0][:, -1]
    # Of equal scores any is as good: a row counts that is no worse than the exact hundredth.
    hits = [(own.scores >= worst).mean() for own, worst in zip(found, least, strict=True)]

    def product(part: Floats) -> None:
        scores = part @ rows.T
        np.argpartition(scores, n - LIMIT, axis=1)

    out = {"recall_at_100": float(np.mean(hits))}
    for size in (1, BATCH):
        out[f"flat_{size}"] = cpu_us(by(lambda q: flat.search(q, LIMIT), queries, size), N_QUERIES)
        out[f"blas_{size}"] = cpu_us(by(product, queries, size), N_QUERIES)
        scan = by(lambda q: index.search(q, LIMIT), queries, size)
        out[f"index_{size}"] = cpu_us(scan, N_QUERIES)
        exact = min(out[f"flat_{size}"], out[f"blas_{size}"])
        out[f"vs_exact_{size}"] = exact / out[f"index_{size}"]
    return out


def upkeep(made: Vectors) -> dict[str, float]:
    """Return what building takes, and rows a second put while searches go on."""
    rows, queries = made
    n = len(rows)
    index = index_of(rows)
    started = time.thread_time()
    index.put(np.arange(n - 10_000))
    index.search(queries[:1], 1)
    out = {"build_s": time.thread_time() - started}
    seconds = dict.fromkeys(("inserts", "changes", "removals"), 0.0)
    for start in range(n - 10_000, n, 100):
        part = np.arange(start, start + 100)
        for name, step in (
            ("inserts", index.put),
            ("changes", index.put),
            ("removals", index.remove),
        ):
            started = time.thread_time()
            step(part if name == "inserts" else part - (n - 10_000))
            seconds[name] += time.thread_time() - started
            index.search(queries[:BATCH], LIMIT)
    return out | {f"{name}_per_s": 10_000 / spent for name, spent in seconds.items()}


def shop(n: int, most_neighbours: int) -> Catalogue:
    """Return a catalogue of n items with a student, filled as its topics fill it."""
    rng = np.random.default_rng(5)
    projection = rng.normal(size=(TEXT_DIM, TEXT_DIM)).astype(np.float32) / 8
    catalogue = Catalogue(max_rows=n + 10_000)
    catalogue.set_embedder(lambda ids, texts: texts @ projection)
    for item, stats in made_up(n, 0, most_neighbours):
        catalogue.apply(item.item_id, item)
        catalogue.apply_stats(stats)
    catalogue.refresh()
    return catalogue


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def grown_mb(n: int, most_neighbours: int) -> float:
    """Return what this process grows by for n items, all indexes in use, MB."""
    index_of(normal(10_000).rows).search(normal(10_000).queries, 1)  # what is loaded is no item
    gc.collect()
    before = resident_mb()
    catalogue = shop(n, most_neighbours)
    probe = to_grid(np.ones((1, TEXT_DIM)))
    assert catalogue.content.search(probe, 5), catalogue.tower.search(probe, 5)
    CandidateGenerator(catalogue).find(made_up_triggers(BATCH, n))
    gc.collect()
    return resident_mb() - before


def grown_alone(n: int, most_neighbours: int) -> float:
    """Return `grown_mb` of a process of its own."""
    command = [sys.executable, "-m", "bench.index", "--grow", str(n), str(most_neighbours)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def retrieval(n_items: int) -> dict[str, float]:
    """Return microseconds a trigger, by batches of 32: queries, each source, and all of it.

    What users write costs two more searches where it is there; "all" is without.
    """
    catalogue, usual = shop(n_items, 2 * NEIGHBOURS), Candidates()
    generator = CandidateGenerator(
        catalogue,
        weights=usual.weights.model_dump(),
        max_per_category=usual.max_per_category,
        copy_cosine=usual.copy_cosine,
        explore_share=usual.explore_share,
    )
    asked = made_up_triggers(N_QUERIES, n_items)
    batches = [asked[at : at + BATCH] for at in range(0, len(asked), BATCH)]
    users = normal(N_QUERIES).rows
    queries = [
        [
            query._replace(user_vector=users[at])
            for at, query in enumerate(generator.ask(batch), start=BATCH * number)
        ]
        for number, batch in enumerate(batches)
    ]
    for batch in queries:
        generator.answer(batch)
    out = {"queries": cpu_us(lambda: [generator.ask(batch) for batch in batches], N_QUERIES)}
    for each in weighed_sources():

        def propose(source: Source = each) -> None:
            for batch in queries:
                source.propose(batch)

        out[each.name] = cpu_us(propose, N_QUERIES)
    writing = [
        [query._replace(intent=query.user_vector, taste=query.user_vector) for query in batch]
        for batch in queries
    ]
    source = IntentSource()
    out["intent and taste, written"] = cpu_us(
        lambda: [source.propose(batch) for batch in writing], N_QUERIES
    )
    out["sources and merge"] = cpu_us(lambda: [generator.answer(b) for b in queries], N_QUERIES)
    out["all"] = out["queries"] + out["sources and merge"]
    return out


def refreshes(n_items: int) -> dict[str, float]:
    """Return milliseconds of a refresh after 1,000 new items, and of one after 1,000 changes."""
    catalogue = shop(n_items, NEIGHBOURS)
    new = [
        Item(item_id=f"new{i}", title=f"word{i} word{i % 7} word{i % 11}", categories=["c1"])
        for i in range(1_000)
    ]
    applied = cpu_us(lambda: [catalogue.apply(item.item_id, item) for item in new], 1_000, 1)
    refreshed = cpu_us(catalogue.refresh, 1, 1) / 1_000
    stats = [stats for _, stats in made_up(1_000, 0, NEIGHBOURS)]
    told = cpu_us(lambda: [catalogue.apply_stats(row) for row in stats], 1_000, 1)
    changed = cpu_us(catalogue.refresh, 1, 1) / 1_000
    return {
        "apply_item_us": applied,
        "apply_stats_us": told,
        "refresh_new_ms": refreshed,
        "refresh_changed_ms": changed,
    }


def show(title: str, numbers: dict[str, float]) -> None:
    print(title)
    for name, value in numbers.items():
        print(f"  {name:28s} {value:12.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--million", type=int, default=1_000_000, help="items to weigh")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--grow", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    if args.grow:
        print(grown_mb(*args.grow))
        return
    tables = {"normal": searches(normal(args.rows)), "clustered": searches(clustered(args.rows))}
    if args.data.exists():
        tables["titles"] = searches(titles(args.rows, args.data))
    else:
        print(f"SKIPPED titles: no {args.data}")
    for name, numbers in tables.items():
        show(f"{args.rows} {name} vectors; us a query", numbers)
    kept = upkeep(normal(args.rows))
    show("upkeep of the index", kept)
    small, large = retrieval(4_000), retrieval(args.rows)
    show(f"a trigger of a batch of {BATCH}, 4000 items, us", small)
    show(f"a trigger of a batch of {BATCH}, {args.rows} items, us", large)
    show(f"the catalogue, {args.rows} items", refreshed := refreshes(args.rows))
    weights = {
        f"mb_{most}_neighbours": grown_alone(args.million, most + 1) for most in (24, NEIGHBOURS)
    }
    show(f"{args.million} items, MB; neighbours: none to so many each", weights)
    result: dict[str, object] = {"bench": "index", "rows": args.rows}
    result["recall_at_100"] = round(min(t["recall_at_100"] for t in tables.values()), 4)
    result["vs_exact"] = round(min(t["vs_exact_1"] for t in tables.values()), 2)
    result["vs_exact_batch"] = round(min(t["vs_exact_32"] for t in tables.values()), 2)
    result["build_s"] = round(kept["build_s"], 2)
    result["inserts_per_s"] = round(kept["inserts_per_s"])
    result["refresh_1000_new_ms"] = round(refreshed["refresh_new_ms"], 1)
    result["mb_per_million"] = round(weights["mb_24_neighbours"] * 1e6 / args.million)
    result["mb_per_million_most"] = round(
        weights[f"mb_{NEIGHBOURS}_neighbours"] * 1e6 / args.million
    )
    result["us_per_trigger_4k"] = round(small["all"])
    result["us_per_trigger_100k"] = round(large["all"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
