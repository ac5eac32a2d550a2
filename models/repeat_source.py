"""Repeat purchases: what a user has bought, and is likely to need again about now.

Reads   a user's purchases, and what the stream learned of how items are bought again.
Owns    when an item is due.

Values are whole numbers: see `models.neighbours` for why.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from models.neighbours import best_rows
from models.sources import Query, Rows

_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)
_UNIT: Final = 2**15  # of how near an item is to being due, and of the chance that it ever is
# Shares of the usual pause after which an item counts: people buy a little early, and who has
# let three pauses pass has found another shop.
_EARLIEST: Final = (4, 5)
_LATEST: Final = 3


class RepeatSource:
    """Items that the user bought, as far back as others usually buy them again.

    Parameters
    ----------
    limit
        Rows proposed at most.

    Notes
    -----
    With a pause p since the last purchase and the item's usual pause u (`repeat_s`), a row's value
    is min(p, u) / max(p, u) x the share of its buyers who come back (`repeat_share`), for p
    between 4/5 u and 3 u. Bought lately is no obstacle here; what the user has blocked is.

    References
    ----------
    Bhagat et al., "Buy It Again: Modeling Repeat Purchase Recommendations", KDD 2018.
    """

    name: Final = "repeat"

    def __init__(self, limit: int = 20) -> None:
        self._limit = limit

    def propose(self, queries: Sequence[Query]) -> list[Rows]:
        """Return the rows that are due, the likeliest first."""
        return [self._propose(query) for query in queries]

    def _propose(self, query: Query) -> Rows:
        if not query.bought:
            return _NO_ROWS
        items = query.items
        last = dict(reversed(query.bought))  # of each row the newest purchase
        rows = np.fromiter(last.keys(), np.int64, len(last))
        usual = items.repeat_s[rows]
        if not usual.any():
            return _NO_ROWS
        since = np.fromiter(last.values(), np.int64, len(last))
        early, of = _EARLIEST
        is_due = (usual > 0) & (since * of >= usual * early) & (since <= usual * _LATEST)
        rows, usual, since = rows[is_due], usual[is_due], since[is_due]
        is_open = ~query.is_refused(rows)
        rows, usual, since = rows[is_open], usual[is_open], since[is_open]
        nearness = np.minimum(usual, since) * _UNIT // np.maximum(usual, since)
        chance = np.rint(items.repeat_share[rows] * _UNIT).astype(np.int64)
        return best_rows(nearness * chance, rows, items.id_hash, self._limit)
