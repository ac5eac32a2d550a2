"""Changed items: those whose price dropped or that are back, where that is why we ask.

Reads   the rows that a trigger is about.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from models.sources import Query, Rows

_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)


class ChangedSource:
    """The items that the trigger is about, in its order, but for what was bought meanwhile.

    Parameters
    ----------
    limit
        Rows proposed at most.
    """

    name: Final = "changed"

    def __init__(self, limit: int = 20) -> None:
        self._limit = limit

    def propose(self, queries: Sequence[Query]) -> list[Rows]:
        """Return the changed rows that can be had."""
        return [self._propose(query) for query in queries]

    def _propose(self, query: Query) -> Rows:
        if not query.about:
            return _NO_ROWS
        rows = np.array(list(dict.fromkeys(query.about)), np.int64)
        return rows[~query.is_closed(rows)][: self._limit]
