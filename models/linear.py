"""What having one item says of wanting another: weights of a linear regression.

Reads   users and rows of events.
Emits   weights from items to items, few of each.

Each item is explained by all others that its users had, by least squares with a penalty, in closed
form: with P the inverse of X'X + penalty, item i says -P_ij / P_jj of item j (Steck 2019, eq. 8). A
count of pairs says a thing as often as there are items that say it; here it is said once. Of what
explains an item only the strongest are kept: recall is no less, and the lists are short.

References
----------
Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019.
Ning and Karypis, "SLIM: Sparse Linear Methods for Top-N Recommender Systems", ICDM 2011.
"""

from typing import Any, Final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from models.dataset import TARGET_WEIGHT
from models.features import FADING
from models.linear_weights import UNIT, ItemWeights

# On earlier months of online-retail 300 to 1,000 find as much, within noise, and so do 100 kept.
PENALTY: Final = 500.0
KEPT: Final = 50  # that explain one item
MOST_USERS: Final = 50_000  # looked at, by lot: what goes together shows in fewer
MOST_ITEMS: Final = 6_000  # of most users; 3,900 take 2.5 s, and time grows with the cube
_LEAST_USERS: Final = 2  # of an item: one alone says nothing of it
_BLOCK: Final = 512  # items whose strongest are looked for at a time


def item_weights(
    users: NDArray[np.int64], rows: NDArray[np.int64], n_rows: int, seed: int
) -> ItemWeights:
    """Return what `n_rows` items say of each other.

    Parameters
    ----------
    users, rows
        Of each event, from 0, shape (E,); a pair may come often and counts once.
    seed
        Of the users looked at.

    Notes
    -----
    Of N items, at most `MOST_ITEMS`, the inverse takes 2 N^3 operations and 24 N^2 bytes: 9 GB
    at 20,000. The others get no weights.

    Examples
    --------
    >>> users, rows = np.repeat(np.arange(900), 2), np.array([0, 1, 0, 1, 2, 3] * 300)
    >>> matrix_of(item_weights(users, rows, 5, seed=0)).toarray().round(2)[0].tolist()
    [0.0, 0.55, 0.0, 0.0, 0.0]
    """
    n_users = int(users.max(initial=-1)) + 1
    had = sp.csr_matrix((np.ones(len(users)), (users, rows)), shape=(n_users, n_rows))
    had.data[:] = 1.0
    if n_users > MOST_USERS:
        had = had[np.sort(np.random.default_rng(seed).permutation(n_users)[:MOST_USERS])]
    n_had = np.asarray(had.sum(axis=0)).ravel()
    most = np.argsort(-n_had, kind="stable")[:MOST_ITEMS]
    kept = np.sort(most[n_had[most] >= _LEAST_USERS])
    explains, explained, weights = _strongest(had[:, kept])
    pairs = kept[explains], kept[explained]
    return _weights_of(sp.csr_matrix((weights, pairs), shape=(n_rows, n_rows)))


def matrix_of(weights: ItemWeights) -> Any:
    """Return the weights as a sparse matrix, float64, shape (I, I)."""
    shape = weights.n_items, weights.n_items
    return sp.csr_matrix((weights.steps / UNIT, weights.others, weights.starts), shape=shape)


def fading_pasts(
    rows: NDArray[np.int64], types: NDArray[np.int64], at: NDArray[np.int64], n_items: int
) -> Any:
    """Return what each history wanted up to a position, the older the less, sparse, (B, n_items).

    Parameters
    ----------
    rows, types
        Of histories, rows from 1 and 0 where there is nothing, shape (B, T). What a user took back
        says nothing.
    at
        Positions, shape (B,).

    Examples
    --------
    >>> rows, types = np.array([[0, 2, 1]]), np.ones((1, 3), np.int64)
    >>> fading_pasts(rows, types, np.array([2]), 3).toarray().tolist()[0] == [1.0, FADING, 0.0]
    True
    """
    is_said = (TARGET_WEIGHT[types] > 0) & (rows > 0) & (np.arange(rows.shape[1]) <= at[:, None])
    owners, places = np.nonzero(is_said)
    cells = owners, rows[owners, places] - 1
    return sp.csr_matrix((FADING ** (at[owners] - places), cells), (len(rows), n_items))


def among(weights: ItemWeights, items: NDArray[np.int64]) -> ItemWeights:
    """Return the weights between some items, which are numbered anew in their order.

    >>> weights = ItemWeights(np.array([0, 0, 2, 2]), np.int32([2, 0]), np.uint16([9, 4]))
    >>> [column.tolist() for column in among(weights, np.array([1, 2]))]
    [[0, 1, 1], [1], [9]]
    """
    return _weights_of(matrix_of(weights)[items][:, items])


def _strongest(had: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return pairs of columns, the explaining one first, and their weights."""
    together = (had.T @ had).toarray()  # (N, N)
    n = len(together)
    together[np.diag_indices(n)] += PENALTY
    inverse = np.linalg.inv(together)
    n_kept = min(KEPT, n)
    explains, weights = np.zeros((n, n_kept), np.int64), np.zeros((n, n_kept))
    for start in range(0, n, _BLOCK):
        part = slice(start, start + _BLOCK)
        own = -inverse[part]  # a row an explained item, for the inverse is symmetric
        at = np.arange(len(own))
        own /= -own[at, start + at, None]
        own[at, start + at] = 0.0
        explains[part] = np.argpartition(-own, n_kept - 1, axis=1)[:, :n_kept]
        weights[part] = np.take_along_axis(own, explains[part], axis=1)
    return explains.ravel(), np.repeat(np.arange(n), n_kept), weights.ravel()


def _weights_of(matrix: Any) -> ItemWeights:
    """Return the positive entries of a sparse matrix, row by row the largest first."""
    pairs = matrix.tocoo()
    steps = np.rint(pairs.data * UNIT).clip(0, 2 * UNIT - 1).astype(np.uint16)
    order = np.lexsort((pairs.col, -steps.astype(np.int64), pairs.row))
    order = order[steps[order] > 0]
    starts = np.searchsorted(pairs.row[order], np.arange(matrix.shape[0] + 1))
    return ItemWeights(starts, pairs.col[order].astype(np.int32), steps[order])
