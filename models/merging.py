"""Merging: several sources' proposals become one list of candidates for each query.

Reads   rows by source, best first, and the columns of `models.item_rows`.
Emits   at most K rows a query, best first, each with the source that spoke for it most.
Owns    the weights of the sources, what counts as a copy, and the share of one category.

Reciprocal-rank fusion adds `weight / (k + rank)` over the sources that name a row. Ranks compare
where scores do not: a cosine, a count and an age. The larger k, the more it counts that several
sources name a row, and the less which place each gives it. All that is summed or compared is an
integer or an exact product, so a query has the same candidates in every process that holds the
same tables, whatever the batch, the rows' numbers or the CPU.

Of two rows with the same words, or with nearly the same content, the better one stays. Where the
sources propose more than K, a main category takes no more than its share while there are others;
the order among those that stay is the fused one.

References
----------
Cormack et al., "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
Methods", SIGIR 2009.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.arms import DESIGN, SOURCE_CODE, SOURCES
from models.batches import padded
from models.features import CANDIDATES
from models.item_rows import ItemRows
from models.neighbours import order_of_each
from models.sources import Query, Rows

Ints = NDArray[np.int64]

RRF: Final = 60  # as in the paper: tells the first ten apart, and yet the hundredth counts
MIN_RRF: Final = 60  # less would let the first places of the others pass a leading source
MAX_RRF: Final = 1_000  # a list's order says next to nothing from here on
MAX_DEPTH: Final = 300  # rows of a source that count: three times the candidates
# A trigger's own source (the cart of a cart left behind) says this times all weights together:
# its 30 rows come before whatever the others agree on, for 1.5 / 90 > 1 / 61.
LEAD: Final = 1.5
FILL_WEIGHT: Final = 0.005  # 0.005 / 61 is less than any source's last place at weight 0.03
EXPLORE_WEIGHT: Final = 0.001  # and this behind all of those
LEARNED_STEP: Final = 0.1  # reward units, a tenth of an open: halves or doubles a weight
TRUSTED_REWARDS: Final = 1_000  # of so many rewards half is believed: of a few it is chance
MAX_WEIGHT: Final = 10.0  # so that a fused score stays below 2^32 units

_COMPARED_TO: Final = 64  # the best rows by content: all products would cost twice as much
_SPARE: Final = 16  # rows looked at beyond: small limits need it
_UNIT: Final = 2**28  # a fused score of 1
_PLACE_BITS: Final = 4  # at most 15 sources and the filling
_SAID_BITS: Final = 32 + _PLACE_BITS  # of what is said; a row has the 27 above
_LAST_PLACE: Final = (1 << _PLACE_BITS) - 1
_ORDER_BITS: Final = 9  # of a row's order among those looked at, 216 at most
_LAST_ORDER: Final = (1 << _ORDER_BITS) - 1
_SOURCE_COLUMNS: Final = [DESIGN.index(f"source_{name}") for name in SOURCES]
_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)


class Merged(NamedTuple):
    """One query's candidates, best first; each array has shape (K,) or shorter."""

    rows: Rows
    sources: Ints  # places in models.arms.SOURCES: the source that says most of each
    scores: NDArray[np.float64]  # fused


class _Top(NamedTuple):
    """The best rows of B queries, padded with 0 to one length L; each array has shape (B, L)."""

    rows: Rows
    fused: Ints
    codes: Ints


