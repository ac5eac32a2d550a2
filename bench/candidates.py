"""Candidates: what they cost by source, and how many of the next invoice's items they find.

    python -m bench.candidates [--items N] [--triggers N] [--retail PATH] [--tune]

Times   one trigger through each source and through the merge, and the tables' upkeep: applying
        items and statistics, a refresh, a signal. 50 history items, 50 neighbours an item,
        K = 100, made-up items; medians of CPU time, one thread.
Leaves out  Kafka, decoding, the student.

Quality is measured on online-retail (Chen, Sain and Guo 2012), split by time and by invoice:
statistics learn from all invoices before a date, and stand still; then each later invoice of a
known customer is asked for, from that customer's purchases before it. Recall@100 is the share of
the invoice's items among 100 candidates, averaged over invoices; "new" counts the items that are
not among the customer's last 50, for those are what discovery may propose. Ties go by item_id.
Settings were chosen on July 2011 (`--tune`, trained on what is before); August and September are
the test.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from flows.recorded import retail
from models.features import EVENT_CODE, HISTORY
from models.sources import (
    ContentSource,
    NeighbourSource,
    Query,
    Source,
    TrendSource,
    UnfinishedSource,
)
from models.trend import top_of, top_of_week
from operators.candidates import WEIGHTS, CandidateGenerator, arm_inputs, make_query
from operators.catalogue import Catalogue
from operators.hops import Engagement, History, ItemSignal, Trigger
from operators.item_stats import (
    InteractionTracker,
    ItemStatsShard,
    decode_state,
    encode_state,
    fan_out,
    new_state,
)
from operators.messages import Event, Item, ItemStats, UserProfile
from operators.shards import DictShard

K = 100
GAP_MS = 1_800_000
NOW_MS = 1_700_000_000_000
RETAIL = Path("../shared/data/online-retail/online_retail.csv.gz")


class Case(NamedTuple):
    """A known customer's invoice, and what came before it."""

    trigger: Trigger
    bought: frozenset[str]


