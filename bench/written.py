"""What users' texts cost `decide`, and what interest costs `catalog`, on one thread.

    python -m bench.written

Times   CPU time of the keyed step of users (`operators.users`) for events without and with text,
        of texts alone (`operators.written`), and of the index of interest (`operators.interest`),
        all on states in memory.
Weighs  users and interest as they are packed, and what is remembered in memory, by tracemalloc.
Leaves out decoding, Kafka, RocksDB, and encoders other than the hashed one, which work outside of
        `decide`.
"""

import json
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from models.text import _token_vector
from operators import interest, user_state
from operators.hops import Forget, Interest, ItemUpdate, ShardBatch
from operators.interest import InterestShard
from operators.messages import Event, Item
from operators.shards import DictShard
from operators.timers import PartitionTimers
from operators.triggers import TriggerRules
from operators.user_state import UserState, add_totals
from operators.users import UserShard
from operators.written import HASHED, MAX_CHARS, ServedTexts, TextVectors, add_written

T0_MS = 1_700_000_000_000
N_USERS, N_EVENTS, N_WORDS = 2_000, 20_000, 5_000
ROUNDS = 3  # the best counts
WORDS = [f"word{number}" for number in range(N_WORDS)]


def best(run: Callable[[], int], before: Callable[[], object] = lambda: None) -> float:
    """Return CPU microseconds a unit of the fastest round; `run` returns how many units it did."""
    found = []
    for _ in range(ROUNDS):
        before()
        began = time.process_time()
        n = run()
        found.append((time.process_time() - began) / n * 1e6)
    return min(found)


def only_shared_words() -> None:
    """Let the encoder forget all words but those that users share."""
    _token_vector.cache_clear()
    HASHED.vectors._encode(WORDS)


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

    return best(run, only_shared_words)


def sentences(n_words: int, n: int) -> list[str]:
    """Return texts of words that a shop's users share, as they search: often the same words."""
    rng = np.random.default_rng(2)
    picks = np.minimum(rng.zipf(1.2, (n, n_words)) - 1, N_WORDS - 1)
    return [" ".join(WORDS[pick] for pick in row) for row in picks.tolist()]


def texts_alone() -> dict[str, float]:
    """Return the time of texts of three words, and of the dearest one."""
    vectors = TextVectors(HASHED.vectors._encode)
    three = list(dict.fromkeys(sentences(3, 16_000)))
    kept = three[:8_000]

    def fresh() -> int:
        known = TextVectors(HASHED.vectors._encode)
        for text in three:
            known.many((text,))
        return len(three)

    def again() -> int:
        for text in kept:
            vectors.many((text,))
        return len(kept)

    alphabet = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    rng = np.random.default_rng(3)

    def dear() -> int:
        for _ in range(200):
            words = ["".join(word) for word in rng.choice(alphabet, (MAX_CHARS // 5, 4))]
            vectors.many((" ".join(words),))
        return 200

    vectors.many(kept)
    return {
        "text, three known words": best(fresh, only_shared_words),
        "text, remembered": best(again),
        "text, 51 new words": best(dear),
    }


def grown(make: Callable[[], object]) -> int:
    """Return by how many bytes memory has grown while `make` made what it returns."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    made = make()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del made
    return after - before


def user_of(n_events: int) -> UserState:
    """Return a user after so many events, every twentieth a search, every tenth a purchase."""
    state = UserState()
    vectors = TextVectors(HASHED.vectors._encode).many(sentences(3, n_events))
    for n in range(n_events):
        kind = "purchase" if n % 10 == 0 else "view"
        event = Event(
            event_id=f"event-{n}",
            user_id="u",
            type=kind,  # type: ignore[arg-type]
            item_id=f"item-{n:05d}",
            time_ms=T0_MS + n * 60_000,
        )
        add_totals(state, event)
        if n % 20 == 0:
            add_written(state, vectors[n], HASHED.inline, event.time_ms, is_intent=True)
    return state


def sizes() -> dict[str, float]:
    """Return bytes."""
    texts = [f"{text} {n}" for n, text in enumerate(sentences(3, 10_000))]
    HASHED.vectors._encode(texts)  # the words' own cache is not a text's

    def remembered() -> object:
        vectors = TextVectors(HASHED.vectors._encode)
        vectors.many(texts)
        return vectors

    def timers() -> object:
        found = PartitionTimers()
        for n, user_id in enumerate(ids):
            found.put(T0_MS + n, user_id)
        return found

    ids = [f"user-{n:06d}" for n in range(10_000)]
    shard, states = interest_shard()
    shard.on_batch([Interest("a", user_id, T0_MS, False) for user_id in ids[:1_000]])
    return {
        "text remembered": grown(remembered) / len(texts),
        "timer": grown(timers) / len(ids),
        "user, 20 events": len(user_state.encode_state(user_of(20))),
        "user, 2,000 events": len(user_state.encode_state(user_of(2_000))),
        "interest, a user": len(interest.encode_state(states.get("a"))) / 1_000,
    }


def interest_shard() -> tuple[InterestShard, DictShard[interest.ItemInterest]]:
    states = DictShard(
        "i00",
        encode=interest.encode_state,
        decode=interest.decode_state,
        new=interest.new_state,
    )
    return InterestShard(states), states


def interest_index() -> dict[str, float]:
    """Return the time of one interest, of a change that 1,000 users hear of, and of an erasure."""
    entries = [Interest(f"i{n % 50}", f"user-{n % 997}", T0_MS + n, False) for n in range(N_EVENTS)]

    def note() -> int:
        interest_shard()[0].on_batch(entries)
        return len(entries)

    subject, _ = interest_shard()
    subject.on_batch([Interest("a", f"user-{n}", T0_MS, False) for n in range(1_000)])
    prices = iter(range(10**6, 0, -(10**5)))

    def tell() -> int:
        for version in range(2):
            price = float(next(prices))
            item = Item(item_id="a", title="Lamp", price=price)
            subject.on_batch([ItemUpdate("a", item, 10**7 - int(price) + version, T0_MS + 1)])
        return 2

    many, _ = interest_shard()
    many.on_batch([Interest(f"i{n // 20}", f"user-{n}", T0_MS, False) for n in range(N_EVENTS)])

    def forget() -> int:
        many.on_batch([Forget("nobody", "i00")])
        return N_EVENTS // 20

    return {
        "interest noted": best(note),
        "change, 1,000 users told": best(tell),
        "erasure, an item of 20 users": best(forget),
    }


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
    rows |= texts_alone() | interest_index()
    weights = sizes()
    for name, micros in rows.items():
        print(f"{name:30}{micros:8.1f} us")
    for name, n_bytes in weights.items():
        print(f"{name:30}{n_bytes:8.0f} bytes")
    print(json.dumps({"us": rows, "bytes": weights}))


if __name__ == "__main__":
    main()
