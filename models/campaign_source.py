"""Campaign picks: what the people behind a campaign put forward.

Reads   the rows and main categories that a campaign names, and what is popular in those.
Owns    the order among them.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from models.item_ids import ItemIds
from models.item_rows import ItemRows
from models.sources import Query, Rows
from models.trend import blend, top_of_category

_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)


class CampaignSource:
    """The campaign's items in its order, then what is most popular in its categories.

    Parameters
    ----------
    limit
        Rows proposed at most.

    Notes
    -----
    Several categories take turns, the best of each first. Lists are made once for each set of
    categories after a change of the tables; there are as many as campaigns name, at most 1,024
    of 4 kB each.
    """

    name: Final = "campaign"
    _LISTED: Final = 200  # more than the limit and what was bought lately can take
    _KEPT: Final = 1_024

    def __init__(self, limit: int = 100) -> None:
        self._limit = limit
        self._lists: dict[tuple[int, ...], Rows] = {}
        self._made_of: tuple[ItemIds | None, int] = (None, -1)

    def propose(self, queries: Sequence[Query]) -> list[Rows]:
        """Return the rows put forward that can be had and were not bought lately."""
        return [self._propose(query) for query in queries]

    def _propose(self, query: Query) -> Rows:
        if not query.picks and not query.pick_categories:
            return _NO_ROWS
        named = np.array(list(dict.fromkeys(query.picks)), np.int64)
        popular = self._popular(query.items, tuple(query.pick_categories))
        rows = np.concatenate([named, popular[~query.items.is_among(popular, named)]])
        return rows[~query.is_closed(rows)][: self._limit]

    def _popular(self, items: ItemRows, categories: tuple[int, ...]) -> Rows:
        # Views of one table, a student each, share its ids.
        if self._made_of != (items.item_ids, items.version):
            self._lists.clear()
            self._made_of = (items.item_ids, items.version)
        rows = self._lists.get(categories)
        if rows is None:
            if len(self._lists) >= self._KEPT:
                self._lists.clear()
            named = [code for code in categories if code]
            lists = [top_of_category(items, code, self._LISTED) for code in named]
            rows = self._lists[categories] = blend(items, lists, self._LISTED)
        return rows
