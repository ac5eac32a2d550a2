"""What the student's network reads, in arrays that stay where they are.

Reads   histories, contexts and a table of item vectors.
Owns    the arrays that a network's inputs are bound to, and how they are filled: by compiled loops
        that say what `models.dataset` and `models.features` do, which training reads.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled
from models.dataset import N_BUCKETS
from models.features import HISTORY, N_CONTEXT
from models.item_vectors import widened

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]
Table = NDArray[np.float32] | NDArray[np.float16]  # of items' vectors

# Users in one run of the graph. Past 64 the activations no longer fit the second-level cache
# and each user costs more (`bench/student.py`).
MAX_ROWS: Final = 32


class StudentInputs:
    """Inputs of a student of `dim` columns for up to `MAX_ROWS` users; only the first n are good.

    Attributes
    ----------
    table
        Vectors of the users' items below a row of zeros, float32, shape (1 + `MAX_ROWS` T, M).
    rows, types, gaps
        Rows of `table`, codes and buckets of time, int64, shape (`MAX_ROWS`, T).
    context
        As models read it, float32, shape (`MAX_ROWS`, C).
    age
        Bucket of the time since the newest item, int64, shape (`MAX_ROWS`,).

    Notes
    -----
    0.5 MB. One thread at a time.
    """

    def __init__(self, dim: int) -> None:
        positions = (MAX_ROWS, HISTORY)
        self.table = np.zeros((1 + MAX_ROWS * HISTORY, dim), np.float32)
        self.rows, self.types, self.gaps = (np.zeros(positions, np.int64) for _ in range(3))
        self.context = np.zeros((MAX_ROWS, N_CONTEXT), np.float32)
        self.age = np.zeros(MAX_ROWS, np.int64)
        self._age_s = np.zeros(positions, np.float32)

    def first(self, n: int) -> dict[str, NDArray[np.int64] | Floats]:
        """Return the inputs of the first n users by name, where they are."""
        return {
            "table": self.table[: 1 + n * HISTORY],
            "rows": self.rows[:n],
            "types": self.types[:n],
            "gaps": self.gaps[:n],
            "context": self.context[:n],
            "age": self.age[:n],
        }

    def fill(self, table: Table, rows: Rows, types: Rows, age_s: Floats, context: Floats) -> None:
        """Put the first users in; parameters as of `models.serving.StudentScorer.user_vectors`.

        But the context, shape (n, C), is scaled.
        """
        n = len(rows)
        places = self.rows[:n]
        places[:], self.types[:n], self._age_s[:n], self.context[:n] = rows, types, age_s, context
        _bucket(places, self._age_s[:n], N_BUCKETS, self.gaps[:n], self.age[:n])
        if table.dtype == np.float16 and table.flags.c_contiguous:
            _take(table.view(np.int16), places, self.table)
        else:
            self.table[1 : 1 + places.size] = widened(table[places.ravel()])
            np.copyto(places, 1 + np.arange(places.size).reshape(places.shape), where=places > 0)


@compiled("void(int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], float32[::1])")
def oldest_first(
    rows: Rows, types: Rows, age_s: Rows, to_rows: Rows, to_types: Rows, to_age_s: Floats
) -> None:
    """Write the newest events that have a row the other way round, to the end of other arrays.

    >>> to = np.zeros((2, 3), np.int64), np.zeros(3, np.float32)
    >>> oldest_first(*np.array([[7, 0, 9], [1, 2, 3], [40, 50, 60]]), *to[0], to[1])
    >>> to[0].tolist(), to[1].tolist()
    ([[0, 9, 7], [0, 3, 1]], [0.0, 60.0, 40.0])
    """
    place = len(to_rows)
    for at in range(len(rows)):
        if rows[at] > 0 and place > 0:
            place -= 1
            to_rows[place], to_types[place] = rows[at], types[at]
            to_age_s[place] = np.float32(age_s[at])


@compiled()
def _bucket_of(seconds: np.float32, n_buckets: int) -> int:
    """Return what `models.dataset.time_bucket` says."""
    if seconds <= 0:
        return 0
    return min(math.frexp(np.float32(1) + seconds)[1] - 1, n_buckets - 1)


@compiled("void(int64[:, ::1], float32[:, ::1], int64, int64[:, ::1], int64[::1])")
def _bucket(rows: Rows, age_s: Floats, n_buckets: int, gaps: Rows, ages: Rows) -> None:
    """Write what `models.dataset.gap_buckets` says, and the bucket of the newest item's age."""
    length = rows.shape[1]
    for b in range(len(rows)):
        gaps[b, 0] = 0
        for t in range(1, length):
            is_gap = rows[b, t - 1] > 0
            gaps[b, t] = _bucket_of(age_s[b, t - 1] - age_s[b, t], n_buckets) if is_gap else 0
        is_known = rows[b, length - 1] > 0
        ages[b] = _bucket_of(age_s[b, length - 1], n_buckets) if is_known else 0


@compiled("void(int16[:, ::1], int64[:, ::1], float32[:, ::1])")
def _take(table: NDArray[np.int16], rows: Rows, own: Floats) -> None:
    """Copy the bits of float16 vectors of rows behind a first one, and write where they are."""
    wide = own.view(np.int32)
    for b in range(rows.shape[0]):
        for t in range(rows.shape[1]):
            row = rows[b, t]
            if row <= 0:
                rows[b, t] = 0
                continue
            if row >= len(table):
                raise IndexError("a row that is not in the table")
            place = rows[b, t] = 1 + b * rows.shape[1] + t
            for m in range(own.shape[1]):
                # As `models.item_vectors.widened`: sign, exponent and fraction, once in place.
                wide[place, m] = (np.int32(table[row, m]) << 13) & np.int32(-0x70002000)
                own[place, m] *= np.float32(2.0 ** (127 - 15))
