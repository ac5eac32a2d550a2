"""Candidate sources: each proposes rows of items for a batch of queries, best first.

Reads   queries (rows and codes, no events) and the columns of `models.item_rows`.
Owns    what each source looks at, and its limits.

A source has a `name`, which decisions carry, and `propose`, which takes a batch so that an index
is searched once for all of it. A query's answer does not depend on who shares the batch. It never
holds a row twice, nor one that the query rules out. Values that are summed or compared are
integers: see `models.neighbours` for why.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.features import EVENT_CODE, EVENT_TYPES, TEXT_DIM
from models.item_counts import hour_block
from models.item_ids import ItemIds
from models.item_rows import ItemRows
from models.neighbours import mean_direction
from models.retrieval_kernels import WEIGHT_UNIT, Rules, allowed, unfinished, unlike
from models.trend import (
    FULL_TRUST,
    TOP,
    blend,
    top_of,
    top_of_category,
    top_of_country,
    top_of_hour,
    top_of_week,
    top_of_years,
    trust,
)
from models.vector_index import Hits

Rows = NDArray[np.int64]

_LEAST_TRUST: Final = FULL_TRUST // 4  # in a segment: it tells of more than popularity
_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)
# Two standard deviations of the cosine of unrelated texts (`models.text`): less is noise.
LEAST_COSINE: Final = 0.25
_HOUR_S: Final = 3_600
_SAYS: Final = {"view": 1, "click": 2, "favorite": 3, "cart": 4, "cart_remove": -4}
_INTEREST: Final = np.array([_SAYS.get(name, 0) for name in EVENT_TYPES])  # by event code
_CART: Final = 200  # of its items, the newest, that are looked at
_LATELY_S: Final = 14 * 24 * _HOUR_S
_DECAY: Final = np.array(
    [int(WEIGHT_UNIT * 2.0 ** (-hour / 24)) for hour in range(_LATELY_S // _HOUR_S)]
)


class Query(NamedTuple):
    """A user's moment as rows."""

    items: ItemRows
    time_ms: int
    recent: Rows  # distinct rows of the history, newest first, without what was put back
    weights: NDArray[np.int64]  # of `recent`, by recency, 0 to WEIGHT_UNIT
    history: Rows  # all rows of the history, newest first, 0 for ids without a row
    types: NDArray[np.int64]  # of `history`, models.features.EVENT_TYPES
    age_s: NDArray[np.int64]  # of `history`, seconds before the trigger, >= 0
    cart: list[int]  # rows in the cart, newest first
    country: int  # code
    category: int  # code
    closed: Rows  # bought lately, distinct: proposed again only as due
    seen: Rows  # those, and what is in the history or in the cart; distinct
    intent: NDArray[np.float32] | None = None  # (TEXT_DIM,), on the grid of models.neighbours
    taste: NDArray[np.float32] | None = None  # the same; None: nothing written
    user_vector: NDArray[np.float32] | None = None  # (M,), the student's; None: no student
    about: Sequence[int] = ()  # rows that the trigger is about: changed items
    picks: Sequence[int] = ()  # rows that the campaign names, in its order
    pick_categories: Sequence[int] = ()  # codes of the categories that it names, in its order
    bought: Sequence[tuple[int, int]] = ()  # (row, age in seconds) of purchases, newest first
    blocked: Rows = _NO_ROWS  # rows that the user does not want to see, distinct
    blocked_categories: Rows = _NO_ROWS  # codes of main categories, the same
    lead: str = ""  # the source that is the trigger's own reason, "" where none is
    seed: int = 0  # of the trigger's draws, 64 bits

    def is_refused(self, rows: Rows) -> NDArray[np.bool_]:
        """Return which of `rows` are never proposed: not to be had now, or blocked by the user."""
        items = self.items
        refused = ~items.is_open(rows, self.time_ms)
        if len(self.blocked):
            refused |= items.is_among(rows, self.blocked)
        if len(self.blocked_categories):
            refused |= np.isin(items.category[rows], self.blocked_categories)
        return refused

    def is_closed(self, rows: Rows) -> NDArray[np.bool_]:
        """Return which of `rows` are refused, or bought lately."""
        return self.is_refused(rows) | self.items.is_among(rows, self.closed)

    def is_seen(self, rows: Rows) -> NDArray[np.bool_]:
        """Return which of `rows` are no discovery: refused, or in `seen`."""
        return self.is_refused(rows) | self.items.is_among(rows, self.seen)

    def rules(self, closed: Rows) -> Rules:
        """Return what the loops of `models.retrieval_kernels` are told of what may be proposed.

        Nothing that is refused, nor what is in `closed`.
        """
        items = self.items
        own = items.has_windows, self.time_ms, closed, self.blocked, self.blocked_categories
        return items.is_servable, items.from_ms, items.until_ms, items.category, items.mark, *own

    def unseen(self, rows: Rows, limit: int) -> Rows:
        """Return the first `limit` of `rows` that are a discovery: not refused, nor in `seen`."""
        found: Rows = allowed(self.rules(self.seen), rows, limit)
        return found