def trigger_of(
    user_id: str, time_ms: int, history: list[tuple[str, int, str]], country: str
) -> Trigger:
    """Return an idle user's trigger; history has (item_id, time_ms, event type), oldest first."""
    bought = [item for item, _, kind in history if kind == "purchase"]
    return Trigger(
        type="idle",
        event_id="e",
        user_id=user_id,
        shard="00",
        time_ms=time_ms,
        context=[],
        history=History(
            [item for item, _, _ in history],
            [EVENT_CODE[kind] for _, _, kind in history],
            [ms // 1_000 for _, ms, _ in history],
        ),
        cart=[],
        bought=list(dict.fromkeys(bought)),
        category="",
        platform="",
        profile=UserProfile(user_id=user_id, country=country),
        engagement=Engagement(0.0, 0.0, 0, False),
    )


def made_up(n_items: int, rng: np.random.Generator) -> tuple[list[Item], list[ItemStats]]:
    """Return items of five words out of 2,000, and statistics with 50 neighbours each."""
    items, stats = [], []
    for n in range(n_items):
        words = " ".join(f"word{w}" for w in rng.integers(0, 2_000, 5))
        item = Item(
            item_id=f"i{n:06d}",
            title=words,
            categories=[f"c{n % 40}"],
            price=float(n % 90),
            created_ms=NOW_MS - int(rng.integers(0, 10**10)),
        )
        others = rng.choice(n_items, 50, replace=False)
        counts = rng.gamma(0.5, 20.0, 9).round(4).tolist()
        items.append(item)
        stats.append(
            ItemStats(
                item_id=item.item_id,
                as_of_ms=NOW_MS - int(rng.integers(0, 10**9)),
                views=counts[0],
                clicks=counts[1],
                carts=counts[2],
                purchases=counts[3],
                favorites=counts[4],
                pushes=counts[5],
                opens=counts[6],
                rating_sum=counts[7],
                rating_count=counts[8],
                popularity_1d=counts[0],
                first_seen_ms=NOW_MS - 10**9,
                by_country={c: counts[0] / 4 for c in ("GB", "DE", "FR", "CN")},
                neighbours=[(f"i{o:06d}", 1.0 / (r + 1)) for r, o in enumerate(others)],
            )
        )
    return items, stats


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
    items, stats = made_up(n_items, rng)
    catalogue = Catalogue()
    out = {
        "apply an item": median_us(lambda i: catalogue.apply(items[i].item_id, items[i]), n_items),
        "apply statistics": median_us(lambda i: catalogue.apply_stats(stats[i]), n_items),
    }
    started = time.thread_time()
    catalogue.refresh()
    out["first refresh, an item"] = (time.thread_time() - started) * 1e6 / n_items
    triggers = []
    for n in range(n_triggers):
        seen = rng.choice(n_items, HISTORY, replace=False).tolist()
        history = [
            (f"i{item:06d}", NOW_MS - 60_000 * (HISTORY - at), ("view", "cart")[at % 5 == 0])
            for at, item in enumerate(seen)
        ]
        category = f"c{n % 40}"
        triggers.append(trigger_of(f"u{n}", NOW_MS, history, "GB")._replace(category=category))
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
    rows = [one.rows[None, :20] for one in found]
    out["arm inputs of 20"] = median_us(
        lambda i: arm_inputs([found[i].query], [triggers[i].time_ms], rows[i]), n_triggers
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


def events_of(path: Path) -> Iterator[Event]:
    """Yield the rows that keep the contract, in time order."""
    decoder = msgspec.json.Decoder(Event)
    for record in retail(path).events():
        try:
            yield decoder.decode(record.value)
        except msgspec.ValidationError:  # no customer: a dead letter in the flow
            continue


def day_ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000)


def learned(path: Path, events: list[Event], until_ms: int, max_recent: int = 10) -> Catalogue:
    """Return the catalogue with all items, and what events before a date taught."""
    catalogue = Catalogue()
    decoder = msgspec.json.Decoder(Item)
    for record in retail(path).items:
        catalogue.apply(record.key, decoder.decode(record.value))
    tracker = InteractionTracker(GAP_MS, max_recent)
    recent: dict[str, list[tuple[str, int]]] = {}
    shard = ItemStatsShard(DictShard("00", encode=encode_state, decode=decode_state, new=new_state))
    for event in events:
        if event.time_ms >= until_ms:
            break
        signal = tracker.observe(recent.setdefault(event.user_id, []), event)
        for each in fan_out(signal) if signal else ():
            shard.on_signal(each)
    for stats in shard.dirty():
        catalogue.apply_stats(stats)
    catalogue.refresh()
    return catalogue


def cases_of(events: list[Event], start_ms: int, end_ms: int) -> list[Case]:
    """Return known customers' invoices of a period, with their last 50 purchases before."""
    history: dict[str, list[tuple[str, int, str]]] = {}
    basket: dict[str, list[Event]] = {}  # user -> the invoice being read
    cases = []

    def close(user_id: str) -> None:
        lines = basket.pop(user_id)
        before = history.setdefault(user_id, [])
        first = lines[0]
        if before and start_ms <= first.time_ms < end_ms:
            country = first.context.country if first.context else ""
            trigger = trigger_of(user_id, first.time_ms - 1, before[-HISTORY:], country)
            cases.append(Case(trigger, frozenset(e.item_id for e in lines if e.item_id)))
        before += [(e.item_id, e.time_ms, e.type) for e in lines if e.item_id]
        del before[:-HISTORY]

    for event in events:
        if event.type != "purchase" or event.item_id is None:
            continue
        open_lines = basket.get(event.user_id)
        if open_lines and (open_lines[0].props or {})["basket"] != (event.props or {})["basket"]:
            close(event.user_id)
        basket.setdefault(event.user_id, []).append(event)
    for user_id in list(basket):
        close(user_id)
    return cases


def recall(cases: list[Case], found: Callable[[Case], list[str]], *, is_new: bool) -> float:
    """Return recall@100 over invoices that have anything to find."""
    shares = []
    for case in cases:
        wanted = case.bought - (set(case.trigger.history.item_ids) if is_new else set())
        if wanted:
            shares.append(len(wanted.intersection(found(case)[:K])) / len(wanted))
    return statistics.fmean(shares)


def all_open(query: Query) -> Query:
    """Return the query with what was bought and seen allowed: the shop's customers buy again."""
    nothing = query.closed[:0]
    return query._replace(closed=nothing, seen=nothing)


def quality(
    catalogue: Catalogue, cases: list[Case], weights: dict[str, float]
) -> dict[str, tuple[float, float]]:
    """Return recall@100 of new items, and of all with nothing ruled out, by source."""
    ids = catalogue.item_ids
    lists = {"popularity, day": top_of, "popularity, week": top_of_week}
    sources: list[Source] = [NeighbourSource(), ContentSource(100), TrendSource()]

    generator = CandidateGenerator(catalogue, weights=weights)
    table = {}
    for name, top in lists.items():
        popular = [ids[row] for row in top(catalogue, 500).tolist()]

        def unseen(case: Case, popular: list[str] = popular) -> list[str]:
            seen = set(case.trigger.history.item_ids)
            return [item_id for item_id in popular if item_id not in seen]

        table[name] = (
            recall(cases, unseen, is_new=True),
            recall(cases, lambda case, popular=popular: popular, is_new=False),
        )
    for source in sources:

        def propose(case: Case, is_all: bool, source: Source = source) -> list[str]:
            query = make_query(case.trigger, catalogue)
            [rows] = source.propose([all_open(query) if is_all else query])
            return [ids[row] for row in rows.tolist()]

        table[source.name] = (
            recall(cases, lambda case, p=propose: p(case, False), is_new=True),
            recall(cases, lambda case, p=propose: p(case, True), is_new=False),
        )

    def merged(case: Case) -> list[str]:
        return [candidate.item_id for candidate in generator.generate(case.trigger)]

    table["merged"] = (recall(cases, merged, is_new=True), recall(cases, merged, is_new=False))
    return table


def tune(path: Path, events: list[Event]) -> None:
    """Print recall@100 of new items in July, learned from what is before, for other weights."""
    start, end = day_ms("2011-07-01"), day_ms("2011-08-01")
    cases = cases_of(events, start, end)
    catalogue = learned(path, events, start)
    for content in (0.0, 0.2, 0.4, 0.6):
        for trend in (0.2, 0.4, 0.6, 0.8):
            weights = WEIGHTS | {"content": content, "trend": trend}
            generator = CandidateGenerator(catalogue, weights=weights)

            def merged(case: Case, generator: CandidateGenerator = generator) -> list[str]:
                return [candidate.item_id for candidate in generator.generate(case.trigger)]

            print(
                f"content {content:.1f} trend {trend:.1f} {recall(cases, merged, is_new=True):.4f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=4_000)
    parser.add_argument("--triggers", type=int, default=500)
    parser.add_argument("--retail", type=Path, default=RETAIL)
    parser.add_argument("--tune", action="store_true")
    args = parser.parse_args()
    result: dict[str, object] = {"bench": "candidates", "items": args.items}
    result["threads"] = os.environ.get("OMP_NUM_THREADS", "default")
    costs = cost(args.items, args.triggers)
    print(f"{args.items} items, 50 history items, K = {K}; medians of CPU time, µs")
    for name, us in costs.items():
        print(f"  {name:28s} {us:8.1f}")
    result["us"] = {name: round(us, 1) for name, us in costs.items()}
    if args.retail.exists():
        events = list(events_of(args.retail))
        if args.tune:
            tune(args.retail, events)
        split, end = day_ms("2011-08-01"), day_ms("2011-10-01")
        cases = cases_of(events, split, end)
        table = quality(learned(args.retail, events, split), cases, WEIGHTS)
        print(f"online-retail, {len(cases)} invoices from 2011-08-01: recall@100   new    all")
        for name, (new, every) in table.items():
            print(f"  {name:56s} {new:6.4f} {every:6.4f}")
        result["recall_at_100_new"] = {name: round(new, 4) for name, (new, _) in table.items()}
        result["recall_at_100_all"] = {name: round(every, 4) for name, (_, every) in table.items()}
        result["invoices"] = len(cases)
    else:
        print(f"SKIPPED quality: no {args.retail}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
