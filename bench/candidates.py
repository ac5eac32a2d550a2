"""Candidates: what one trigger costs by source, and what the upkeep of the tables costs.

    python -m bench.candidates [--items N] [--triggers N]

Times   one trigger through each source and through the merge, and the tables' upkeep: applying
        items and statistics, a refresh, a signal. 50 history items, 50 neighbours an item,
        K = 100, made-up items; medians of CPU time, one thread. Then a trigger of a batch of 32
        with a student and up to 100 neighbours an item, as `bench.index` has it: the best of five.
Leaves out  Kafka, decoding, the student.

How good the candidates are: `pushflow evaluate candidates`.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

from bench.index import BATCH, retrieval
from bench.made_up import NOW_MS, made_up, made_up_triggers
from models.arm_inputs import arm_inputs
from models.neighbour_source import NeighbourSource
from models.sources import (
    ContentSource,
    Source,
    TrendSource,
    UnfinishedSource,
)
from operators.candidates import CandidateGenerator, make_query
from operators.catalogue import Catalogue
from operators.hops import ItemSignal
from operators.item_stats import (
    ItemStatsShard,
    decode_state,
    encode_state,
    new_state,
)
from operators.messages import ItemStats
from operators.shards import DictShard

K = 100


def median_us(call: Callable[[int], object], n: int) -> float:
    """Return the median CPU time of n calls, microseconds."""
    times = []
    for i in range(n):
        started = time.thread_time_ns()
        call(i)
        times.append(time.thread_time_ns() - started)
    return statistics.median(times) / 1_000


def cost(n_items: int, n_triggers: int) -> dict[str, float]:
    """Return medians in microseconds by name."""
    rng = np.random.default_rng(0)
    items, stats = map(list, zip(*made_up(n_items, 50, 51), strict=True))
    catalogue = Catalogue()
    out = {
        "apply an item": median_us(lambda i: catalogue.apply(items[i].item_id, items[i]), n_items),
        "apply statistics": median_us(lambda i: catalogue.apply_stats(stats[i]), n_items),
    }
    started = time.thread_time()
    catalogue.refresh()
    out["first refresh, an item"] = (time.thread_time() - started) * 1e6 / n_items
    triggers = made_up_triggers(n_triggers, n_items)
    queries = [make_query(trigger, catalogue) for trigger in triggers]
    sources: list[Source] = [NeighbourSource(), ContentSource(), TrendSource(), UnfinishedSource()]
    out["make the query"] = median_us(lambda i: make_query(triggers[i], catalogue), n_triggers)
    for source in sources:

        def propose(i: int, source: Source = source) -> object:
            return source.propose(queries[i : i + 1])

        out[source.name] = median_us(propose, n_triggers)
    generator = CandidateGenerator(catalogue)
    found = generator.find(triggers)
    out["merged, everything"] = median_us(lambda i: generator.find(triggers[i : i + 1]), n_triggers)
    rows = [one.rows[:20] for one in found]
    out["arm inputs of 20"] = median_us(
        lambda i: arm_inputs([found[i].query], [rows[i]]), n_triggers
    )
    catalogue.apply_stats(stats[0])
    out["refresh after one change"] = median_us(lambda i: touch(catalogue, stats[i]), 200)
    out["a signal with 10 beside it"], out["a row of statistics"] = signal_cost(rng)
    return out


def touch(catalogue: Catalogue, stats: ItemStats) -> None:
    catalogue.apply_stats(stats)
    catalogue.refresh()


def signal_cost(rng: np.random.Generator) -> tuple[float, float]:
    """Return the cost of a signal and of a published row, microseconds, 200 popular items."""
    shard = ItemStatsShard(DictShard("00", encode=encode_state, decode=decode_state, new=new_state))
    beside = rng.zipf(1.3, (20_000, 10)) % 1_000
    signals = [
        ItemSignal(f"i{n % 200}", "view", NOW_MS + n, "GB", 0.0, tuple(f"i{o}" for o in row))
        for n, row in enumerate(beside.tolist())
    ]
    signal_us = median_us(lambda i: shard.on_signal(signals[i]), len(signals))
    started = time.thread_time()
    n_rows = len(shard.dirty())
    return signal_us, (time.thread_time() - started) * 1e6 / n_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=4_000)
    parser.add_argument("--triggers", type=int, default=500)
    args = parser.parse_args()
    result: dict[str, object] = {"bench": "candidates", "items": args.items}
    result["threads"] = os.environ.get("OMP_NUM_THREADS", "default")
    costs = cost(args.items, args.triggers)
    print(f"{args.items} items, 50 history items, K = {K}; medians of CPU time, µs")
    for name, us in costs.items():
        print(f"  {name:28s} {us:8.1f}")
    of_batch = retrieval(args.items)
    print(f"a trigger of a batch of {BATCH}, with a student; CPU time at best, µs")
    for name, us in of_batch.items():
        print(f"  {name:28s} {us:8.1f}")
    result["us_of_batch"] = {name: round(us, 1) for name, us in of_batch.items()}
    result["us"] = {name: round(us, 1) for name, us in costs.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
