"""Neighbours: items that others had together with the user's recent ones, learned from the stream.

Reads   the recent rows of queries, and the neighbours of each with how strong they are.
Owns    how many neighbours are looked at, and what one that is found several times is worth.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from models.retrieval_kernels import beside
from models.sources import Query, Rows

_LOOKED_AT: Final = 5_000  # neighbours a query
_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)


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
        return [self._propose(query) for query in queries]

    def _propose(self, query: Query) -> Rows:
        if not len(query.recent):
            return _NO_ROWS
        items = query.items
        starts, lengths, [others, strengths] = items.neighbours.columns
        found: Rows = beside(
            query.rules(query.seen),
            *(query.recent, query.weights, _LOOKED_AT // len(query.recent)),
            starts,
            lengths,
            others,
            strengths.view(np.int16),
            *(items.rarity, items.id_hash, items.slots),
            self._limit,
        )
        return found
