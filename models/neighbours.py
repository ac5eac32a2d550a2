"""Nearest content and best rows, exact to the last bit whatever the order of rows.

Reads   vectors and integer values by row.
Emits   rows, best first, equal values in the order of the items' ids.

Floating-point sums depend on their order, and BLAS picks an order by shape, thread and machine.
Decisions must not, so nothing here rounds while it sums:

- Vectors lie on a grid of 2^-11 and are no longer than 1. A product of two columns is then a
  multiple of 2^-22, and by Cauchy and Schwarz every partial sum of a dot product stays below
  1.01: it fits the 24 bits of a float32, so BLAS adds without rounding, in any order.
- What is ranked is an integer, and the rank of the item's id fills the lower bits of the key.
  No two keys are equal, so partition and sort have one answer.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

GRID: Final = 2048.0  # 2^11 steps to 1: an error of 2^-12 a column, cosines within 0.002
SCORE_BITS: Final = 32  # a value ranked must be in [0, 2^32)
_RANK_BITS: Final = 31  # rows of a table: fewer than 2^31
_RANK_MASK: Final = (1 << _RANK_BITS) - 1
# Below this many keys a plain sort costs less than partition and sort.
_SORT_ALL: Final = 256


def to_grid(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return vectors at most 1 long on the grid, float32, shape (N, D).

    Longer ones are shortened to 1; what the exactness of `dot` needs is the bound.

    >>> to_grid(np.array([[0.1, 0.0], [30.0, 40.0]])).tolist()
    [[0.10009765625, 0.0], [0.60009765625, 0.7998046875]]
    """
    wide = np.asarray(vectors, np.float64)
    norms = np.sqrt((wide * wide).sum(axis=1, keepdims=True))  # (N, 1)
    scaled: NDArray[np.float32] = (np.rint(wide / np.maximum(norms, 1.0) * GRID) / GRID).astype(
        np.float32
    )
    return scaled


def dot(matrix: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the exact dot products of rows on the grid, shapes (N, D) and (D,) to (N,).

    >>> rows = to_grid(np.random.default_rng(0).normal(size=(1_000, 64)))
    >>> both = dot(rows, rows[3]), dot(rows[::-1].copy(), rows[3])[::-1]
    >>> bool((both[0] == both[1]).all())
    True
    """
    scores: NDArray[np.float32] = matrix @ query
    return scores


def keys_of(values: NDArray[np.int64], id_rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return unique sort keys, larger is better: value first, then the smaller rank of the id.

    `values` are in [0, 2^32); both have shape (n,).

    >>> keys = keys_of(np.array([7, 7, 9]), np.array([2, 1, 5]))
    >>> np.argsort(-keys).tolist()
    [2, 1, 0]
    """
    keys: NDArray[np.int64] = (values << _RANK_BITS) | (_RANK_MASK - id_rank)
    return keys


def best_rows(
    values: NDArray[np.int64],
    rows: NDArray[np.int64],
    id_rank: NDArray[np.int64],
    row_of_rank: NDArray[np.int64],
    limit: int,
) -> NDArray[np.int64]:
    """Return at most `limit` of `rows`, largest value first, ties by the rank of the id.

    Parameters
    ----------
    values
        int64 in [0, 2^32), shape (n,).
    rows
        Distinct rows that the values belong to, shape (n,).
    id_rank, row_of_rank
        Of the whole table: a row's place among the sorted ids, and the other way round.
    limit
        At least 1.

    Examples
    --------
    >>> order = np.arange(5)
    >>> best_rows(np.array([3, 8, 3]), np.array([4, 2, 1]), order, order, 2).tolist()
    [2, 1]
    """
    keys = keys_of(values, id_rank[rows])
    if len(keys) > max(_SORT_ALL, 2 * limit):
        keys = np.partition(keys, len(keys) - limit)[len(keys) - limit :]
    keys.sort()
    ranks = _RANK_MASK - (keys[::-1][:limit] & _RANK_MASK)
    best: NDArray[np.int64] = row_of_rank[ranks]
    return best


def mean_direction(vectors: NDArray[np.float32], weights: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the direction of a weighted mean on the grid, shapes (n, D) and (n,) to (D,).

    `weights` are whole numbers below 2^40 / n, the vectors on the grid. Zeros where the vectors
    cancel or are all zero.

    >>> mean_direction(to_grid(np.eye(3)), np.array([3, 0, 4])).tolist()
    [0.60009765625, 0.0, 0.7998046875]
    """
    # Multiples of 2^-11 below 2^40 fit the 53 bits of a float64: exact in any order.
    total = weights.astype(np.float64) @ vectors.astype(np.float64)  # (D,)
    norm = float(np.sqrt((total * total).sum()))
    if norm < 1e-9:
        return np.zeros(len(total), np.float32)
    direction: NDArray[np.float32] = to_grid(total[None] / norm)[0]
    return direction
