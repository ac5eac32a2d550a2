"""Candidates: which items could be pushed for a trigger, from several sources, merged.

Reads   a trigger and the catalogue's columns, both as they stand.
Emits   at most K candidates, best first, each with the source that spoke for it most.
Owns    the merge, its weights, and what may not be proposed.

Each source of `models.sources` proposes rows, best first; reciprocal-rank fusion adds
`weight / (60 + rank)` over the sources that name a row. Ranks compare where scores do not: a
cosine, a count and an age. All that is summed or compared is an integer, so a trigger has the
same candidates in every process that holds the same tables, whatever the batch, the rows'
numbers or the CPU.

References
----------
Cormack et al., "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
Methods", SIGIR 2009.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.arms import SOURCE_CODE, SOURCES
from models.features import CANDIDATES, EVENT_CODE, HISTORY
from models.item_rows import ItemRows
from models.neighbours import best_rows
from models.sources import (
    WEIGHT_UNIT,
    ContentSource,
    NeighbourSource,
    Query,
    Rows,
    Source,
    TrendSource,
    UnfinishedSource,
)
from operators.hops import Candidate, Trigger

Floats = NDArray[np.float64]

# Tuned on online-retail, invoices of July 2011 (`python -m bench.candidates --tune`).
WEIGHTS: Final = {"neighbour": 1.0, "content": 0.4, "trend": 0.4, "unfinished": 1.0}
# For a cart left behind the cart is the message: with this weight its 20 rows come before all
# that the other sources together can say (8 / 80 > 1.8 / 61).
CART_LEFT_WEIGHT: Final = 8.0
FALLBACK_WEIGHT: Final = 0.01  # 0.01 / 61 is less than any source's last place

_RRF: Final = 60  # as in the paper: tells the first ten apart, and yet the hundredth counts
_UNIT: Final = 2**28  # a fused score of 1; scores stay below 0.2
_PLACE_BITS: Final = 4  # at most 15 sources and the fallback
_LAST_PLACE: Final = (1 << _PLACE_BITS) - 1
_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)
_DAY_MS: Final = 86_400_000
_WEEK_MS: Final = 7 * _DAY_MS

# How much of an item's say is left: 2% less by each place further back, and half by 90 days
# since the newest. On online-retail no fading at all finds 1% more, for its customers are shops
# that buy as they did; people's tastes move.
_BY_PLACE: Final = tuple(WEIGHT_UNIT * 0.98**place for place in range(HISTORY))
_DAY_S: Final = 86_400
_BY_AGE: Final = tuple(2.0 ** (-days / 90) for days in range(900))  # then it stays at 0.001
_PUT_BACK: Final = frozenset((EVENT_CODE["cart_remove"], EVENT_CODE["refund"]))


class ArmInputs(NamedTuple):
    """What `models.arms.arm_features` reads of the candidates; each float64, shape (B, K).

    Counts are decayed to the trigger's time; 0 for an item without statistics.
    """

    popularity: Floats  # weighted interactions, half-life 1 day
    views: Floats  # half-life 7 days, as the next five
    clicks: Floats
    purchases: Floats
    pushes: Floats
    opens: Floats
    favorites: Floats
    age_days: Floats  # since created, else first seen; 0 where neither is known
    price: Floats
    category_affinity: Floats  # share of the history, by recency, in the main category, 0 to 1


class Found(NamedTuple):
    """A trigger's candidates, best first; each array has shape (K,)."""

    query: Query
    rows: Rows
    sources: NDArray[np.int64]  # places in models.arms.SOURCES: the strongest source of each
    scores: Floats  # fused


