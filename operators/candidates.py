"""Candidates: which items could be pushed for a trigger, from several sources, merged.

Reads   a trigger, what its campaign puts forward, and the catalogue's columns, as they stand.
Emits   at most K candidates, best first, each with the source that spoke for it most.
Owns    the sources and their usual weights, what a trigger asks them, and the places kept for
        exploration.

Each source proposes rows, best first; `models.merging` makes one list of them. A trigger has the
same candidates in every process that holds the same tables, whatever the batch, the rows' numbers
or the CPU.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.arms import SOURCES
from models.campaign_source import CampaignSource
from models.changed_source import ChangedSource
from models.codes import Codes
from models.explore_source import ExploreSource, explored_places
from models.features import CANDIDATES, EVENT_CODE
from models.intent_source import IntentSource
from models.item_rows import ItemRows
from models.merging import RRF, Merger
from models.neighbour_source import NeighbourSource
from models.recency import BOUGHT, closed_and_seen, recent_rows
from models.repeat_source import RepeatSource
from models.sources import (
    ContentSource,
    Query,
    Rows,
    Source,
    TrendSource,
    UnfinishedSource,
)
from models.taste import unpack_vector
from models.tower_source import TowerSource
from operators.hops import Candidate, Trigger
from operators.messages import Picks

Floats = NDArray[np.float64]

# Tuned on online-retail's July and on a middle slice of MovieLens together
# (`pushflow evaluate candidates --tune`). Below 0.38 a source's rows come behind a hundred others.
WEIGHTS: Final = {
    "neighbour": 1.0,
    "content": 0.4,
    "trend": 0.5,
    "unfinished": 1.0,
    "intent": 0.6,
    "tower": 0.6,
    "repeat": 1.0,
    "changed": 1.0,
    "campaign": 1.0,
}
# Rows proposed at most, of the sources that could go on, 1 to `models.merging.MAX_DEPTH`.
DEPTHS: Final = {"neighbour": 100, "content": 50, "trend": 100, "tower": 100}
# Neither costs recall@100 on MovieLens; a share of 0.3 does, 2% of it.
MAX_PER_CATEGORY: Final = 0.5
COPY_COSINE: Final = 0.98
# The source that is a trigger's own reason comes first: for a cart left the cart is the message.
_LEADS: Final = {
    "cart_left": "unfinished",
    "price_dropped": "changed",
    "back_in_stock": "changed",
}
_EXPLORATION: Final = 1  # seed of the hash, apart from others of the same id
_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)
_NO_PICKS: Final = Picks()

_PURCHASE: Final = EVENT_CODE["purchase"]


class Found(NamedTuple):
    """A trigger's candidates, best first; each array has shape (K,)."""

    query: Query
    rows: Rows
    sources: NDArray[np.int64]  # places in models.arms.SOURCES: the strongest source of each
    scores: Floats  # fused


class _Behind(NamedTuple):
    """A trigger's history, newest first; int64, each of shape (E,)."""

    rows: Rows  # 0 for ids without one
    types: Rows
    age_s: Rows


