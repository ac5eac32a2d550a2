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
_INSERTED: Final = 12  # keys that insertion brings into order faster


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


@compiled()
def _is_less(key: int, hash_: int, other: int, other_hash: int) -> bool:
    return key < other or (key == other and hash_ < other_hash)


@compiled()
def _sort(keys: NDArray[np.int64], hashes: NDArray[np.int64], places: NDArray[np.int64]) -> None:
    """Bring keys into order, the largest first, equal ones by their places' hashes.

    Quicksort by Lomuto's partition, which has no branch, then insertion.
    """
    parts, n_parts = np.empty((64, 2), np.int64), 1
    parts[0, 0], parts[0, 1] = 0, len(keys)
    while n_parts:
        n_parts -= 1
        low, last = parts[n_parts, 0], parts[n_parts, 1] - 1
        while last - low >= _INSERTED:
            half = (low + last) >> 1
            pivot, its_place = keys[half], places[half]
            keys[half], places[half] = keys[last], places[last]
            middle = low
            for at in range(low, last):
                key, place = keys[at], places[at]
                keys[at], places[at] = keys[middle], places[middle]
                keys[middle], places[middle] = key, place
                middle += key > pivot
            keys[last], places[last] = keys[middle], places[middle]
            keys[middle], places[middle] = pivot, its_place
            # The longer part waits, so that few do.
            if middle - low > last - middle:
                parts[n_parts, 0], parts[n_parts, 1] = low, middle
                low = middle + 1
            else:
                parts[n_parts, 0], parts[n_parts, 1] = middle + 1, last + 1
                last = middle - 1
            n_parts += 1
    for at in range(1, len(keys)):
        key, place = keys[at], places[at]
        own, to = hashes[place], at
        while to and _is_less(keys[to - 1], hashes[places[to - 1]], key, own):
            keys[to], places[to] = keys[to - 1], places[to - 1]
            to -= 1
        keys[to], places[to] = key, place


@compiled("int64[:, ::1](float32[:, ::1], int64[:, ::1], int64)")
def best_of_each(
    scores: NDArray[np.float32], hashes: NDArray[np.int64], limit: int
) -> NDArray[np.int64]:
    """Return the places of the best scores of each row, the largest first, ties by hash.

    Parameters
    ----------
    scores, hashes
        Exact dot products below 2^7, and `hash_of` the ids, shape (B, n).
    limit
        L, at most n.

    Returns
    -------
    numpy.ndarray
        Shape (B, L).

    Examples
    --------
    >>> scores = np.float32([[0.3, 0.8, 0.3], [-1, 0, -1]])
    >>> best_of_each(scores, np.array([[1, 2, 3]] * 2) << 40, 2).tolist()
    [[1, 2], [1, 2]]
    """
    n_rows, n = scores.shape
    best = np.empty((n_rows, limit), np.int64)
    keys, places = np.empty(n, np.int64), np.empty(n, np.int64)
    for b in range(n_rows):
        for at in range(n):
            value = np.int64(scores[b, at] * np.float32(GRID * GRID))
            keys[at] = value << _HASH_BITS | hashes[b, at] >> (63 - _HASH_BITS)
            places[at] = at
        _sort(keys, hashes[b], places)
        best[b] = places[:limit]
    return best


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
