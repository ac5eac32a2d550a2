"""Baselines that candidates are judged against: random, popularity, item-CF and ALS.

Reads   who had which item, and when; rows as in `models.item_rows`.
Emits   for each case a list of rows, best first.
Owns    the grids of settings that each baseline may choose from.

A baseline is fitted on what was known at a split, as the product's statistics are, and is asked
with a user's whole past up to the case (the product looks back 50 items): new users are folded
in, so that none is at a disadvantage for having begun late.

References
----------
Sarwar et al., "Item-based collaborative filtering recommendation algorithms", WWW 2001.
Hu, Koren and Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp
from implicit.cpu.als import AlternatingLeastSquares
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Rows = NDArray[np.int64]
Scores = NDArray[np.float64]
Options = dict[str, float]

_NEVER: Final = float("inf")  # a half-life without fading
_BLOCK: Final = 512  # cases scored at a time: bounds memory at 512 x N scores
_ITERATIONS: Final = 15  # of ALS, as `implicit` has it
_TINY: Final = 1e-9


class Interactions(NamedTuple):
    """Who had which item: E parallel entries, at most one a user and item, the newest.

    In the past of cases, `user` is the case, and `age_days` counts back from it.
    """

    user: Rows  # 0 to U - 1, shape (E,)
    row: Rows  # 1 to N - 1, shape (E,)
    age_days: Scores  # before the split, >= 0, shape (E,)
    n_users: int


class Baseline(Protocol):
    """A method that knows only who had what, when.

    `half_life` is in days, of what users had, in learning and in the past of a case.
    """

    half_life: float

    def fit(self, had: Any) -> None:
        """Learn from a sparse matrix of weights, users by rows, (U, N)."""
        ...

    def scores(self, past: Any) -> Scores:
        """Return scores of all rows, (B, N), of the pasts of B cases, a sparse matrix (B, N)."""
        ...


def matrix_of(known: Interactions, n_rows: int, half_life: float = _NEVER) -> Any:
    """Return a sparse matrix (U, N) of weights that fade, 1 for what is new.

    >>> known = Interactions(*(np.array(c) for c in ([0, 1], [2, 1], [0.0, 7.0])), 2)
    >>> matrix_of(known, 3, half_life=7.0).toarray().tolist()
    [[0.0, 0.0, 1.0], [0.0, 0.5, 0.0]]
    """
    weights = np.exp2(-known.age_days / half_life)
    return sp.csr_matrix((weights, (known.user, known.row)), shape=(known.n_users, n_rows))


class Random:
    """Any order."""

    half_life = _NEVER

    def __init__(self, *, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def fit(self, had: Any) -> None:
        """Learn nothing."""

    def scores(self, past: Any) -> Scores:
        """Return uniform numbers."""
        scores: Scores = self._rng.random(past.shape)
        return scores


class Popularity:
    """Users who had an item, fading."""

    def __init__(self, *, half_life: float) -> None:
        self.half_life = half_life

    def fit(self, had: Any) -> None:
        """Count."""
        self._count = np.asarray(had.sum(axis=0)).ravel()  # (N,)

    def scores(self, past: Any) -> Scores:
        """Return the same for all."""
        return np.broadcast_to(self._count, past.shape)


class ItemCF:
    """Items that the same users had, by cosine.

    Parameters
    ----------
    half_life
        Days.
    shrink
        Added to the product of the norms: pairs that few users make say less.
    neighbours
        Of an item that count, at most.

    Examples
    --------
    >>> cf = ItemCF(half_life=_NEVER, shrink=0.0, neighbours=100)
    >>> cf.fit(sp.csr_matrix([[0.0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]]))
    >>> cf.scores(sp.csr_matrix([[0.0, 0, 1, 0]])).round(3).tolist()
    [[0.0, 0.816, 0.0, 0.0]]
    """

    def __init__(self, *, half_life: float, shrink: float, neighbours: float) -> None:
        self.half_life = half_life
        self._shrink, self._k = shrink, int(neighbours)

    def fit(self, had: Any) -> None:
        """Compute the cosines, block by block, and keep each item's largest."""
        norms = np.sqrt(np.asarray(had.multiply(had).sum(axis=0))).ravel()  # (N,)
        by_item = had.T.tocsr()
        blocks = range(0, len(norms), _BLOCK)
        self._cosine = sp.vstack(
            [self._nearest(by_item[at : at + _BLOCK] @ had, norms, at) for at in blocks],
            format="csr",
        )
        self._popularity = norms * _TINY  # where nothing goes with what the user had

    def _nearest(self, together: Any, norms: Scores, first: int) -> Any:
        """Return the largest cosines of a block of items, `first` the row of the first one."""
        cosine = together.toarray()  # (n, N)
        at = np.arange(len(cosine))
        cosine[at, first + at] = 0.0
        cosine /= np.outer(norms[first : first + len(cosine)], norms) + self._shrink + _TINY
        if self._k < cosine.shape[1]:
            least = np.partition(cosine, -self._k, axis=1)[:, -self._k, None]  # (n, 1)
            cosine[cosine < least] = 0.0
        return sp.csr_matrix(cosine)

    def scores(self, past: Any) -> Scores:
        """Return sums of cosines over what the user had."""
        scores: Scores = (past @ self._cosine).toarray() + self._popularity
        return scores