class CandidateGenerator:
    """Proposes candidates for triggers.

    Parameters
    ----------
    items
        The catalogue.
    weights
        Weight of each source by name, 0 to `models.merging.MAX_WEIGHT`; 0 or absent turns a
        source off.
    limit
        K, candidates at most, 1 to 100.
    max_per_category, copy_cosine, rrf
        Of `models.merging.Merger`.
    depths
        Rows that some sources propose at most, by name, those of `DEPTHS`.
    explore_share
        Share of K that is kept for items that few have been told of, 0 to 1.

    Notes
    -----
    What a batch costs: `python -m bench.index`. Holds nothing of users.

    Examples
    --------
    >>> from models.features import EVENT_CODE
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
    >>> generator = CandidateGenerator(catalogue, weights=WEIGHTS | {"trend": 0.3})
    >>> [(c.item_id, c.source) for c in generator.generate(trigger)]
    [('a', 'unfinished'), ('b', 'content'), ('c', 'trend')]
    """

    def __init__(
        self,
        items: ItemRows,
        *,
        weights: Mapping[str, float] = WEIGHTS,
        limit: int = CANDIDATES,
        max_per_category: float = MAX_PER_CATEGORY,
        copy_cosine: float = COPY_COSINE,
        rrf: int = RRF,
        depths: Mapping[str, int] = DEPTHS,
        explore_share: float = 0.0,
    ) -> None:
        self._items = items
        self._weights = dict(weights)
        self._limit = limit
        self._explore_share = explore_share
        self._lock = threading.Lock()
        self._sources = [s for s in weighed_sources(depths) if weights.get(s.name, 0.0) > 0]
        self._filling = TrendSource(limit=2 * limit)  # K at least beside any K
        n_places = math.ceil(explore_share * limit)
        self._explore = ExploreSource(limit=2 * n_places)  # some stand in the list already
        self._merger = Merger(
            [source.name for source in self._sources],
            weights,
            limit=limit,
            max_per_category=max_per_category,
            copy_cosine=copy_cosine,
            rrf=rrf,
        )

    def weigh(self, factors: Mapping[str, float]) -> None:
        """Multiply the weights of sources, by name, from now on; 1 where none is given.

        Call it between batches.
        """
        weights = {name: w * factors.get(name, 1.0) for name, w in self._weights.items()}
        with self._lock:
            self._merger.weigh(weights)

    def find(
        self, triggers: Sequence[Trigger], picks: Sequence[Picks] | None = None
    ) -> list[Found]:
        """Return the candidates of each trigger; none only where nothing can be pushed.

        `picks` are of the triggers' campaigns, one a trigger.
        """
        return self.answer(self.ask(triggers, picks))

    def ask(self, triggers: Sequence[Trigger], picks: Sequence[Picks] | None = None) -> list[Query]:
        """Return what `answer` is to be asked for triggers, and the picks of their campaigns."""
        of_campaigns = [_NO_PICKS] * len(triggers) if picks is None else picks
        pairs = zip(triggers, of_campaigns, strict=True)
        return [make_query(trigger, self._items, own) for trigger, own in pairs]

    def answer(self, queries: Sequence[Query]) -> list[Found]:
        """Return the candidates of each query."""
        if not queries:
            return []
        # Workers of one process share the catalogue, whose scratch arrays serve one at a time.
        with self._lock:
            proposed = [source.propose(queries) for source in self._sources]
            merged = self._merger.merge(queries, proposed)
            short = [b for b, one in enumerate(merged) if len(one.rows) < self._limit]
            if short:
                own = [queries[b] for b in short]
                lists = [[rows[b] for b in short] for rows in proposed]
                again = self._merger.merge(own, lists, self._filling.propose(own))
                for b, one in zip(short, again, strict=True):
                    merged[b] = one
            if self._explore_share:
                seeds = [query.seed for query in queries]
                places = explored_places(seeds, self._explore_share, self._limit)
                more = self._explore.propose(queries)
                merged = self._merger.exploring(self._items, merged, more, places)
        return [Found(query, *one) for query, one in zip(queries, merged, strict=True)]

    def generate(self, trigger: Trigger) -> list[Candidate]:
        """Return the trigger's candidates by name, best first."""
        [found] = self.find([trigger])
        return candidates_of(self._items, found.rows, found.sources, found.scores)


def weighed_sources(depths: Mapping[str, int] = DEPTHS) -> tuple[Source, ...]:
    """Return the sources whose proposals are weighed, in the order of `models.arms.SOURCES`."""
    return (
        NeighbourSource(depths["neighbour"]),
        ContentSource(depths["content"]),
        TrendSource(depths["trend"]),
        UnfinishedSource(),
        IntentSource(),
        TowerSource(depths["tower"]),
        RepeatSource(),
        ChangedSource(),
        CampaignSource(),
    )


