"""What the catalogue tells of arms, against the plain NumPy form; see `test_candidates` too."""

import numpy as np
import pytest

from models.arm_features import INPUT
from models.arm_inputs import arm_inputs
from models.sources import Query
from tests.models.moments import NOW_MS, items_of, query

COUNTS = ("popularity", "views", "clicks", "purchases", "pushes", "opens", "favorites")
DAY_MS = 86_400_000
N = 60


def plain(asked: Query, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return one set's numbers by whole arrays."""
    items = asked.items
    age_ms = np.maximum(asked.time_ms - items.stats_ms[rows], 0)
    by_week = np.exp2(-age_ms / (7 * DAY_MS))
    own = {name: getattr(items, name)[rows] * by_week for name in COUNTS[1:]}
    own["popularity"] = items.popularity[rows] * np.exp2(-age_ms / DAY_MS)
    own["price"] = items.price[rows].astype(np.float64)
    created_ms, seen_ms = items.created_ms[rows], items.first_seen_ms[rows]
    born_ms = np.where(created_ms > 0, created_ms, seen_ms)
    is_born = (born_ms > 0) & (born_ms < asked.time_ms)
    own["age_days"] = np.where(is_born, (asked.time_ms - born_ms) / DAY_MS, 0.0)
    of_recent = items.category[asked.recent]
    known = np.where(of_recent > 0, asked.weights, 0)
    is_same = items.category[rows][:, None] == of_recent
    own["category_affinity"] = (is_same * known).sum(axis=1) / max(known.sum(), 1)
    return own


@pytest.mark.parametrize("seed", range(20))
def test_sets_of_any_sizes_have_the_bytes_of_whole_arrays(seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = {name: rng.exponential(9.0, N) for name in (*COUNTS, "price")}
    times = {
        name: NOW_MS - rng.integers(-2, 30, N) * DAY_MS // 2 for name in ("stats_ms", "created_ms")
    }
    times["created_ms"] *= rng.integers(0, 2, N)
    seen_ms = (NOW_MS - rng.integers(1, 90, N) * DAY_MS) * rng.integers(0, 2, N)
    columns = {**numbers, **times, "first_seen_ms": seen_ms, "category": rng.integers(0, 4, N)}
    items = items_of([f"i{n}" for n in range(N)], **columns)
    queries, sets = [], []
    for n_recent, n_arms in ((0, 20), (5, 0), (250, 100), (1, 3)):
        recent, weights = rng.integers(1, N + 1, n_recent), rng.integers(0, 65_537, n_recent)
        queries.append(query(items, recent=recent, weights=weights))
        sets.append(rng.integers(1, N + 1, n_arms))
    found = arm_inputs(queries, sets)
    start = 0
    for asked, rows in zip(queries, sets, strict=True):
        for name, values in plain(asked, rows).items():
            assert found[INPUT[name], start : start + len(rows)].tobytes() == values.tobytes(), name
        start += len(rows)