class Merger:
    """Merges the proposals of sources.

    Parameters
    ----------
    names
        The sources in the order in which they are given to `merge`, at most 15; of equal
        contributions the earlier source is named.
    weights
        By name, 0 to `MAX_WEIGHT`; absent is 0, and a source of weight 0 says nothing.
    limit
        K, candidates at most, 1 to 100.
    max_per_category
        Share of K that one main category may take while there are others, 0 to 1; 1: any.
    copy_cosine
        Rows whose content vector has at least this cosine with one of the best 64 are copies,
        above 0; above 1: only those with the same words are.
    rrf
        k of the reciprocal ranks, `MIN_RRF` to `MAX_RRF`.

    Notes
    -----
    About a fifth of what a batch of 32 queries costs (`python -m bench.index`): two fifths of it
    ordering the rows, a third the cosines. Holds nothing of queries.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Mapping[str, float],
        *,
        limit: int = CANDIDATES,
        max_per_category: float = 1.0,
        copy_cosine: float = 2.0,
        rrf: int = RRF,
    ) -> None:
        self._names = list(names)
        self._rrf = rrf
        self._limit = limit
        self._looked_at = 2 * limit + _SPARE  # some of them are too many of one category
        self._compared = limit + limit // 8 + _SPARE  # and some of these are copies
        self._category_cap = max(math.ceil(max_per_category * limit), 1)
        self._copy_cosine = np.float32(copy_cosine)
        self._codes = np.full(1 << _PLACE_BITS, -1)  # by the lower bits of what is said
        for place, name in enumerate([*names, "trend"]):
            self._codes[_LAST_PLACE - place] = SOURCE_CODE.get(name, -1)
        self._fill = _says(FILL_WEIGHT, len(self._names), rrf)
        self._explored = _says(EXPLORE_WEIGHT, len(self._names), rrf) >> _PLACE_BITS
        self._explorers = np.full(limit, SOURCE_CODE["explore"])
        self.weigh(weights)

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Use other weights from now on."""
        own = [weights.get(name, 0.0) for name in self._names]
        self._says = [_says(weight, place, self._rrf) for place, weight in enumerate(own)]
        self._leads = [_says(LEAD * sum(own), place, self._rrf) for place in range(len(own))]

    def merge(
        self,
        queries: Sequence[Query],
        proposed: Sequence[Sequence[Rows]],
        filling: Sequence[Rows] | None = None,
    ) -> list[Merged]:
        """Return the candidates of each query.

        Parameters
        ----------
        queries
            B of them, of the same items.
        proposed
            By source, in the order of `names`, and by query: distinct rows, best first, at most
            `MAX_DEPTH`.
        filling
            By query: rows to put behind what was proposed, of the trend, best first.
        """
        items, top = queries[0].items, self._top(queries, proposed, filling)
        if not top.rows.shape[1]:
            return [Merged(_NO_ROWS, _NO_ROWS, np.zeros(0))] * len(queries)
        excess = self._is_excess(items, top.rows)
        at = _first(top.rows == 0, excess, self._compared)  # (B, C)
        top, excess = _Top(*(column.take(at) for column in top)), excess.take(at)
        is_out = (top.rows == 0) | self._is_copy(items, top.rows)
        at = _first(is_out, excess, self._limit)  # (B, K)
        top, is_out = _Top(*(column.take(at) for column in top)), is_out.take(at)
        sources = self._codes[top.codes & _LAST_PLACE]
        whole = [Merged(*own) for own in zip(top.rows, sources, top.fused / _UNIT, strict=True)]
        for b in np.flatnonzero(is_out.any(axis=1)).tolist():
            kept = ~is_out[b]
            whole[b] = Merged(top.rows[b, kept], whole[b].sources[kept], whole[b].scores[kept])
        return whole

    def exploring(
        self,
        items: ItemRows,
        merged: Sequence[Merged],
        more: Sequence[Rows],
        n_places: Sequence[int],
    ) -> list[Merged]:
        """Return candidates of which the last places are given to further rows, for each query.

        Of `more` those that are no candidates yet, `n_places` at most.
        """
        rows, is_own = padded(more)
        is_new = is_own & ~items.are_among(rows, [one.rows for one in merged])
        new = [own[wanted][:n] for own, wanted, n in zip(rows, is_new, n_places, strict=True)]
        return [self._mixed(one, own) for one, own in zip(merged, new, strict=True)]

    def _mixed(self, merged: Merged, more: Rows) -> Merged:
        n_kept = self._limit - len(more)
        return Merged(
            np.concatenate([merged.rows[:n_kept], more]),
            np.concatenate([merged.sources[:n_kept], self._explorers[: len(more)]]),
            np.concatenate([merged.scores[:n_kept], self._explored[: len(more)] / _UNIT]),
        )

    def _top(
        self,
        queries: Sequence[Query],
        proposed: Sequence[Sequence[Rows]],
        filling: Sequence[Rows] | None,
    ) -> _Top:
        """Return the best of what was proposed, fused, copies and all."""
        keys = self._said(queries, proposed, filling)
        keys.sort(axis=1)
        rows, said = keys >> _SAID_BITS, keys & (1 << _SAID_BITS) - 1
        # A query's row is there once or several times, the last time with what says most of it.
        is_other = np.ones((len(keys), keys.shape[1] + 1), np.bool_)
        is_other[:, 1:-1] = rows[:, 1:] != rows[:, :-1]
        is_first, is_last = is_other[:, :-1] & (rows > 0), is_other[:, 1:] & (rows > 0)
        n_of = np.count_nonzero(is_last, axis=1)  # (B,)
        length = min(self._looked_at, int(n_of.max()))
        if not length:
            return _Top(*(np.zeros((len(keys), 0), np.int64) for _ in _Top._fields))
        fused = np.full(keys.shape, -1)
        # What lies between two lines is 0, and adds nothing.
        fused[is_last] = np.add.reduceat((said >> _PLACE_BITS).ravel(), np.flatnonzero(is_first))
        best = order_of_each(fused, queries[0].items.id_hash.take(rows))[:, :length]
        is_none = np.arange(length) >= n_of[:, None]
        top = _Top(*(column.take(_flat(best, keys.shape[1])) for column in (rows, fused, said)))
        for column in top:
            column[is_none] = 0
        return top

    def _said(
        self,
        queries: Sequence[Query],
        proposed: Sequence[Sequence[Rows]],
        filling: Sequence[Rows] | None,
    ) -> Ints:
        """Return each query's proposals: the row, and below it what its source says; (B, W).

        0 where a list is shorter than others.
        """
        parts = [np.zeros((len(queries), 1), np.int64)]
        for place, lists in enumerate(proposed):
            rows, is_own = padded(lists)  # (B, L)
            keys = rows << _SAID_BITS | self._says[place][: rows.shape[1]]
            for b, query in enumerate(queries):
                if query.lead == self._names[place]:
                    keys[b] = rows[b] << _SAID_BITS | self._leads[place][: rows.shape[1]]
            parts.append(np.where(is_own, keys, 0))
        if filling:
            known = np.concatenate(parts, axis=1) >> _SAID_BITS
            # Of the filling only what nobody has proposed: it must not add to what was said.
            pairs = zip(queries, filling, known, strict=True)
            new = [rows[~query.items.is_among(rows, own)] for query, rows, own in pairs]
            rows, is_own = padded([rows[:CANDIDATES] for rows in new])
            keys = rows << _SAID_BITS | self._fill[: rows.shape[1]]
            parts.append(np.where(is_own, keys, 0))
        return np.concatenate(parts, axis=1)

    def _is_copy(self, items: ItemRows, rows: Rows) -> NDArray[np.bool_]:
        """Return which rows repeat the content of a better one that is no copy, shape (B, L)."""
        is_copy = np.zeros(rows.shape, np.bool_)
        # Padding is like nothing else.
        keys = np.where(rows > 0, items.text_key[rows], np.arange(rows.shape[1], dtype=np.uint64))
        ordered = np.sort(keys, axis=1)
        has_copies = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)  # (B,)
        near = None
        if self._copy_cosine <= 1:
            near = self._near(items, rows)  # (B, L, C)
            has_copies |= near.any(axis=(1, 2))
        for b in np.flatnonzero(has_copies).tolist():
            alike = keys[b, :, None] == keys[b]  # (L, L)
            if near is not None:
                alike[:, : near.shape[2]] |= near[b]
            alike = np.tril(alike, -1)  # with a better one
            for place in np.flatnonzero(alike.any(axis=1)).tolist():  # the better first
                is_copy[b, place] = (alike[place] & ~is_copy[b]).any()
        return is_copy

    def _near(self, items: ItemRows, rows: Rows) -> NDArray[np.bool_]:
        """Return which rows are nearly one of the first of the line, but not it, (B, L, C)."""
        vectors = items.content.vectors(rows)  # (B, L, D)
        best = vectors[:, :_COMPARED_TO]
        # Products of vectors on the grid are exact, so the limit cuts the same everywhere.
        near: NDArray[np.bool_] = vectors @ best.transpose(0, 2, 1) >= self._copy_cosine
        itself = np.arange(best.shape[1])
        near[:, itself, itself] = False
        return near

    def _is_excess(self, items: ItemRows, rows: Rows) -> NDArray[np.bool_]:
        """Return which rows have more better ones of their category than its share, (B, L)."""
        if self._category_cap >= rows.shape[1]:
            return np.zeros(rows.shape, np.bool_)
        category = items.category.take(rows).astype(np.int64)  # (B, L)
        keys = np.sort(category << _ORDER_BITS | np.arange(rows.shape[1]), axis=1)
        grouped, cap = keys >> _ORDER_BITS, self._category_cap
        # In a group by its order each row has the one that fills its share so far before it.
        is_over = (grouped[:, cap:] == grouped[:, :-cap]) & (grouped[:, cap:] > 0)
        excess = np.zeros(rows.shape, np.bool_)
        if is_over.any():
            np.put_along_axis(excess, keys[:, cap:] & _LAST_ORDER, is_over, axis=1)
        return excess


