"""What a user wrote, as a query: items whose content is like the session's searches.

Reads   directions of what was searched and commented, in the space of the items' content.
Owns    how much of a list is what the session asks for, and how much what the user always likes.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from models.sources import LEAST_COSINE, Query, Rows
from models.vector_index import Hits

_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)


class IntentSource:
    """Items near the intent of the session, then items near the taste of the user.

    Parameters
    ----------
    limit
        Rows proposed at most for the intent; half as many for the taste.

    Notes
    -----
    One search of the index for the whole batch; it is asked for half as many more, for what the
    user has met is left out.
    """

    name: Final = "intent"

    def __init__(self, limit: int = 50) -> None:
        self._limit = limit

    def propose(self, queries: Sequence[Query]) -> list[Rows]:
        """Return the rows most alike that the user has not met, those above the noise."""
        asked = [query.intent for query in queries] + [query.taste for query in queries]
        vectors = [vector for vector in asked if vector is not None]
        if not vectors:
            return [_NO_ROWS] * len(queries)
        n_wanted = self._limit + self._limit // 2
        hits = iter(queries[0].items.content.search(np.stack(vectors), n_wanted))
        found = [None if vector is None else next(hits) for vector in asked]
        pairs = zip(found[: len(queries)], found[len(queries) :], strict=True)
        return [self._joined(query, *pair) for query, pair in zip(queries, pairs, strict=True)]

    def _joined(self, query: Query, intent: Hits | None, taste: Hits | None) -> Rows:
        first = self._near(query, intent, self._limit)
        second = self._near(query, taste, self._limit // 2)
        return np.concatenate([first, second[~query.items.is_among(second, first)]])

    @staticmethod
    def _near(query: Query, hits: Hits | None, limit: int) -> Rows:
        if hits is None:
            return _NO_ROWS
        return query.unseen(hits.rows[hits.scores >= LEAST_COSINE], limit)