class ALS:
    """Factors of users and items by alternating least squares, from `implicit`.

    Parameters
    ----------
    factors, regularization, alpha
        As `implicit` has them.
    half_life
        Days.
    seed
        Of the first factors.
    """

    def __init__(
        self,
        *,
        factors: float,
        regularization: float,
        alpha: float,
        half_life: float,
        seed: int,
    ) -> None:
        self.half_life = half_life
        with threadpool_limits(1, "blas"):  # it looks at them when it is made
            self._model = AlternatingLeastSquares(
                factors=int(factors),
                regularization=regularization,
                alpha=alpha,
                iterations=_ITERATIONS,
                num_threads=1,
                random_state=seed,
            )

    def fit(self, had: Any) -> None:
        """Factorize."""
        with threadpool_limits(1, "blas"):  # more of them quarrel with those of ALS
            self._model.fit(had.astype(np.float32), show_progress=False)

    def scores(self, past: Any) -> Scores:
        """Return the products with the factors that explain what the user had."""
        own = past.astype(np.float32)
        with threadpool_limits(1, "blas"):
            users = self._model.recalculate_user(np.arange(own.shape[0]), own)  # (B, F)
            scores: Scores = (users @ self._model.item_factors.T).astype(np.float64)
        return scores


_HALF_LIVES: Final = (14.0, 60.0, 365.0, _NEVER)
GRIDS: Final[dict[str, dict[str, tuple[float, ...]]]] = {
    "random": {},
    "popularity": {"half_life": (1.0, 3.0, 7.0, 14.0, 30.0, 90.0, 365.0, 1_500.0, _NEVER)},
    "item-CF": {
        "half_life": _HALF_LIVES,
        "shrink": (0.0, 5.0, 20.0, 100.0),
        "neighbours": (50.0, 200.0, 100_000.0),
    },
    "ALS": {
        "factors": (16.0, 32.0, 64.0, 128.0),
        "regularization": (0.01, 0.1, 1.0, 10.0, 50.0),
        "alpha": (1.0, 5.0, 20.0, 80.0),
        "half_life": _HALF_LIVES,
    },
}


def settings_of(name: str, budget: int, seed: int) -> Iterator[Options]:
    """Yield at most `budget` settings of a baseline, drawn from its grid without repeats.

    >>> next(settings_of("random", 10, 0)), len(list(settings_of("ALS", 10, 0)))
    ({}, 10)
    """
    grid = GRIDS[name]
    every = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    order = np.random.default_rng(seed).permutation(len(every))
    yield from (every[place] for place in order[:budget].tolist())


def make(name: str, options: Options, seed: int) -> Baseline:
    """Return a baseline by its name in `GRIDS`."""
    match name:
        case "random":
            return Random(seed=seed)
        case "popularity":
            return Popularity(**options)
        case "item-CF":
            return ItemCF(**options)
    return ALS(**options, seed=seed)


def lists_of(
    baseline: Baseline,
    pasts: Interactions,
    may_propose: Callable[[slice], NDArray[np.bool_]],
    tie_order: Rows,
    k: int,
) -> Rows:
    """Return each case's k rows, best first, shape (C, k), padded with 0.

    Parameters
    ----------
    baseline
        Fitted.
    pasts
        What each case's user had before.
    may_propose
        A slice of the cases to which rows may be proposed to them, shape (B, N).
    tie_order
        The rows in an order that settles ties, shape (N,).
    """
    had = matrix_of(pasts, len(tie_order), baseline.half_life)
    lists = np.zeros((pasts.n_users, k), np.int64)
    for start in range(0, len(lists), _BLOCK):
        part = slice(start, start + _BLOCK)
        scores = np.where(may_propose(part), baseline.scores(had[part]), -np.inf)
        lists[part] = _best(scores[:, tie_order], tie_order, k)
    return lists


def _best(scores: Scores, rows: Rows, k: int) -> Rows:
    """Return the rows of the k largest scores, shape (B, k); of equal ones the first; 0 for -inf.

    >>> _best(np.array([[1.0, 3.0, 1.0, -np.inf]]), np.array([7, 5, 6, 8]), 2).tolist()
    [[5, 7]]
    """
    k_or_less = min(k, scores.shape[1])
    least = np.partition(scores, -k_or_less, axis=1)[:, -k_or_less]  # (B,)
    best = np.zeros((len(scores), k), np.int64)
    for own, low, out in zip(scores, least, best, strict=True):
        (at,) = np.nonzero((own >= low) & (own > -np.inf))
        at = at[np.argsort(-own[at], kind="stable")][:k]
        out[: len(at)] = rows[at]
    return best
