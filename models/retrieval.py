"""Whether the network or weights from item to item retrieve more of what users take up next.

Reads   histories, and functions that score all items for requests.
Emits   the recall of each stretch of activity on a later part of time, and which is better.
Owns    what is asked: all that a user takes up at once after a pause, of what is new to them. The
        next item alone says another thing, where the items of one order follow each other.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.dataset import TARGET_WEIGHT, Histories, Requests, requests_at
from models.linear import fading_pasts, matrix_of
from models.linear_weights import ItemWeights

K: Final = 100  # items found, as many as a source proposes
PAUSE_S: Final = 1_800
CLEARLY: Final = 2.0  # standard errors of a difference
_BLOCK: Final = 256  # requests scored at a time

Score = Callable[[Requests], NDArray[np.floating]]


class Stretches(NamedTuple):
    """Events of one user without a pause, S of them: from `starts` and before `ends`."""

    starts: NDArray[np.int64]  # event numbers, shape (S,)
    ends: NDArray[np.int64]
    pasts: NDArray[np.int64]  # the users' first events


def stretches_between(histories: Histories, since_s: int, until_s: int, *, limit: int) -> Stretches:
    """Return the stretches that begin in [since_s, until_s), of users who have a past.

    At most `limit`, evenly strided.
    """
    n = len(histories.time_s)
    first = histories.offsets[np.searchsorted(histories.offsets, np.arange(n), side="right") - 1]
    is_start = np.arange(n) == first
    is_start[1:] |= np.diff(histories.time_s) > PAUSE_S
    ends = np.append(np.flatnonzero(is_start), n)
    is_asked = is_start & (np.arange(n) > first)
    is_asked &= (histories.time_s >= since_s) & (histories.time_s < until_s)
    starts = np.flatnonzero(is_asked)
    if len(starts) > limit:
        starts = starts[np.linspace(0, len(starts) - 1, limit).astype(np.int64)]
    return Stretches(starts, ends[np.searchsorted(ends, starts, side="right")], first[starts])


def recalls(score: Score, histories: Histories, stretches: Stretches) -> NDArray[np.float64]:
    """Return the share of each stretch's new items among the `K` best new ones, shape (S,).

    NaN where nothing was new. `score` as for `models.evaluate.next_item_ranks`.
    """
    found = np.full(len(stretches.starts), np.nan)
    for block in range(0, len(found), _BLOCK):
        part = slice(block, block + _BLOCK)
        starts = stretches.starts[part]
        scores = np.array(score(requests_at(histories, starts)))
        pairs = zip(starts, stretches.ends[part], stretches.pasts[part], strict=True)
        for i, (start, end, past) in enumerate(pairs):
            met = histories.rows[past:start]
            is_wanted = TARGET_WEIGHT[histories.types[start:end]] > 0
            new = np.setdiff1d(histories.rows[start:end][is_wanted], met)
            if len(new):
                scores[i, met - 1] = -np.inf
                best = np.argsort(-scores[i], kind="stable")[:K]
                found[block + i] = np.isin(new - 1, best).mean()
    return found


def is_clearly_more(recalls: NDArray[np.float64], than: NDArray[np.float64]) -> bool:
    """Return whether the mean of paired recalls is higher by `CLEARLY` standard errors.

    >>> few, many = np.array([0.1, 0.0, 0.2, np.nan]), np.array([0.4, 0.3, 0.4, np.nan])
    >>> is_clearly_more(many, few), is_clearly_more(few, many), is_clearly_more(few, few)
    (True, False, False)
    """
    leads = (recalls - than)[~np.isnan(recalls)]
    if len(leads) < 2:
        return False
    return bool(leads.mean() > CLEARLY * leads.std(ddof=1) / len(leads) ** 0.5)


def is_linear_better(
    network: Score,
    weights: ItemWeights,
    histories: Histories,
    cuts: tuple[int, int],
    *,
    limit: int,
) -> tuple[bool, dict[str, float]]:
    """Return whether weights retrieve clearly more than a network, and both mean recalls.

    Parameters
    ----------
    network
        Scores of all items by a network that was trained before the first of `cuts`.
    weights
        Of the N items, of events before it; see `models.linear`.
    cuts
        Seconds: what begins from the first and before the second is asked.
    limit
        Stretches asked at most.
    """
    stretches = stretches_between(histories, *cuts, limit=limit)
    of_network = recalls(network, histories, stretches)
    of_linear = recalls(linear_scores(weights), histories, stretches)
    means = {
        f"retrieval_{name}@{K}": float(np.nanmean(found)) if np.isfinite(found).any() else 0.0
        for name, found in (("network", of_network), ("linear", of_linear))
    }
    return is_clearly_more(of_linear, of_network), means


def linear_scores(weights: ItemWeights) -> Score:
    """Return a function that scores all items for requests by weights, shape (B, N).

    What a user took back says nothing.
    """
    matrix = matrix_of(weights)

    def score(requests: Requests) -> NDArray[np.floating]:
        n_requests, length = requests.rows.shape
        newest = np.full(n_requests, length - 1)
        pasts = fading_pasts(requests.rows, requests.types, newest, weights.n_items)
        scores: NDArray[np.floating] = (pasts @ matrix).toarray()
        return scores

    return score