def _first(is_out: NDArray[np.bool_], is_excess: NDArray[np.bool_], n: int) -> Ints:
    """Return where the first n columns of each line are in the flat array, in order, (B, n).

    Excess is taken where too little else is left, and what is out where nothing is.
    """
    keys = (2 * is_out + is_excess) << _ORDER_BITS | np.arange(is_out.shape[1])
    keys.sort(axis=1)
    return _flat(np.sort(keys[:, :n] & _LAST_ORDER, axis=1), is_out.shape[1])


def _flat(places: Ints, width: int) -> Ints:
    """Return where places of lines, shape (B, n), are in the flat array of lines so wide."""
    return places + width * np.arange(len(places))[:, None]


def learned_factors(mean: NDArray[np.float64], n_rewards: int) -> dict[str, float]:
    """Return by what each source's weight is to be multiplied, by name, 1/2 to 2.

    Parameters
    ----------
    mean
        What the learner makes of each column of `models.arms.DESIGN`, reward units, (D,).
    n_rewards
        That it has seen.

    Notes
    -----
    A source whose candidates earn 0.1 more than their other columns explain counts twice, and one
    that earns 0.1 less counts half, once many rewards are seen; before the first all are 1. To 3
    decimals, so that the last bits of a mean do not reach the ranks.

    Examples
    --------
    >>> mean = np.zeros(len(DESIGN))
    >>> mean[DESIGN.index("source_tower")], mean[DESIGN.index("source_trend")] = 0.05, -9.0
    >>> factors = learned_factors(mean, 1_000_000)
    >>> factors["tower"], factors["trend"], factors["neighbour"]
    (1.414, 0.5, 1.0)
    >>> learned_factors(mean, 10)["tower"]
    1.003
    """
    believed = mean[_SOURCE_COLUMNS] * (n_rewards / (n_rewards + TRUSTED_REWARDS))
    worth = believed.clip(-LEARNED_STEP, LEARNED_STEP) / LEARNED_STEP
    factors = (round(2.0**one, 3) for one in worth.tolist())
    return dict(zip(SOURCES, factors, strict=True))


def _says(weight: float, place: int, rrf: int) -> Ints:
    """Return what the source at a place says of its first rows, int64, shape (MAX_DEPTH,).

    The contribution, and in the lower bits the place, reversed: of two sources that contribute
    the same to a row the larger number is the earlier one's.
    """
    shares = np.rint(_UNIT * weight / (rrf + 1 + np.arange(MAX_DEPTH))).astype(np.int64)
    says: Ints = (shares << _PLACE_BITS) + _LAST_PLACE - place
    return says
