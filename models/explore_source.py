"""Exploration: new items that few users have been told of, drawn by chance.

Reads   when items came, and how often they were pushed.
Owns    what is new, and how many places exploration takes.

What nobody is told of nobody opens, and so it would never be told of. The draws follow from the
query's seed alone: a replay explores the same items, in whatever batch.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled
from models.item_ids import ItemIds
from models.item_rows import ItemRows
from models.neighbours import best_rows
from models.retrieval_kernels import Whole
from models.sources import Query, Rows

FEW_PUSHES: Final = 20.0  # half-life 7 days; then an item's open rate outweighs its prior
NEW_S: Final = 30 * 86_400

_NEVER: Final = 2**32 - 1  # a birth in seconds that is later than any: nobody has met the item
_PLACES: Final = 0xFFFF_FFFF  # draw that decides about the last place, apart from all others


@compiled("uint64(uint64, uint64)")
def _split_mix(seed: Whole, place: Whole) -> np.uint64:
    """Return SplitMix64's number at a place of a seed's sequence, 64 bits."""
    mixed = np.uint64(seed) + (np.uint64(place) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@compiled("int64[::1](uint64, int64, int64[::1], int64)")
def _drawn(seed: int, n_draws: int, rows: Rows, n_rows: int) -> Rows:
    """Return which of the first `n_rows` rows some draws choose, in their order, each once."""
    kept = np.empty(n_draws, np.int64)
    places = np.empty(n_draws, np.uint64)
    n = 0
    for draw in range(n_draws if n_rows else 0):
        place = _split_mix(seed, np.uint64(draw)) % np.uint64(n_rows)
        is_drawn = False
        for at in range(draw):
            is_drawn |= places[at] == place
        places[draw] = place
        if not is_drawn:
            kept[n] = rows[np.int64(place)]
            n += 1
    return kept[:n].copy()


class ExploreSource:
    """Servable items that came in the last 30 days and were pushed fewer than 20 times.

    Parameters
    ----------
    limit
        Draws a query, and so rows at most.

    Notes
    -----
    An item whose age nothing tells counts as new: no message says when it was created, and nobody
    has met it. The newest 8,192 are listed; twice as many are held, and follow what has changed.
    4 bytes a row.

    References
    ----------
    Steele et al., "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014 (SplitMix64).
    """

    name: Final = "explore"
    _LISTED: Final = 8_192

    def __init__(self, limit: int = 10) -> None:
        self._limit = limit
        self._held: Rows = np.zeros(0, np.int64)  # best first, exact down to `_least`
        self._least: tuple[int, int] | None = None  # birth and hash; None: there are no others
        self._new: Rows = np.zeros(0, np.int64)
        self._oldest_first: NDArray[np.uint32] = np.zeros(
            0, np.uint32
        )  # births of `_new`, reversed
        self._births: NDArray[np.uint32] = np.zeros(0, np.uint32)  # by row, 0: not to be explored
        self._made_of: tuple[ItemIds | None, int] = (None, -1)

    def propose(self, queries: Sequence[Query]) -> list[Rows]:
        """Return rows drawn by chance, of those that the user has not met."""
        if not queries or not self._limit:
            return [self._new[:0]] * len(queries)
        items = queries[0].items
        # Views of one table, a student each, share its ids.
        if self._made_of != (items.item_ids, items.version):
            self._follow(items)
            self._made_of = (items.item_ids, items.version)
        return [self._propose(query) for query in queries]

    def _propose(self, query: Query) -> Rows:
        since_s = max(query.time_ms // 1_000 - NEW_S, 0)
        # Of the list's own type: another would have it converted.
        n_older = int(np.searchsorted(self._oldest_first, np.uint32(since_s)))
        rows = _drawn(query.seed, self._limit, self._new, len(self._new) - n_older)
        return query.unseen(rows, self._limit)

    def _follow(self, items: ItemRows) -> None:
        """Bring the list up to date: rows that were touched leave it, and come back if they may."""
        held, version = self._made_of
        changed = items.changed_since(version) if held is items.item_ids else None
        if changed is None:
            self._list_all(items)
            return
        if len(self._births) < items.n_rows:
            wider = np.zeros(max(items.n_rows, len(self._births) * 5 // 4), np.uint32)
            wider[: len(self._births)] = self._births
            self._births = wider
        births = _births(items, changed)
        if (births == self._births[changed]).all():
            return
        self._births[changed] = births
        kept = self._held[~items.is_among(self._held, changed)]
        rows = np.concatenate([kept, changed[births > 0]])
        if self._least is not None:
            values, hashes = self._births[rows], items.id_hash[rows]
            least, least_hash = self._least
            rows = rows[(values > least) | ((values == least) & (hashes >= least_hash))]
        if self._least is not None and len(rows) < self._LISTED:
            self._list_all(items)
        else:
            self._list(items, rows)

    def _list_all(self, items: ItemRows) -> None:
        self._births = _births(items, np.arange(items.n_rows))
        self._least = None
        self._list(items, np.flatnonzero(self._births))

    def _list(self, items: ItemRows, rows: Rows) -> None:
        depth = 2 * self._LISTED  # so that it lasts
        self._held = best_rows(self._births[rows].astype(np.int64), rows, items.id_hash, depth)
        if len(rows) > depth:
            last = self._held[-1]
            self._least = int(self._births[last]), int(items.id_hash[last])
        self._new = self._held[: self._LISTED]
        self._oldest_first = self._births[self._new[::-1]]


def _births(items: ItemRows, rows: Rows) -> NDArray[np.uint32]:
    """Return when rows came, seconds, for those that may be explored; 0 for all others."""
    created, seen = items.created_ms[rows], items.first_seen_ms[rows]
    born_s = np.where(created > 0, created, seen) // 1_000
    born_s[born_s <= 0] = _NEVER
    is_new = items.is_servable[rows] & (items.pushes[rows] < FEW_PUSHES)
    return np.where(is_new, born_s, 0).astype(np.uint32)


def explored_places(seeds: Sequence[int], share: float, size: int) -> list[int]:
    """Return how many of `size` places each query explores: on average `share` of them.

    >>> explored_places(range(3), 0.05, 20)
    [1, 1, 1]
    >>> sum(explored_places(range(1_000), 0.03, 20)) / 1_000
    0.6...
    """
    places = []
    for seed in seeds:
        uniform = (int(_split_mix(seed, _PLACES)) >> 11) * 2.0**-53  # [0, 1)
        places.append(int(share * size + uniform))
    return places
