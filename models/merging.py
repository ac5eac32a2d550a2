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
from itertools import accumulate
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.arms import DESIGN, SOURCE_CODE, SOURCES
from models.features import CANDIDATES
from models.item_rows import ItemRows
from models.merging_kernel import thinned
from models.retrieval_kernels import fused
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

_SPARE: Final = 16  # rows looked at beyond: small limits need it
_UNIT: Final = 2**28  # a fused score of 1
_PLACE_BITS: Final = 4  # at most 15 sources and the filling
_LAST_PLACE: Final = (1 << _PLACE_BITS) - 1
_SOURCE_COLUMNS: Final = [DESIGN.index(f"source_{name}") for name in SOURCES]
_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)


class Merged(NamedTuple):
    """One query's candidates, best first; each array has shape (K,) or shorter."""

    rows: Rows
    sources: Ints  # places in models.arms.SOURCES: the source that says most of each
    scores: NDArray[np.float64]  # fused


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
    Holds nothing of queries, but 256 KB of scratch: one call at a time.
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
        self._explored = _says(EXPLORE_WEIGHT, len(self._names), rrf) >> _PLACE_BITS
        self._explorers = np.full(limit, SOURCE_CODE["explore"])
        self._taken = np.zeros(1 << 16, np.int32)  # scratch by category: zeros between two calls
        self._leading: dict[str, Ints] = {}  # by the source that leads
        self.weigh(weights)

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Use other weights from now on."""
        own = [weights.get(name, 0.0) for name in self._names]
        weighed = enumerate([*own, FILL_WEIGHT])  # the filling's place is behind all
        # By source and place of a row in its list.
        self._says = np.array([_says(weight, place, self._rrf) for place, weight in weighed])
        self._leading = {}
        for place, name in enumerate(self._names):
            says = self._leading[name] = self._says.copy()
            says[place] = _says(LEAD * sum(own), place, self._rrf)

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
        merged = []
        for b, query in enumerate(queries):
            lists = [rows[b] for rows in proposed]
            if filling is not None:
                # Of the filling only what nobody has proposed: it must not add to what was said.
                own = filling[b]
                known = np.concatenate([_NO_ROWS, *lists])
                lists.append(own[~query.items.is_among(own, known)][:CANDIDATES])
            says = self._leading.get(query.lead, self._says)
            merged.append(self._merge(query.items, lists, says))
        return merged

    def _merge(self, items: ItemRows, lists: Sequence[Rows], says: Ints) -> Merged:
        """Return the candidates of one query; `says` is of the places of each source's list."""
        rows, sums, most = fused(
            np.concatenate([_NO_ROWS, *lists]),
            np.array(list(accumulate(map(len, lists))), np.int64),
            says,
            _PLACE_BITS,
            items.id_hash,
            items.slots,
            self._looked_at,
        )
        kept = thinned(
            rows,
            items.category,
            items.text_key,
            items.content_steps,
            self._taken,
            self._category_cap,
            self._compared,
            self._limit,
            self._copy_cosine,
        )
        sources = self._codes.take(most.take(kept) & _LAST_PLACE)
        return Merged(rows.take(kept), sources, sums.take(kept) / _UNIT)

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
        mixed = []
        for one, own, n in zip(merged, more, n_places, strict=True):
            new = own[~items.is_among(own, one.rows)][:n]
            mixed.append(self._mixed(one, new) if len(new) else one)
        return mixed

    def _mixed(self, merged: Merged, more: Rows) -> Merged:
        n_kept = self._limit - len(more)
        return Merged(
            np.concatenate([merged.rows[:n_kept], more]),
            np.concatenate([merged.sources[:n_kept], self._explorers[: len(more)]]),
            np.concatenate([merged.scores[:n_kept], self._explored[: len(more)] / _UNIT]),
        )


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
