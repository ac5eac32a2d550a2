"""How good lists of candidates are: recall, coverage, novelty, with intervals.

Reads   for each case a list of rows, best first, and the rows that were wanted.
Emits   shares by case, means over cases, and their intervals.
Owns    what is averaged over what.

A *case* is one moment of one user: K rows are proposed, then we see what the user took. Lists
are what is judged, not scores, so **ties** are settled before they come here, by a hash of the
item's id: it has nothing to do with time or popularity, so that the expected recall is that of
a random order among equals.

Row 0 is padding: a shorter list is filled up with it, and it is never found.

References
----------
Zhou et al., "Solving the apparent diversity-accuracy dilemma of recommender systems", PNAS 2010:
novelty as mean self-information.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Shares = NDArray[np.float64]

RESAMPLES: Final = 1_000  # the ends of a 95% interval rest on 25 resamples each


class Wanted(NamedTuple):
    """What was wanted, as P pairs of a case and a row; no pair twice."""

    case: Rows  # shape (P,)
    row: Rows  # shape (P,)


class Mean(NamedTuple):
    """A mean over cases, and its 95% interval."""

    value: float
    low: float
    high: float


def pairs_of(wanted: list[list[int]]) -> Wanted:
    """Return the pairs of rows wanted by case.

    >>> pairs_of([[4, 2], [], [2]])
    Wanted(case=array([0, 0, 2]), row=array([4, 2, 2]))
    """
    sizes = [len(rows) for rows in wanted]
    flat = [row for rows in wanted for row in rows]
    return Wanted(np.repeat(np.arange(len(wanted)), sizes), np.array(flat, np.int64))


def is_found(lists: Rows, wanted: Wanted, k: int) -> NDArray[np.bool_]:
    """Return whether each wanted row is among the first k of its case's list, shape (P,).

    `lists` has shape (C, K), padded with 0.

    >>> is_found(np.array([[3, 1, 2], [5, 0, 0]]), pairs_of([[2, 3], [0]]), 2).tolist()
    [False, True, False]
    """
    own = lists[wanted.case, :k]  # (P, k)
    found: NDArray[np.bool_] = ((own == wanted.row[:, None]) & (own > 0)).any(axis=1)
    return found


def share_by_case(
    found: NDArray[np.bool_],
    wanted: Wanted,
    n_cases: int,
    counted: NDArray[np.bool_] | None = None,
) -> Shares:
    """Return the share of a case's wanted rows that was found, shape (C,): its recall.

    Parameters
    ----------
    found
        Of each pair, shape (P,).
    counted
        The pairs to look at, shape (P,); all of them without it.

    Returns
    -------
    NaN for a case in which nothing that counts was wanted: it says nothing of the method.

    Examples
    --------
    >>> wanted = pairs_of([[2, 3], [], [4]])
    >>> share_by_case(np.array([True, False, True]), wanted, 3).tolist()
    [0.5, nan, 1.0]
    """
    is_counted = np.ones(len(found), np.bool_) if counted is None else counted
    n_wanted = np.bincount(wanted.case[is_counted], minlength=n_cases)
    n_found = np.bincount(wanted.case[is_counted & found], minlength=n_cases)
    shares = np.full(n_cases, np.nan)
    np.divide(n_found, n_wanted, out=shares, where=n_wanted > 0)
    return shares


def coverage(lists: Rows, k: int, n_items: int) -> float:
    """Return the share of the items that the first k of any list propose.

    >>> coverage(np.array([[1, 2, 0], [2, 3, 4]]), 2, n_items=4)
    0.75
    """
    proposed = np.unique(lists[:, :k])
    return int(np.count_nonzero(proposed)) / n_items if n_items else 0.0


def novelty(lists: Rows, k: int, n_users_of: NDArray[np.integer], n_users: int) -> float:
    """Return the mean self-information of what the first k propose, bits; NaN without rows.

    An item that n of N users know says log2((N + 1) / (n + 1)) bits: one that nobody knows
    counts as if one user more did, else it would say infinitely much.

    Parameters
    ----------
    n_users_of
        Users who knew the item before, by row, shape (n_rows,).
    n_users
        Users who knew anything.

    Examples
    --------
    >>> novelty(np.array([[1, 2]]), 2, np.array([0, 7, 0]), n_users=7)
    1.5
    """
    rows = lists[:, :k][lists[:, :k] > 0]
    if not len(rows):
        return float("nan")
    bits = np.log2((n_users + 1) / (n_users_of[rows] + 1))
    return float(bits.mean())


def diversity(lists: Rows, k: int, vectors: NDArray[np.floating]) -> float:
    """Return how unlike each other the first k are: the mean of 1 - cosine over pairs and lists.

    Lists of fewer than two items say nothing. `vectors` stand below a row of zeros, (N + 1, D).

    >>> vectors = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    >>> diversity(np.array([[1, 2], [1, 3], [2, 0]]), 2, vectors)
    0.5
    """
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    own = (vectors / lengths)[lists[:, :k]]  # (P, k, D)
    n = np.count_nonzero(lists[:, :k], axis=1)
    pairs = (n * (n - 1))[n > 1]
    # The squared sum of unit vectors counts each pair twice, and each vector with itself.
    alike = (own.sum(axis=1) ** 2).sum(axis=1) - (own**2).sum(axis=(1, 2))
    return float(np.mean(1 - alike[n > 1] / pairs)) if len(pairs) else 0.0


class Resampling:
    """Intervals by the bootstrap, over users: cases of one user are not independent.

    Parameters
    ----------
    user
        The user of each case, 0 to U - 1, shape (C,).
    seed
        Of the resamples. Two methods on the same cases meet the same resamples, so that the
        interval of their difference is that of pairs.

    Notes
    -----
    Memory: 8,000 U bytes.

    Examples
    --------
    >>> resampling = Resampling(np.array([0, 0, 1, 2]), seed=0)
    >>> resampling.mean(np.array([0.5, 0.5, 0.5, np.nan]))
    Mean(value=0.5, low=0.5, high=0.5)
    """

    def __init__(self, user: Rows, seed: int) -> None:
        self._user = user
        self._n_users = int(user.max()) + 1 if len(user) else 0
        rng = np.random.default_rng(seed)
        even = np.full(self._n_users, 1 / max(self._n_users, 1))
        self._drawn = rng.multinomial(self._n_users, even, size=RESAMPLES)  # (R, U)

    def mean(self, values: Shares) -> Mean:
        """Return the mean over the cases that have a value; NaN where none has."""
        is_known = ~np.isnan(values)
        user = self._user[is_known]
        n = np.bincount(user, minlength=self._n_users)  # (U,)
        sums = np.bincount(user, weights=values[is_known], minlength=self._n_users)  # (U,)
        if not n.any():
            return Mean(float("nan"), float("nan"), float("nan"))
        drawn_n = self._drawn @ n  # (R,)
        means = (self._drawn @ sums)[drawn_n > 0] / drawn_n[drawn_n > 0]
        low, high = np.quantile(means, (0.025, 0.975))
        return Mean(float(sums.sum() / n.sum()), float(low), float(high))