class Source(Protocol):
    """One way to find candidates."""

    @property
    def name(self) -> str:
        """One of `models.arms.SOURCES`."""
        ...

    def propose(self, queries: Sequence[Query]) -> list[Rows]:
        """Return distinct rows, best first, for each query; all queries share `items`."""
        ...


class ContentSource:
    """Items whose content is like that of the user's recent items.

    Parameters
    ----------
    limit
        Rows proposed at most.
    n_recent
        Recent items whose mean direction is searched for.

    Notes
    -----
    One search of the index for the whole batch. It is asked for twice the limit, for the recent
    items themselves are near, and so are copies: words equal to those of a history item or of a
    better candidate are left out, the same thing under another id.
    """

    name: Final = "content"

    def __init__(self, limit: int = 50, n_recent: int = 20) -> None:
        self._limit = limit
        self._n_recent = n_recent

    def propose(self, queries: Sequence[Query]) -> list[Rows]:
        """Return the rows most alike, those above the noise."""
        items, n = queries[0].items, self._n_recent
        wanted = np.zeros((len(queries), TEXT_DIM), np.float32)
        for query, own in zip(queries, wanted, strict=True):
            mean_direction(items.content_steps, query.recent[:n], query.weights[:n], own)
        found = items.content.search(wanted, 2 * self._limit)
        return [self._unmet(*pair) for pair in zip(queries, found, strict=True)]

    def _unmet(self, query: Query, hits: Hits) -> Rows:
        rows = hits.rows[: np.count_nonzero(hits.scores >= LEAST_COSINE)]
        of_items = query.items.text_key
        unmet: Rows = unlike(query.rules(query.seen), rows, query.recent, of_items, self._limit)
        return unmet


class TrendSource:
    """What is popular today and this week, at this time of day, and in the user's segments.

    Segments are the user's country and the session's main category.

    Parameters
    ----------
    limit
        Rows proposed at most.

    Notes
    -----
    Lists are made once a segment after each change of the tables (0.1 ms at 4,000 items), and
    shared by all triggers until the next; at most 4,096 are kept, of 4 kB each.
    """

    name: Final = "trend"
    _LISTED: Final = TOP  # more than a history, a cart and what was bought can rule out
    _KEPT: Final = 4_096

    def __init__(self, limit: int = 100) -> None:
        self._limit = limit
        self._lists: dict[tuple[int, int, int], Rows] = {}
        self._made_of: tuple[ItemIds | None, int] = (None, -1)

    def propose(self, queries: Sequence[Query]) -> list[Rows]:
        """Return the rows of the users' segments, blended."""
        return [query.unseen(self._of_segment(query), self._limit) for query in queries]

    def _of_segment(self, query: Query) -> Rows:
        items = query.items
        # Views of one table, a student each, share its ids.
        if self._made_of != (items.item_ids, items.version):
            self._lists.clear()
            self._made_of = (items.item_ids, items.version)
        segment = (query.country, query.category, hour_block(query.time_ms))
        rows = self._lists.get(segment)
        if rows is None:
            if len(self._lists) >= self._KEPT:
                self._lists.clear()
            rows = self._lists[segment] = self._blended(items, *segment)
        return rows

    def _blended(self, items: ItemRows, country: int, category: int, block: int) -> Rows:
        day, week = top_of(items, self._LISTED), top_of_week(items, self._LISTED)
        of_day, of_week = trust(items, day, week)
        lists = [day, week, top_of_years(items, self._LISTED)]
        # What the day and the week cannot tell the years do.
        weights = [of_day, of_week, max(2 * FULL_TRUST - of_day - of_week, 1)]
        lists.append(top_of_hour(items, block, self._LISTED))
        weights.append(max(of_week, _LEAST_TRUST))
        if country:
            lists.append(top_of_country(items, country, self._LISTED))
            weights.append(max(of_day, _LEAST_TRUST))
        if category:
            lists.append(top_of_category(items, category, self._LISTED))
            weights.append(max(of_day, _LEAST_TRUST))
        return blend(items, lists, self._LISTED, weights)


class UnfinishedSource:
    """What the user looked at or put in the cart lately and has not bought.

    Parameters
    ----------
    limit
        Rows proposed at most.

    Notes
    -----
    An item's value is the sum over its events of the last 14 days of weight x 2^-(age / 1 day);
    putting it back takes away. Where the cart itself is the reason, its items come first,
    the newest first.
    """

    name: Final = "unfinished"

    def __init__(self, limit: int = 20) -> None:
        self._limit = limit

    def propose(self, queries: Sequence[Query]) -> list[Rows]:
        """Return rows of the history and the cart, most wanted first."""
        return [self._propose(query) for query in queries]

    def _propose(self, query: Query) -> Rows:
        # At most 50 events of weight 4 and being in the cart: below 2^24, so its order stands.
        by_place = 1 << 24 if query.lead == self.name else 0
        wanted: Rows = unfinished(
            query.rules(query.closed),
            *(query.history, query.types, query.age_s),
            *(np.array(query.cart[:_CART], np.int64), by_place),
            *(_INTEREST, _DECAY),
            EVENT_CODE["purchase"],
            *(query.items.id_hash, query.items.slots),
            self._limit,
        )
        return wanted