class CandidateGenerator:
    """Proposes candidates for triggers.

    Parameters
    ----------
    items
        The catalogue.
    weights
        Weight of each source by name, >= 0; 0 or absent turns a source off.
    limit
        K, candidates at most, 1 to 100.
    sources
        Sources in a fixed order, at most 15 with 100 rows each; of equal contributions the
        earlier source is named.

    Notes
    -----
    200 to 260 µs a trigger at 4,000 items, 50 history items and K = 100, a quarter of it the
    content source (`python -m bench.candidates`, on two cores that other jobs shared). Holds
    nothing of users.

    Examples
    --------
    >>> from operators.catalogue import Catalogue
    >>> from operators.hops import Engagement, History
    >>> from operators.messages import Item
    >>> catalogue = Catalogue()
    >>> for item_id, title in ("a", "red lamp"), ("b", "lamp, blue"), ("c", "tea"):
    ...     catalogue.apply(item_id, Item(item_id=item_id, title=title))
    >>> catalogue.refresh()
    True
    >>> saw_a = History(["a"], [EVENT_CODE["view"]], [1_700_000_000])
    >>> trigger = Trigger("intent", "e1", "u1", "00", 1_700_000_060_000, [], saw_a, [], [], "", "",
    ...     None, Engagement(0.0, 0.0, 0, False))
    >>> [(c.item_id, c.source) for c in CandidateGenerator(catalogue).generate(trigger)]
    [('a', 'unfinished'), ('b', 'content'), ('c', 'trend')]
    """

    def __init__(
        self,
        items: ItemRows,
        *,
        weights: Mapping[str, float] = WEIGHTS,
        limit: int = CANDIDATES,
        sources: Sequence[Source] | None = None,
    ) -> None:
        if sources is None:
            sources = (NeighbourSource(), ContentSource(), TrendSource(), UnfinishedSource())
        self._items = items
        self._limit = limit
        self._sources = [source for source in sources if weights.get(source.name, 0.0) > 0]
        names = [*(source.name for source in self._sources), "trend"]
        self._codes = np.array([SOURCE_CODE.get(name, -1) for name in names], np.int64)  # by place
        says = {s.name: _says(weights[s.name], place) for place, s in enumerate(self._sources)}
        self._says = [says[source.name] for source in self._sources]
        self._says_of_cart_left = [
            _says(CART_LEFT_WEIGHT, place) if source.name == "unfinished" else says[source.name]
            for place, source in enumerate(self._sources)
        ]
        self._fallback_says = _says(FALLBACK_WEIGHT, len(self._sources))

    def find(self, trigger: Trigger) -> Found:
        """Return the trigger's candidates, best first; none only where nothing can be pushed."""
        items = self._items
        query = make_query(trigger, items)
        says = self._says_of_cart_left if trigger.type == "cart_left" else self._says
        proposed = [source.propose(query) for source in self._sources]
        found, fused, strongest = _fuse(
            np.concatenate([*proposed, _NO_ROWS]),
            np.concatenate(
                [*(say[: len(rows)] for say, rows in zip(says, proposed, strict=True)), _NO_ROWS]
            ),
        )
        best = best_rows(fused, found, items.id_rank, items.row_of_rank, self._limit)
        at = np.searchsorted(found, best)
        scores, codes = fused[at], strongest[at]
        if len(best) < self._limit:
            more = self._more(query, best, self._limit - len(best))
            best = np.concatenate([best, more])
            scores = np.concatenate([scores, self._fallback_says[: len(more)] >> _PLACE_BITS])
            codes = np.concatenate([codes, self._fallback_says[: len(more)]])
        sources = self._codes[_LAST_PLACE - (codes & _LAST_PLACE)]
        return Found(query, best, sources, scores / _UNIT)

    def generate(self, trigger: Trigger) -> list[Candidate]:
        """Return the trigger's candidates by name, best first."""
        found = self.find(trigger)
        return candidates_of(self._items, found.rows, found.sources, found.scores)

    @staticmethod
    def _more(query: Query, found: Rows, missing: int) -> Rows:
        """Return what is popular anywhere, else newest, beside what the sources proposed."""
        items = query.items
        is_left = ~query.is_seen
        is_left[found] = False
        rows = np.flatnonzero(is_left)
        return best_rows(items.trend[rows], rows, items.id_rank, items.row_of_rank, missing)


def make_query(trigger: Trigger, items: ItemRows) -> Query:
    """Return the trigger as rows, and what may not be proposed for it."""
    history = items.rows_of(reversed(trigger.history.item_ids))
    types = trigger.history.types[::-1]
    age_s = _ages(trigger)
    recent, weights = _recent(history, types, age_s)
    cart = items.rows_of(reversed(trigger.cart))
    is_closed = ~items.is_servable[: items.n_rows]  # row 0 is never servable
    is_closed[items.closed_rows(trigger.time_ms)] = True
    is_closed[items.rows_of(trigger.bought)] = True
    is_seen = is_closed.copy()
    is_seen[history] = True
    is_seen[cart] = True
    return Query(
        items=items,
        recent=recent,
        weights=weights,
        history=history,
        types=types,
        age_s=age_s,
        cart=cart,
        is_cart_first=trigger.type == "cart_left",
        country=items.countries.get(trigger.profile.country) if trigger.profile else 0,
        category=items.categories.get(trigger.category),
        is_closed=is_closed,
        is_seen=is_seen,
    )


def candidates_of(
    items: ItemRows, rows: Rows, sources: NDArray[np.int64], scores: Floats
) -> list[Candidate]:
    """Return candidates by name, of rows, places in `models.arms.SOURCES` and fused scores."""
    ids = [items.item_ids[row] for row in rows.tolist()]
    names = [SOURCES[code] for code in sources.tolist()]
    return list(map(Candidate._make, zip(ids, names, scores.tolist(), strict=True)))


