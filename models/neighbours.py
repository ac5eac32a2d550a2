"""Nearest content and best rows, exact to the last bit whatever the order of rows.

Reads   vectors and integer values by row.
Emits   rows, best first, equal values in the order of the hashes of the items' ids.

Floating-point sums depend on their order, and BLAS picks an order by shape, thread and machine.
Decisions must not, so nothing here rounds while it sums:

- Vectors lie on a grid of 2^-11 and are no longer than 1. A product of two columns is then a
  multiple of 2^-22, and by Cauchy and Schwarz every partial sum of a dot product stays below
  1.01: it fits the 24 bits of a float32, so BLAS adds without rounding, in any order.
- What is ranked is an integer, and ties go by a hash of the item's id, which needs nothing kept
  up to date as items come and go: sorting has one answer.
"""

from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.compiled import compiled

GRID: Final = 2048.0  # 2^11 steps to 1: an error of 2^-12 a column, cosines within 0.002
_HASH_BITS: Final = 31  # what a key of 63 bits leaves of the hash
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


def hash_of(item_id: str) -> int:
    """Return the hash of an id by which ties go, in [0, 2^63).

    >>> hash_of("a") == hash_of("a") != hash_of("b")
    True
    """
    return xxhash.xxh3_64_intdigest(item_id.encode()) >> 1


def score_values(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return integers that order exact dot products, in [0, 2^32); same shape.

    >>> score_values(np.float32([-1, 0, 2.0**-22])).tolist()
    [4194304, 8388608, 8388609]
    """
    values: NDArray[np.int64] = (scores * np.float32(2**22)).astype(np.int64) + 2**23
    return values


def order_of_each(values: NDArray[np.int64], hashes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places of all values of each row, the largest first, ties by hash.

    Parameters
    ----------
    values, hashes
        int64 in [-2^31, 2^32), and `hash_of` their ids, shape (B, n).

    Examples
    --------
    >>> order_of_each(np.array([[3, 8, 3], [-1, 0, -1]]), np.array([[1, 2, 3]] * 2) << 40)[:, 0]
    array([1, 1])
    """
    # The last bits of a key tell its place: sorting keys is twice as fast as sorting places.
    n_bits = max(values.shape[1] - 1, 1).bit_length()
    keys = (values << _HASH_BITS) | (hashes >> (63 - _HASH_BITS))
    keys >>= n_bits
    keys <<= n_bits
    keys |= np.arange(values.shape[1])
    keys.sort(axis=1)
    keys = keys[:, ::-1]
    places: NDArray[np.int64] = keys & (1 << n_bits) - 1
    keys >>= n_bits
    is_tie = ((keys[:, 1:] == keys[:, :-1]) & (keys[:, 1:] >= 0)).any(axis=1)
    for b in np.flatnonzero(is_tie).tolist():
        places[b] = np.lexsort((hashes[b], values[b]))[::-1]
    return places


def best_rows(
    values: NDArray[np.int64],
    rows: NDArray[np.int64],
    id_hash: NDArray[np.int64],
    limit: int,
) -> NDArray[np.int64]:
    """Return at most `limit` of `rows`, largest value first, ties by the hash of the id.

    Parameters
    ----------
    values
        int64 in [0, 2^32), shape (n,).
    rows
        Distinct rows that the values belong to, shape (n,).
    id_hash
        `hash_of` the ids of the whole table, by row.
    limit
        At least 1.

    Examples
    --------
    >>> hashes = np.arange(5) << 40
    >>> best_rows(np.array([3, 8, 3]), np.array([4, 2, 1]), hashes, 2).tolist()
    [2, 4]
    """
    places = _top_places(values, limit)
    if places is not None:
        values, rows = values[places], rows[places]
    best: NDArray[np.int64] = rows[_sorted_places(values, id_hash[rows])[:limit]]
    return best


def _top_places(values: NDArray[np.int64], limit: int) -> NDArray[np.int64] | None:
    """Return the places of the largest values, and of all that tie; None where there are few."""
    if len(values) <= max(_SORT_ALL, 2 * limit):
        return None
    kept = len(values) - limit
    return np.flatnonzero(values >= np.partition(values, kept)[kept])


def _sorted_places(values: NDArray[np.int64], hashes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places of all values, the largest first."""
    keys = (values << _HASH_BITS) | (hashes >> (63 - _HASH_BITS))
    order = np.argsort(keys)[::-1]
    ordered = keys[order]
    if (ordered[1:] == ordered[:-1]).any():  # one pair of ties in 2^31: the rest of the hashes
        order = np.lexsort((hashes, keys))[::-1]
    return order


@compiled("boolean(int16[:, ::1], int64[::1], int64[::1], float32[::1])")
def mean_direction(
    steps: NDArray[np.int16],
    rows: NDArray[np.int64],
    weights: NDArray[np.int64],
    direction: NDArray[np.float32],
) -> bool:
    """Write the direction of a weighted mean on the grid; zeros where the vectors cancel.

    Returns whether there is a direction.

    Parameters
    ----------
    steps
        Vectors in steps of the grid, shape (N, D).
    rows, weights
        Which of them, and whole numbers below 2^40 / n, shape (n,).
    direction
        To be written, shape (D,).

    Examples
    --------
    >>> steps, direction = np.int16([[2_048, 0], [0, 2_048]]), np.zeros(2, np.float32)
    >>> mean_direction(steps, np.array([0, 1]), np.array([3, 4]), direction)
    True
    >>> direction.tolist()
    [0.60009765625, 0.7998046875]
    """
    n_columns = steps.shape[1]
    total = np.zeros(n_columns, np.int64)
    for at in range(len(rows)):
        own, weight = steps[rows[at]], weights[at]
        for column in range(n_columns):
            total[column] += own[column] * weight
    square = 0.0
    for column in range(n_columns):
        square += np.float64(total[column]) * np.float64(total[column])
    for column in range(n_columns):
        direction[column] = np.rint(total[column] / max(np.sqrt(square), 1.0) * GRID) / GRID
    return square > 0
