"""An arm's own columns: what the policy is told of each item of an action set.

Reads   numbers of the arms, decayed to their trigger's time (`models.arm_inputs`).
Emits   the columns of `models.arms.ARM`, rounded, push fatigue left at zero.
Owns    how numbers become columns of about one size.

Some columns tell how an arm stands among those of its set. Sets of any sizes lie one behind
another, so that a batch of triggers is one call; a set's columns do not depend on the others.
Logarithms and exponentials are NumPy's, for all arms at once; what is left is a compiled loop.
"""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.arms import (
    ARM,
    CLICK_PRIOR,
    DECIMALS,
    FAVORITE_PRIOR,
    FRESH_DAYS,
    LIMIT,
    N_ARM,
    OPEN_PRIOR,
    PURCHASE_PRIOR,
    RATE_CAP,
    SOURCE_COLUMNS,
)
from models.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Rows of an array of inputs, in the order that the compiled loop reads them in.
INPUTS: Final = (
    "scores",
    "fused",
    "popularity",
    "price",
    "age_days",
    "clicks",
    "purchases",
    "opens",
    "favorites",
    "views",
    "pushes",
    "category_affinity",
    "intent_cosine",
    "taste_cosine",
)
INPUT: Final = {name: row for row, name in enumerate(INPUTS)}

_LOGGED: Final = slice(INPUT["popularity"], INPUT["price"] + 1)
_AGE: Final = INPUT["age_days"]
_MADE: Final = (  # columns in the order that the compiled loop makes them in
    "score_z",
    "fused_z",
    "popularity",
    "score_rank",
    "freshness",
    "price",
    "click_rate",
    "purchase_rate",
    "open_rate",
    "favorite_rate",
    "category_affinity",
    "intent_cosine",
    "taste_cosine",
)
_PLACES: Final = np.array([ARM.index(name) for name in _MADE])
_SOURCE_PLACES: Final = np.arange(SOURCE_COLUMNS.start, SOURCE_COLUMNS.stop)
_PRIORS: Final = np.array([CLICK_PRIOR, PURCHASE_PRIOR, OPEN_PRIOR, FAVORITE_PRIOR])
_RANK_WORTH: Final = 1 / np.log2(2 + np.arange(1_000))  # by place; a set is far smaller


