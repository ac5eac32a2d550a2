"""Factors of items from who had what: where the student's item vectors start.

Reads   users and rows of events.
Emits   vectors whose products say how well items go together.

Alternating least squares over implicit feedback, and then the user is left out: what a user is
likely to want is the sum over their items j of f_i f_j, with factors f that hold the inverse which
a user's solution needs (Hu et al. 2008, section 5.1, with the confidence of what was not seen for
all items).

References
----------
Hu, Koren and Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008.
"""

from typing import Any, Final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

ALPHA: Final = 5.0  # weight of an item that a user had beside one they had not
PENALTY: Final = 50.0  # as ALS had it best on both data sets of `pushflow evaluate candidates`
ROUNDS: Final = 10  # of users and items; 15 find no more
MOST_USERS: Final = 50_000  # looked at, by lot: what goes together shows in fewer
_BLOCK: Final = 2_048  # systems solved at a time: 8 MB of 64 x 64 at half of them

Floats = NDArray[np.float64]


def item_factors(
    users: NDArray[np.int64], rows: NDArray[np.int64], n_rows: int, width: int, seed: int
) -> Floats:
    """Return factors of items, float64, shape (n_rows, width); zeros for rows without events.

    Parameters
    ----------
    users, rows
        Of each event, from 0, shape (E,); a pair may come often and counts once.
    width
        Columns.
    seed
        Of the first factors, and of the users looked at.

    Notes
    -----
    Time: `ROUNDS` x (U + N) systems of `width` columns, about 0.2 ms each at 64, U at most
    `MOST_USERS`. Memory: the pairs.

    Examples
    --------
    >>> users, rows = np.array([0, 0, 1, 1, 2, 2] * 30), np.array([0, 1, 0, 1, 2, 3] * 30)
    >>> users = users + 3 * np.repeat(np.arange(30), 6)
    >>> f = item_factors(users, rows, 5, width=3, seed=0)
    >>> bool((f @ f.T)[0, 1] > 10 * abs((f @ f.T)[0, 2])), f[4].tolist()
    (True, [0.0, 0.0, 0.0])
    """
    n_users = int(users.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)
    had = sp.csr_matrix((np.ones(len(users)), (users, rows)), shape=(n_users, n_rows))
    had.data[:] = 1.0
    if n_users > MOST_USERS:
        had = had[np.sort(rng.permutation(n_users)[:MOST_USERS])]
    by_item = had.T.tocsr()
    own = rng.normal(0.0, 0.01, (n_rows, width))
    for _ in range(ROUNDS):
        own = _solved(by_item, _solved(had, own))
    inverse = np.linalg.inv(own.T @ own + PENALTY * np.eye(width))
    halves = own @ np.linalg.cholesky(inverse)  # (N, F): f_i f_j = y_i inverse y_j
    # Turned at random: an index gives all columns the same room, so none should hold the most.
    turned, _ = np.linalg.qr(rng.normal(size=(width, width)))
    factors: Floats = halves @ turned
    return factors


def _solved(had: Any, other: Floats) -> Floats:
    """Return the factors that explain best who had what, given the other side's."""
    width = other.shape[1]
    always = other.T @ other + PENALTY * np.eye(width)
    found = np.zeros((had.shape[0], width))
    for start in range(0, len(found), _BLOCK):
        part = had[start : start + _BLOCK]
        systems = np.broadcast_to(always, (part.shape[0], width, width)).copy()
        for place, (first, last) in enumerate(zip(part.indptr[:-1], part.indptr[1:], strict=True)):
            mine = other[part.indices[first:last]]
            systems[place] += (ALPHA - 1) * (mine.T @ mine)
        right = ALPHA * (part @ other)
        found[start : start + _BLOCK] = np.linalg.solve(systems, right[:, :, None])[:, :, 0]
    return found
