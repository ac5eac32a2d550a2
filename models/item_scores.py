"""Scores of candidates: a user's vector times the items', read where they lie.

Reads   a table of item vectors, float16 or float32, users' vectors, and rows of the table.
Owns    the order in which a product is added up, column by column: a score's bits depend on the
        two vectors alone, on any CPU and whoever shares the batch.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled

Rows = NDArray[np.int64]
Scores = NDArray[np.float32]
Table = Scores | NDArray[np.float16]

# Where a float16's bits lie in a float32: see `models.item_vectors.widened`.
_FEWER_BITS: Final = np.int32(13)
_HALF_BITS: Final = np.int32(-0x70002000)
_HALF_BIAS: Final = np.float32(2.0 ** (127 - 15))


def scores_of(table: Table, users: Scores, rows: Rows) -> Scores:
    """Return the users' scores, shape (B, K), of rows of a table.

    Parameters
    ----------
    table
        Finite item vectors, shape (N, M), C-contiguous.
    users
        Shape (B, M).
    rows
        Shape (B, K); 0 is padding and gets -inf.

    Raises
    ------
    IndexError
        For a row that is not in the table.

    Examples
    --------
    >>> table = np.array([[0.0, 0.0], [1.0, -2.0], [0.5, 3.0]])
    >>> user, rows = np.float32([[2.0, 1.0]]), np.array([[1, 2, 0]])
    >>> scores_of(table.astype(np.float16), user, rows).tolist()
    [[0.0, 4.0, -inf]]
    >>> scores_of(table.astype(np.float32), user, rows).tolist()
    [[0.0, 4.0, -inf]]
    """
    own, asked = np.ascontiguousarray(users), np.ascontiguousarray(rows)
    if asked.max(initial=0) >= len(table):
        raise IndexError(f"row {asked.max()} of a table of {len(table)}")
    if table.dtype == np.float16:
        return _of_halves(table.view(np.int16), own, asked)
    return _of_floats(table.astype(np.float32, copy=False), own, asked)


@compiled()
def _product(vector: Scores, user: Scores) -> np.float32:
    total = np.float32(0)
    for m in range(len(vector)):
        total += vector[m] * user[m]
    return total


@compiled("float32[:,::1](float32[:,::1], float32[:,::1], int64[:,::1])")
def _of_floats(table: Scores, users: Scores, rows: Rows) -> Scores:
    scores = np.full(rows.shape, -np.inf, np.float32)
    for b in range(len(rows)):
        for k in range(rows.shape[1]):
            if rows[b, k] > 0:
                scores[b, k] = _product(table[rows[b, k]], users[b])
    return scores


@compiled("float32[:,::1](int16[:,::1], float32[:,::1], int64[:,::1])")
def _of_halves(table: NDArray[np.int16], users: Scores, rows: Rows) -> Scores:
    scores = np.full(rows.shape, -np.inf, np.float32)
    vectors = np.empty((rows.shape[1], users.shape[1]), np.float32)
    bits = vectors.view(np.int32)
    for b in range(len(rows)):
        # All rows first: rows that are in no cache are then waited for together.
        for k in range(rows.shape[1]):
            half = table[rows[b, k]]
            for m in range(len(half)):
                bits[k, m] = (np.int32(half[m]) << _FEWER_BITS) & _HALF_BITS
        for k in range(rows.shape[1]):
            if rows[b, k] > 0:
                for m in range(vectors.shape[1]):
                    vectors[k, m] *= _HALF_BIAS
                scores[b, k] = _product(vectors[k], users[b])
    return scores
