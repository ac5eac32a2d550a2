"""What the catalogue and the user's history tell of the arms, as `models.arm_features` reads it.

Reads   queries, the rows of their action sets, and the columns of `models.item_rows`.
Emits   an array of `models.arm_features.INPUTS`, sets one behind another.
Owns    how counts are decayed to the trigger's time, and how near an item is to a history.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.arm_features import INPUT, INPUTS
from models.compiled import compiled
from models.sources import Query

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]

_DAY_MS: Final = 86_400_000
_WEEK_MS: Final = 7 * _DAY_MS
# Where the compiled loop puts what it finds, in its order.
_FOUND: Final = (
    *("popularity", "clicks", "purchases", "opens", "favorites", "views", "pushes"),
    *("price", "age_days", "category_affinity"),
)
_PLACES: Final = np.array([INPUT[name] for name in _FOUND])
_WEEKLY: Final = slice(INPUT["clicks"], INPUT["pushes"] + 1)


def arm_inputs(queries: Sequence[Query], sets: Sequence[Rows]) -> Floats:
    """Return what is known of several triggers' arms, shape (len(INPUTS), N), sets in order.

    Scores and cosines are zeros. Counts are decayed to the triggers' times; popularity has a
    half-life of 1 day, the others of 7. An item's age is of when it was created, else first seen;
    0 where neither is known. The category's affinity is the share of the user's recent rows, by
    their weights, in the item's main category.

    Parameters
    ----------
    queries
        Of B triggers, B >= 1.
    sets
        Rows of each one's arms, shape (K,).
    """
    items = queries[0].items
    times_ms = (items.stats_ms, items.created_ms, items.first_seen_ms)
    numbers = (
        *(items.popularity, items.clicks, items.purchases, items.opens),
        *(items.favorites, items.views, items.pushes, items.price),
    )
    n_arms = sum(map(len, sets))
    inputs = np.zeros((len(INPUTS), n_arms))
    ages = np.empty((2, n_arms))
    start = 0
    for query, rows in zip(queries, sets, strict=True):
        asked = (query.time_ms, query.recent, query.weights, rows)
        _gather(*asked, items.category, times_ms, numbers, start, _PLACES, inputs, ages)
        start += len(rows)
    by_day, by_week = np.exp2(ages)
    inputs[INPUT["popularity"]] *= by_day
    inputs[_WEEKLY] *= by_week
    return inputs


@compiled()
def _affinity(category: NDArray[np.uint16], recent: Rows, weights: Rows, rows: Rows) -> Floats:
    """Return the share of what is recent, by weight, in each row's category; 0 for none."""
    shares = np.zeros(len(rows))
    total = 0
    of_recent = np.empty(len(recent), np.uint16)
    for at in range(len(recent)):
        of_recent[at] = category[recent[at]]
        if of_recent[at] > 0:
            total += weights[at]
    if total == 0:
        return shares
    for k in range(len(rows)):
        wanted = category[rows[k]]
        same = 0  # whole numbers, whose order does not matter
        if wanted > 0:
            for at in range(len(recent)):
                if of_recent[at] == wanted:
                    same += weights[at]
        shares[k] = same / total
    return shares


@compiled(
    "void(int64, int64[::1], int64[::1], int64[::1], uint16[::1], UniTuple(int64[::1], 3),"
    " UniTuple(float32[::1], 8), int64, int64[::1], float64[:,::1], float64[:,::1])"
)
def _gather(
    now_ms: int,
    recent: Rows,
    weights: Rows,
    rows: Rows,
    category: NDArray[np.uint16],
    times_ms: tuple[Rows, ...],
    numbers: tuple[NDArray[np.float32], ...],
    start: int,
    places: Rows,
    inputs: Floats,
    ages: Floats,
) -> None:
    """Put one trigger's arms in columns from `start` on, counts as they are.

    `ages`, (2, N), get the binary logarithms of what the counts have decayed to.
    """
    stats_ms, created_ms, first_seen_ms = times_ms
    affinity = _affinity(category, recent, weights, rows)
    for k in range(len(rows)):
        row, arm = rows[k], start + k
        age_ms = max(now_ms - stats_ms[row], 0)
        ages[0, arm], ages[1, arm] = -age_ms / _DAY_MS, -age_ms / _WEEK_MS
        born_ms = created_ms[row] if created_ms[row] > 0 else first_seen_ms[row]
        for n in range(8):
            inputs[places[n], arm] = numbers[n][row]
        inputs[places[8], arm] = (now_ms - born_ms) / _DAY_MS if 0 < born_ms < now_ms else 0.0
        inputs[places[9], arm] = affinity[k]
