"""Made-up items and triggers, alike for all benchmarks of candidates.

Emits   items of five words out of 20,000 with what the stream learned of each, and triggers of
        users with 50 of them behind them.
"""

from collections.abc import Iterator

import numpy as np

from models.features import EVENT_CODE, HISTORY
from operators.hops import Engagement, History, Trigger
from operators.messages import Item, ItemStats, UserProfile

NOW_MS = 1_700_000_000_000
N_CATEGORIES = 40


def made_up(n: int, least: int, most: int) -> Iterator[tuple[Item, ItemStats]]:
    """Yield n items, each with `least` to `most` - 1 neighbours, and their statistics."""
    rng = np.random.default_rng(4)
    for i in range(n):
        words = rng.integers(0, 20_000, 5)
        others = rng.integers(0, n, rng.integers(least, most))
        counts = rng.gamma(0.5, 20.0, 9).round(4).tolist()
        item = Item(
            item_id=f"i{i:07d}",
            title=" ".join(f"word{w}" for w in words.tolist()),
            categories=[f"c{i % N_CATEGORIES}"],
            price=float(i % 90) + 0.99,
            created_ms=NOW_MS - int(rng.integers(0, 10**10)),
            image_url=f"https://img.example.com/items/i{i:07d}.jpg",
            deep_link=f"shop://item/i{i:07d}",
        )
        stats = ItemStats(
            item_id=item.item_id,
            as_of_ms=NOW_MS - i,
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
            neighbours=[(f"i{o:07d}", 1.0 / (r + 1)) for r, o in enumerate(others.tolist())],
        )
        yield item, stats


def made_up_triggers(n: int, n_items: int) -> list[Trigger]:
    """Return triggers of n idle users with 50 of `n_items` behind them, who wrote nothing."""
    rng = np.random.default_rng(6)
    return [_trigger(user, rng.integers(0, n_items, HISTORY).tolist()) for user in range(n)]


def _trigger(user: int, seen: list[int]) -> Trigger:
    kinds = [EVENT_CODE["cart" if at % 5 == 0 else "view"] for at in range(HISTORY)]
    times_s = [NOW_MS // 1_000 - 60 * (HISTORY - at) for at in range(HISTORY)]
    return Trigger(
        type="idle",
        event_id=f"e{user}",
        user_id=f"u{user}",
        shard="00",
        time_ms=NOW_MS,
        context=[],
        history=History([f"i{item:07d}" for item in seen], kinds, times_s),
        cart=[],
        bought=[],
        category=f"c{user % N_CATEGORIES}",
        platform="",
        profile=UserProfile(user_id=f"u{user}", country="GB"),
        engagement=Engagement(0.0, 0.0, 0, False),
    )
