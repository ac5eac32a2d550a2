"""Retrieval by the student: the items that it would score highest of all, or that weights name.

Reads   the student's vectors of users and of items, or its weights from item to item.

Where orders are large and the order within them says little, a network that learns the next item
finds less of a user's next order than a linear regression on all that users had (`models.linear`).
Training measures which finds more; the student's file holds the weights where they do.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.features import HISTORY
from models.neighbour_source import NeighbourSource
from models.neighbours import to_grid
from models.sources import Query, Rows

_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)
_MOST_SEEN: Final = 300  # rows that a query has seen: 200 bought, and its history and cart


class TowerSource:
    """Items by the product of their vectors with the user's, or by weights from the user's items.

    Parameters
    ----------
    limit
        Rows proposed at most.

    Notes
    -----
    One search of the index for the whole batch; it is asked for a history's length more than the
    limit, for what a user has met scores high and is left out. Those who have met more of it are
    searched for again, with room for all. Without a student there is nothing.

    Where the student has weights, they are looked up and added as `NeighbourSource` does it.

    References
    ----------
    Yi et al., "Sampling-Bias-Corrected Neural Modeling", RecSys 2019.
    """

    name: Final = "tower"

    def __init__(self, limit: int = 100) -> None:
        self._limit = limit
        self._weighed = NeighbourSource(limit)

    def propose(self, queries: Sequence[Query]) -> list[Rows]:
        """Return the rows of the largest values, of those that the user has not met."""
        linear = queries[0].items.linear
        if linear is not None:
            return self._weighed.propose([query._replace(items=linear) for query in queries])
        found = self._search(queries, range(len(queries)), HISTORY)
        short = [b for b, rows in found.items() if len(rows) < self._limit]
        found.update(self._search(queries, short, _MOST_SEEN))
        return [found.get(b, _NO_ROWS) for b in range(len(queries))]

    def _search(
        self, queries: Sequence[Query], places: Sequence[int], n_more: int
    ) -> dict[int, Rows]:
        """Return the unmet rows for the queries at some places, by place."""
        vectors = {b: queries[b].user_vector for b in places}
        wanted = {b: vector for b, vector in vectors.items() if vector is not None}
        if not wanted:
            return {}
        directions = _directions(list(wanted.values()))
        hits = queries[0].items.tower.search(directions, self._limit + n_more)
        pairs = zip(wanted, hits, strict=True)
        return {b: queries[b].unseen(hit.rows, self._limit) for b, hit in pairs}


def _directions(vectors: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the vectors' directions on the grid, shape (B, M): their lengths change no order."""
    wide = np.stack(vectors).astype(np.float64)
    norms = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    return to_grid(wide / np.maximum(norms, 1e-9))