def make_query(trigger: Trigger, items: ItemRows, picks: Picks = _NO_PICKS) -> Query:
    """Return the trigger as rows, and what may not be proposed for it."""
    profile = trigger.profile
    behind = _behind(trigger, items)
    bought, bought_age_s = items.rows_of(trigger.bought), _bought_ages(trigger)
    cart = items.rows_of(reversed(trigger.cart))
    recent, weights = _recent(behind, bought, bought_age_s)
    closed, seen = closed_and_seen(_whole(bought), behind.rows, _whole(cart))
    return Query(
        items=items,
        time_ms=trigger.time_ms,
        recent=recent,
        weights=weights,
        history=behind.rows,
        types=behind.types,
        age_s=behind.age_s,
        cart=cart,
        country=items.countries.get(profile.country) if profile else 0,
        category=items.categories.get(trigger.category),
        closed=closed,
        seen=seen,
        intent=unpack_vector(trigger.intent) if trigger.intent else None,
        taste=unpack_vector(trigger.taste) if trigger.taste else None,
        about=items.rows_of(trigger.about),
        picks=items.rows_of(picks.item_ids),
        pick_categories=[items.categories.get(name) for name in picks.categories],
        bought=_bought(bought, trigger.bought_s, bought_age_s),
        blocked=_distinct(items.rows_of(profile.blocked_items)) if profile else _NO_ROWS,
        blocked_categories=_codes(items.categories, profile.blocked_categories)
        if profile
        else _NO_ROWS,
        lead=_LEADS.get(trigger.type, ""),
        seed=xxhash.xxh3_64_intdigest(trigger.event_id.encode(), seed=_EXPLORATION),
    )


def _behind(trigger: Trigger, items: ItemRows) -> _Behind:
    history, now_s = trigger.history, trigger.time_ms // 1_000
    return _Behind(
        _whole(items.rows_of(reversed(history.item_ids))),
        _whole(history.types[::-1]),
        _whole([now_s - at_s if at_s < now_s else 0 for at_s in reversed(history.time_s)]),
    )


def _recent(behind: _Behind, bought: list[int], bought_age_s: list[int]) -> tuple[Rows, Rows]:
    """Return the distinct rows behind a trigger, newest first, and their recency weights."""
    if not bought:
        return recent_rows(*behind)
    earlier = bought[::-1][:BOUGHT]
    of_earlier = (earlier, [_PURCHASE] * len(earlier), bought_age_s[:BOUGHT])
    columns = zip(behind, map(_whole, of_earlier), strict=True)
    return recent_rows(*(np.concatenate(column) for column in columns))


def _bought(rows: list[int], times_s: Sequence[int], ages_s: list[int]) -> list[tuple[int, int]]:
    """Return the row and the age in seconds of each purchase whose time is known, newest first."""
    if not rows:
        return []
    pairs = zip(reversed(rows), reversed(times_s), ages_s, strict=False)
    return [(row, age_s) for row, at_s, age_s in pairs if row and at_s]


def _bought_ages(trigger: Trigger) -> list[int]:
    """Return the purchases' ages, newest first, seconds; all of them old where none is known."""
    if not trigger.bought:
        return []
    now_s = trigger.time_ms // 1_000
    times = trigger.bought_s or [0] * len(trigger.bought)
    return [max(now_s - at_s, 0) for at_s in reversed(times)]


def _whole(values: Sequence[int]) -> Rows:
    return np.array(values, np.int64)


def _codes(names: Codes, wanted: list[str]) -> Rows:
    if not wanted:
        return _NO_ROWS
    codes = [names.get(name) for name in wanted]
    return np.array([code for code in codes if code], np.int64)


def _distinct(rows: list[int]) -> Rows:
    if not rows:
        return _NO_ROWS
    known = dict.fromkeys(rows)
    return np.fromiter(known, np.int64, len(known))


def candidates_of(
    items: ItemRows, rows: Rows, sources: NDArray[np.int64], scores: Floats
) -> list[Candidate]:
    """Return candidates by name, of rows, places in `models.arms.SOURCES` and fused scores."""
    ids = items.item_ids.named(rows)
    names = [SOURCES[code] for code in sources.tolist()]
    return list(map(Candidate._make, zip(ids, names, scores.tolist(), strict=True)))
