"""What users' texts cost `decide`, and what interest costs `catalog`, on one thread.

    python -m bench.written

Times   CPU time of the keyed step of users (`operators.users`) for events without and with text,
        and of the index of interest (`operators.interest`), both on states in memory.
Leaves out decoding, Kafka, RocksDB, and encoders other than the hashed one, which work outside of
        `decide`.
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from operators import interest, user_state
from operators.hops import Interest, ItemUpdate, ShardBatch
from operators.interest import InterestShard
from operators.messages import Event, Item
from operators.shards import DictShard
from operators.triggers import TriggerRules
from operators.users import UserShard
from operators.written import HASHED, ServedTexts, TextVectors

T0_MS = 1_700_000_000_000
N_USERS, N_EVENTS, N_WORDS = 2_000, 20_000, 5_000
ROUNDS = 3  # the best counts


def best(run: Callable[[], int]) -> float:
    """Return CPU microseconds a unit of the fastest round; `run` returns how many units it did."""
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        n = run()
        found.append((time.process_time() - began) / n * 1e6)
    return min(found)


def users_step(texts: Sequence[str | None], kind: str) -> float:
    """Return the time of an event in the users' step, each user's in turn."""
    rng = np.random.default_rng(1)
    owners = rng.integers(0, N_USERS, N_EVENTS).tolist()

    def run() -> int:
        states = DictShard(
            "00",
            encode=user_state.encode_state,
            decode=user_state.decode_state,
            new=user_state.new_state,
        )
        served = ServedTexts(HASHED.encoder, HASHED.inline, TextVectors(HASHED.vectors._encode))
        shard = UserShard("00", states, TriggerRules(), lambda _: "", served)
        for at in range(0, N_EVENTS, 20):  # an activation's events of one shard
            entries: list[Any] = []
            for n in range(at, at + 20):
                time_ms = T0_MS + n
                event = Event(
                    event_id=str(n),
                    user_id=f"u{owners[n]}",
                    type=kind,  # type: ignore[arg-type]
                    item_id="i1" if kind == "view" else None,
                    text=texts[n % len(texts)],
                    time_ms=time_ms,
                )
                entries.append((time_ms, event))
            shard.on_batch([ShardBatch("00", 0, T0_MS, entries)])
        return N_EVENTS

    return best(run)


def sentences(n_words: int, n: int) -> list[str]:
    """Return texts of words that a shop's users share, as they search: often the same words."""
    rng = np.random.default_rng(2)
    words = [f"word{number}" for number in range(N_WORDS)]
    picks = np.minimum(rng.zipf(1.2, (n, n_words)) - 1, N_WORDS - 1)
    return [" ".join(words[pick] for pick in row) for row in picks.tolist()]


def interest_index() -> tuple[float, float]:
    """Return the time of one interest, and of a change that 1,000 users are told of."""

    def shard() -> InterestShard:
        return InterestShard(
            DictShard(
                "i00",
                encode=interest.encode_state,
                decode=interest.decode_state,
                new=interest.new_state,
            )
        )

    entries = [Interest(f"i{n % 50}", f"user-{n % 997}", T0_MS + n, False) for n in range(N_EVENTS)]

    def note() -> int:
        shard().on_batch(entries)
        return len(entries)

    subject = shard()
    subject.on_batch([Interest("a", f"user-{n}", T0_MS, False) for n in range(1_000)])
    prices = iter(range(10**6, 0, -(10**5)))

    def tell() -> int:
        for version in range(2):
            price = float(next(prices))
            item = Item(item_id="a", title="Lamp", price=price)
            subject.on_batch([ItemUpdate("a", item, 10**7 - int(price) + version, T0_MS + 1)])
        return 2

    return best(note), best(tell)


def main() -> None:
    """Print a table, then one line of JSON."""
    new = sentences(3, N_EVENTS)
    unique = [f"{text} {n}" for n, text in enumerate(new)]
    rows = {
        "view": users_step([None], "view"),
        "search, text remembered": users_step(new[:1_000], "search"),
        "search, known words": users_step(new, "search"),
        "search, one word new": users_step(unique, "search"),
        "comment of 40 words": users_step(sentences(40, N_EVENTS), "comment"),
    }
    noted, told = interest_index()
    for name, micros in rows.items():
        print(f"{name:26}{micros:8.1f} us an event")
    print(f"{'interest noted':26}{noted:8.1f} us")
    print(f"{'change, 1,000 users told':26}{told / 1_000:8.2f} ms")
    print(json.dumps({**rows, "interest": noted, "change of 1,000": told}))


if __name__ == "__main__":
    main()
