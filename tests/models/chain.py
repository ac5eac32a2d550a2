"""Planted histories in which the order matters: a Markov chain over items, all equally popular."""

import numpy as np

from models.dataset import Histories, build_histories
from models.features import EVENT_CODE

ITEMS = [f"i{n:02d}" for n in range(40)]
CLEAR = 0.9  # of steps go to the one item that follows; the others anywhere


def follower() -> list[int]:
    """Return which item follows each: one ring through all items, in no order of their names."""
    ring = np.random.default_rng(3).permutation(len(ITEMS))
    after = np.zeros(len(ITEMS), np.int64)
    after[ring] = np.roll(ring, -1)
    return [int(item) for item in after]


def chains(n_users: int = 200, n_events: int = 20) -> Histories:
    rng = np.random.default_rng(4)
    after = follower()
    users, items, times = [], [], []
    for user in range(n_users):
        item = int(rng.integers(len(ITEMS)))
        for n in range(n_events):
            users.append(f"u{user:03d}")
            items.append(ITEMS[item])
            times.append(n * 3_600 + user)
            is_clear = rng.random() < CLEAR
            item = after[item] if is_clear else int(rng.integers(len(ITEMS)))
    views = [EVENT_CODE["view"]] * len(users)
    return build_histories(users, items, views, times, item_ids=ITEMS)
