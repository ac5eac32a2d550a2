"""Two-tower retrieval: the items that the student itself would score highest, of all.

Reads   the student's vectors of users and of items.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.features import HISTORY
from models.neighbours import to_grid
from models.sources import Query, Rows

_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)


class TowerSource:
    """Items by the product of their vectors with the user's.

    Parameters
    ----------
    limit
        Rows proposed at most.

    Notes
    -----
    One search of the index for the whole batch; it is asked for a history's length more than the
    limit, for what a user has met scores high and is left out. Without a student there is nothing.

    References
    ----------
    Yi et al., "Sampling-Bias-Corrected Neural Modeling", RecSys 2019.
    """

    name: Final = "tower"

    def __init__(self, limit: int = 100) -> None:
        self._limit = limit

    def propose(self, queries: Sequence[Query]) -> list[Rows]:
        """Return the rows of the largest products, of those that the user has not met."""
        vectors = [query.user_vector for query in queries if query.user_vector is not None]
        if not vectors:
            return [_NO_ROWS] * len(queries)
        hits = iter(queries[0].items.tower.search(_directions(vectors), self._limit + HISTORY))
        return [
            _NO_ROWS if query.user_vector is None else self._unmet(query, next(hits).rows)
            for query in queries
        ]

    def _unmet(self, query: Query, rows: Rows) -> Rows:
        return rows[~query.is_seen(rows)][: self._limit]


def _directions(vectors: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the vectors' directions on the grid, shape (B, M): their lengths change no order."""
    wide = np.stack(vectors).astype(np.float64)
    norms = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    return to_grid(wide / np.maximum(norms, 1e-9))
