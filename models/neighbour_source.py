"""Neighbours: items that others had together with the user's recent ones, learned from the stream.

Reads   the recent rows of queries, and the neighbours of each with how strong they are.
Owns    how many neighbours are looked at, and what one that is found several times is worth.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.batches import are_seen, padded
from models.item_vectors import widened
from models.neighbours import best_of_each
from models.sources import WEIGHT_UNIT, Query, Rows

_LEAST_STRENGTH: Final = 1e-30  # of a pair: less is nothing
# Neighbours looked at beyond those that may be seen: some cannot be had.
_SPARE: Final = 32
_LOOKED_AT: Final = 5_000  # neighbours a query
_TOGETHER: Final = 32  # queries in one go: bounds the scratch, 6 MB
_EVERY: Final = 16  # of their values one in so many is looked at first
_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)


class _Said(NamedTuple):
    """What the recent rows of several queries say, one query after another."""

    rows: Rows  # neighbours, the same one several times
    values: NDArray[np.float64]  # whole
    ends: list[int]  # of the queries' parts, the first one's start before them


class _Likely(NamedTuple):
    """Distinct rows that a query may want, in any order."""

    rows: Rows
    values: NDArray[np.float64]  # whole
    is_all: bool  # whether no other row has a value


class NeighbourSource:
    """Items that others had together with the user's recent ones, learned from the stream.

    Parameters
    ----------
    limit
        Rows proposed at most.

    Notes
    -----
    A row's value is the sum of strength x recency over the recent items it neighbours, times its
    rarity, in steps of 2^-23 of the strongest: 250 of them stay below 2^31. Of a user with more
    than 50 recent items, fewer neighbours of each are looked at: 5,000 in all.

    References
    ----------
    Linden et al., "Amazon.com Recommendations: Item-to-Item Collaborative Filtering", 2003.
    """

    name: Final = "neighbour"

    def __init__(self, limit: int = 100) -> None:
        self._limit = limit

    def propose(self, queries: Sequence[Query]) -> list[Rows]:
        """Return the rows that go best with the recent ones."""
        found: list[_Likely] = []
        for start in range(0, len(queries), _TOGETHER):
            found += self._likely(queries[start : start + _TOGETHER])
        best = self._best(queries, found)
        for b, likely in enumerate(found):
            if len(best[b]) < self._limit and not likely.is_all:
                own = queries[b : b + 1]
                best[b : b + 1] = self._best(own, self._likely(own, is_all=True))
        return best

    def _likely(self, queries: Sequence[Query], *, is_all: bool = False) -> list[_Likely]:
        """Return the best rows, about three times what is wanted, or all rows where there are few.

        All rows that are better than one of them are among them.
        """
        items, said = queries[0].items, self._said(queries)
        found = []
        for query, (start, end) in zip(queries, pairwise(said.ends), strict=True):
            rows = said.rows[start:end]
            sums = items.sums(rows, said.values[start:end])
            total = sums * items.rarity.take(rows)
            np.rint(total, out=total)
            n_wanted = self._limit + len(query.seen) + _SPARE
            least = 0.0 if is_all else _likely_least(total, n_wanted)
            at = np.flatnonzero(total >= least if least >= 1 else sums > 0)
            # Of equal rows all are there, or none.
            rows = rows.take(at)
            is_last = items.is_last(rows)
            found.append(_Likely(rows[is_last], total.take(at[is_last]), least < 1))
        return found

    @staticmethod
    def _said(queries: Sequence[Query]) -> _Said:
        """Return all neighbours of the queries' recent rows, and what each recent one says."""
        items = queries[0].items
        n_of = np.array([len(query.recent) for query in queries])  # (B,)
        recent = np.concatenate([query.recent for query in queries])  # (R,)
        most = np.repeat(_LOOKED_AT // np.maximum(n_of, 1), n_of)
        [others, halves], lengths = items.neighbours.take(recent, most)
        strength = widened(halves).astype(np.float64)
        firsts = np.concatenate(([0], np.cumsum(n_of)))
        ends = np.concatenate(([0], np.cumsum(lengths)))[firsts]  # (B + 1,)
        has_any = ends[1:] > ends[:-1]
        strongest = np.ones(len(queries))
        if len(others):
            strongest[has_any] = np.maximum.reduceat(strength, ends[:-1][has_any])
        scales = 2.0**23 / (WEIGHT_UNIT * np.maximum(strongest, _LEAST_STRENGTH))  # (B,)
        weights = np.concatenate([query.weights for query in queries]) * np.repeat(scales, n_of)
        strength *= np.repeat(weights, lengths)
        values = np.rint(strength, out=strength)
        return _Said(others.astype(np.int64), values, ends.tolist())

    def _best(self, queries: Sequence[Query], found: Sequence[_Likely]) -> list[Rows]:
        rows, _ = padded([own.rows for own in found])  # (B, L)
        if not rows.shape[1]:
            return [_NO_ROWS] * len(queries)
        values, is_own = padded([own.values for own in found])
        values[~is_own | are_seen(queries, rows)] = -1
        hashes = queries[0].items.id_hash.take(rows)
        best = best_of_each(values.astype(np.int64), hashes, self._limit)
        return [own[places] for own, places in zip(rows, best, strict=True)]


def _likely_least(values: NDArray[np.float64], limit: int) -> float:
    """Return what about three times `limit` values reach, by a look at a few; 0: too few.

    Three times, for the best rows are those that are found several times.
    """
    sample = values[::_EVERY]
    n_wanted = 3 * limit // _EVERY + 1
    if n_wanted >= len(sample):
        return 0.0
    return float(np.sort(sample)[-n_wanted])  # of so few it is faster than a partition