def arm_inputs(queries: Sequence[Query], time_ms: Sequence[int], rows: Rows) -> ArmInputs:
    """Return what the policy's arm features need of several triggers' candidates.

    Parameters
    ----------
    queries
        Of B triggers, B >= 1.
    time_ms
        Their times, event time.
    rows
        Their candidates, shape (B, K).
    """
    items = queries[0].items
    now_ms = np.array(time_ms, np.int64)[:, None]  # (B, 1)
    age_ms = np.maximum(now_ms - items.stats_ms[rows], 0)  # (B, K), as all below
    by_day = np.exp2(-age_ms / _DAY_MS)
    by_week = np.exp2(-age_ms / _WEEK_MS)
    created_ms = items.created_ms[rows]
    born_ms = np.where(created_ms > 0, created_ms, items.first_seen_ms[rows])
    is_born = (born_ms > 0) & (born_ms < now_ms)
    return ArmInputs(
        popularity=items.popularity[rows] * by_day,
        views=items.views[rows] * by_week,
        clicks=items.clicks[rows] * by_week,
        purchases=items.purchases[rows] * by_week,
        pushes=items.pushes[rows] * by_week,
        opens=items.opens[rows] * by_week,
        favorites=items.favorites[rows] * by_week,
        age_days=np.where(is_born, (now_ms - born_ms) / _DAY_MS, 0.0),
        price=items.price[rows],
        category_affinity=np.array(
            [
                _category_affinity(items.category, query.recent, query.weights, own)
                for query, own in zip(queries, rows, strict=True)
            ]
        ).reshape(rows.shape),
    )


def _category_affinity(
    category: NDArray[np.int64], recent: Rows, weights: NDArray[np.int64], rows: Rows
) -> Floats:
    of_recent, wanted = category[recent], category[rows]
    known = np.where(of_recent > 0, weights, 0).astype(np.float64)  # whole numbers: exact sums
    total = known.sum()
    if not total or not len(rows):
        return np.zeros(len(rows))
    by_category = np.bincount(of_recent, weights=known, minlength=int(wanted.max()) + 1)
    share: Floats = by_category[wanted] / total
    return share


def _ages(trigger: Trigger) -> list[int]:
    """Return the history's ages at the trigger, newest first, seconds."""
    now_s = trigger.time_ms // 1_000
    return [now_s - s if s < now_s else 0 for s in reversed(trigger.history.time_s)]


def _recent(
    history: list[int], types: list[int], age_s: list[int]
) -> tuple[Rows, NDArray[np.int64]]:
    """Return the distinct rows of the history, newest first, and their recency weights."""
    weight_of: dict[int, int] = {0: 0}
    newest_age_s, oldest = age_s[0] if age_s else 0, len(_BY_AGE) - 1
    for row, code, age in zip(history, types, age_s, strict=True):
        if row not in weight_of:
            place = len(weight_of) - 1
            by_age = _BY_AGE[min(max(age - newest_age_s, 0) // _DAY_S, oldest)]
            weight_of[row] = 0 if code in _PUT_BACK else int(_BY_PLACE[place] * by_age)
    del weight_of[0]
    rows = np.fromiter(weight_of.keys(), np.int64, len(weight_of))
    weights = np.fromiter(weight_of.values(), np.int64, len(weight_of))
    is_kept = weights > 0
    return rows[is_kept], weights[is_kept]


def _says(weight: float, place: int) -> NDArray[np.int64]:
    """Return what the source at a place says of its first 100 rows, int64, shape (100,).

    The contribution, and in the lower bits the place, reversed: of two sources that contribute
    the same to a row the larger number is the earlier one's.
    """
    shares = np.rint(_UNIT * weight / (_RRF + 1 + np.arange(CANDIDATES))).astype(np.int64)
    says: NDArray[np.int64] = (shares << _PLACE_BITS) + _LAST_PLACE - place
    return says


def _fuse(rows: Rows, says: NDArray[np.int64]) -> tuple[Rows, NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct rows in ascending order, their sums, and the most said of each."""
    if not len(rows):
        return _NO_ROWS, _NO_ROWS, _NO_ROWS
    order = np.argsort(rows)
    rows, says = rows[order], says[order]
    starts = np.flatnonzero(np.concatenate(([True], rows[1:] != rows[:-1])))
    return (
        rows[starts],
        np.add.reduceat(says >> _PLACE_BITS, starts),
        np.maximum.reduceat(says, starts),
    )