def arm_features(
    *,
    scores: ArrayLike,
    fused: ArrayLike,
    sources: ArrayLike,
    popularity: ArrayLike,
    views: ArrayLike,
    clicks: ArrayLike,
    purchases: ArrayLike,
    pushes: ArrayLike,
    opens: ArrayLike,
    favorites: ArrayLike,
    age_days: ArrayLike,
    price: ArrayLike,
    category_affinity: ArrayLike,
    intent_cosine: ArrayLike = 0.0,
    taste_cosine: ArrayLike = 0.0,
) -> NDArray[np.float32]:
    """Return the arms' own columns, push fatigue left at zero.

    Every argument has shape (..., K), K >= 0, one entry for each arm; "the set" is the last axis.
    A set's rows do not depend on the sets beside it.

    Parameters
    ----------
    scores
        The student's, any scale; one that is not finite counts as the worst of the set.
    fused
        The candidates' fused scores.
    sources
        Places in `models.arms.SOURCES`; another number has zeros in all their columns.
    popularity, views, clicks, purchases, pushes, opens, favorites
        Decayed counts >= 0, as in `ItemStats`; 0 for an item without statistics.
    age_days
        Since the item was first seen, days, >= 0.
    price
        In the catalogue's unit, >= 0.
    category_affinity
        Share of the user's history in the item's category, 0 to 1.
    intent_cosine, taste_cosine
        Of the item's content and what the user asked for, or writes of, -1 to 1; 0 where nothing
        was written.

    Returns
    -------
    float32, shape (..., K, len(ARM)), rounded to 4 decimals, columns in the order of `ARM`.

    Examples
    --------
    >>> one = {name: [0.0, 0.0] for name in ("popularity", "views", "clicks", "purchases",
    ...        "pushes", "opens", "favorites", "age_days", "price", "category_affinity", "fused")}
    >>> rows = arm_features(scores=[3.0, 1.0], sources=[2, 1], **one)
    >>> rows.shape == (2, len(ARM)), rows[:, 0].tolist(), rows[:, 5].tolist()
    (True, [1.0, -1.0], [1.0, 0.0])
    """
    given = {
        "scores": scores,
        "fused": fused,
        "popularity": popularity,
        "views": views,
        "clicks": clicks,
        "purchases": purchases,
        "pushes": pushes,
        "opens": opens,
        "favorites": favorites,
        "age_days": age_days,
        "price": price,
        "category_affinity": category_affinity,
        "intent_cosine": intent_cosine,
        "taste_cosine": taste_cosine,
    }
    codes = np.array(sources, np.int64)  # (..., K)
    inputs = np.empty((len(INPUTS), *codes.shape))
    for name, values in given.items():
        inputs[INPUT[name]] = values
    size = codes.shape[-1]
    bounds = size * np.arange(codes.size // size + 1) if size else np.zeros(1, np.int64)
    rows = arm_columns(inputs.reshape(len(INPUTS), codes.size), codes.ravel(), bounds)
    return rows.reshape(*codes.shape, N_ARM)


def arm_columns(inputs: Floats, sources: Ints, bounds: Ints) -> NDArray[np.float32]:
    """Return what `arm_features` does, of arms in one row: float32, shape (N, len(ARM)).

    Parameters
    ----------
    inputs
        Shape (len(INPUTS), N), C-contiguous.
    sources
        Places in `models.arms.SOURCES`, shape (N,).
    bounds
        Where each set starts, and N: shape (S + 1,).
    """
    logs = np.log1p(np.maximum(inputs[_LOGGED], 0))  # (2, N)
    fresh = np.exp(np.maximum(inputs[_AGE], 0) / -FRESH_DAYS)  # (N,)
    columns = np.zeros((len(sources), N_ARM), np.float32)
    scales = (_PRIORS, RATE_CAP, _RANK_WORTH, LIMIT, 10.0**DECIMALS)
    _fill(inputs, logs, fresh, sources, bounds, *scales, _PLACES, _SOURCE_PLACES, columns)
    return columns


@compiled()
def _within(value: float, least: float, most: float) -> float:
    """Cut a number to bounds; what is no number stays."""
    if value < least:
        return least
    return most if value > most else value


@compiled()
def _sum(values: Floats) -> float:
    """Add up eight sums side by side, as NumPy does up to 128 numbers, for the bits of old rows."""
    n_side = len(values) // 8 * 8
    total = 0.0
    if n_side:
        side = values[:8].copy()
        for at in range(8, n_side):
            side[at % 8] += values[at]
        total = ((side[0] + side[1]) + (side[2] + side[3])) + (
            (side[4] + side[5]) + (side[6] + side[7])
        )
    for at in range(n_side, len(values)):
        total += values[at]
    return total


@compiled()
def _z(values: Floats) -> Floats:
    """Z-score within the set; zeros where all are the same."""
    z = values - _sum(values) / len(values)
    spread = np.sqrt(_sum(z * z) / len(values))
    for k in range(len(z)):
        z[k] = z[k] / spread if spread > 1e-6 else 0.0
    return z


@compiled()
def _ranks(scores: Floats) -> Ints:
    """Return each arm's place in its set, 0 for the best; ties keep their order."""
    ranks = np.zeros(len(scores), np.int64)
    for k in range(len(scores)):
        for earlier in range(k):
            ranks[k] += scores[earlier] >= scores[k]
        for later in range(k + 1, len(scores)):
            ranks[k] += scores[later] > scores[k]
    return ranks


@compiled()
def _finite(scores: Floats) -> Floats:
    """Put the worst finite score of the set in place of those that are not finite."""
    worst = np.inf
    for score in scores:
        if np.isfinite(score):
            worst = min(worst, score)
    if not np.isfinite(worst):
        worst = 0.0
    finite = scores.copy()
    for k in range(len(finite)):
        if not np.isfinite(finite[k]):
            finite[k] = worst
    return finite


@compiled(
    "void(float64[:,::1], float64[:,::1], float64[::1], int64[::1], int64[::1], float64[:,::1],"
    " float64, float64[::1], float64, float64, int64[::1], int64[::1], float32[:,::1])"
)
def _fill(
    inputs: Floats,
    logs: Floats,
    fresh: Floats,
    sources: Ints,
    bounds: Ints,
    priors: Floats,
    rate_cap: float,
    rank_worth: Floats,
    limit: float,
    unit: float,
    places: Ints,
    source_places: Ints,
    columns: NDArray[np.float32],
) -> None:
    """Fill columns, (N, d_a), that are zeros.

    Scales of other files are arguments: what is compiled is kept until its own file changes.
    """
    made = np.empty(len(places))  # of one arm, in the order of `_MADE`
    for s in range(len(bounds) - 1):
        start, end = bounds[s], bounds[s + 1]
        scores = _finite(inputs[0, start:end])
        ranks = _ranks(scores)
        score_z, fused_z, popularity_z = (
            _z(scores),
            _z(inputs[1, start:end]),
            _z(logs[0, start:end]),
        )
        for arm in range(start, end):
            at = arm - start
            made[0], made[1], made[2] = score_z[at], fused_z[at], popularity_z[at]
            made[3] = rank_worth[min(ranks[at], len(rank_worth) - 1)]
            made[4] = fresh[arm]
            made[5] = logs[1, arm] / 5
            for rate in range(4):  # clicks, purchases and favorites are of views, opens of pushes
                hits, tries = inputs[5 + rate, arm], inputs[10 if rate == 2 else 9, arm]
                mean, weight = priors[rate]
                lift = (hits + mean * weight) / (tries + weight) / mean - 1.0
                made[6 + rate] = _within(lift, -1.0, rate_cap)
            for told in range(3):  # as they are
                made[10 + told] = inputs[11 + told, arm]
            for c in range(len(places)):
                columns[arm, places[c]] = np.rint(_within(made[c], -limit, limit) * unit) / unit
            if 0 <= sources[arm] < len(source_places):
                columns[arm, source_places[sources[arm]]] = 1.0
