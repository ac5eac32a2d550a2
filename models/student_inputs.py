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
# Positions that are run where nobody's history is longer. CPUs add up 8 or 16 numbers side by
# side: what is left out before the first item must not move any of them to another's side.
LENGTHS: Final = tuple(range(HISTORY % 8 or 8, HISTORY + 1, 8))


class StudentInputs:
    """Inputs of a student of `dim` columns for up to `MAX_ROWS` users, which stay where they are.

    Notes
    -----
    1 MB. One thread at a time.
    """

    def __init__(self, dim: int) -> None:
        n_positions = MAX_ROWS * HISTORY
        self._table = np.zeros((1 + n_positions, dim), np.float32)
        self._places, self._types, self._gaps = np.zeros((3, n_positions), np.int64)
        self._context = np.zeros((MAX_ROWS, N_CONTEXT), np.float32)
        self._age = np.zeros(MAX_ROWS, np.int64)
        self._asked_rows, self._asked_types = np.zeros((2, MAX_ROWS, HISTORY), np.int64)
        self._asked_age_s = np.zeros((MAX_ROWS, HISTORY), np.float32)

    def first(self, n: int, length: int) -> dict[str, Rows | Floats]:
        """Return the inputs of the first n users by name, with so many positions each."""
        end, positions = n * length, (n, length)
        return {
            "table": self._table[: 1 + end],  # float32, the users' items below a row of zeros
            "rows": self._places[:end].reshape(positions),  # in `table`, int64
            "types": self._types[:end].reshape(positions),
            "gaps": self._gaps[:end].reshape(positions),
            "context": self._context[:n],
            "age": self._age[:n],
        }

    def fill(
        self,
        table: Table,
        rows: Rows,
        types: Rows,
        age_s: Floats,
        context: Floats,
        lengths: Rows,
    ) -> int:
        """Put the first users in; return with how many positions each, one of `lengths`.

        These rise to T; parameters else as of `models.serving.StudentScorer.user_vectors`, but
        that the context, shape (n, C), is scaled.
        """
        n = len(rows)
        asked = self._asked_rows[:n]
        asked[:], self._asked_types[:n], self._asked_age_s[:n] = rows, types, age_s
        self._context[:n] = context
        length = int(
            _place(
                asked,
                self._asked_types,
                self._asked_age_s,
                lengths,
                N_BUCKETS,
                self._places,
                self._types,
                self._gaps,
                self._age,
            )
        )
        if table.dtype == np.float16 and table.flags.c_contiguous:
            _take(table.view(np.int16), asked, length, self._table)
        else:
            kept = asked[:, HISTORY - length :].ravel()
            self._table[1 : 1 + len(kept)] = widened(table[kept])
        return length


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


@compiled()
def _length_of(rows: Rows, lengths: Rows) -> int:
    """Return the least of `lengths` that holds all histories; one without an item takes all."""
    n_positions, longest = int(rows.shape[1]), 0
    for b in range(len(rows)):
        first = 0
        while first < n_positions and rows[b, first] <= 0:
            first += 1
        # Nothing but padding: of that the sum is as long as it is.
        longest = max(longest, n_positions - first if first < n_positions else n_positions)
    for length in lengths:
        if length >= longest:
            return int(length)
    return n_positions


@compiled(
    "int64(int64[:, ::1], int64[:, ::1], float32[:, ::1], int64[::1], int64,"
    " int64[::1], int64[::1], int64[::1], int64[::1])"
)
def _place(
    rows: Rows,
    types: Rows,
    age_s: Floats,
    lengths: Rows,
    n_buckets: int,
    to_places: Rows,
    to_types: Rows,
    to_gaps: Rows,
    to_age: Rows,
) -> int:
    """Write the inputs of the histories, position after position, and return their length.

    Gaps are as `models.dataset.gap_buckets` has them; the age is the bucket of the newest item's.
    """
    end, length = rows.shape[1], _length_of(rows, lengths)
    at = 0
    for b in range(len(rows)):
        for t in range(end - length, end):
            to_places[at] = 1 + at if rows[b, t] > 0 else 0
            to_types[at] = types[b, t]
            is_gap = t > 0 and rows[b, t - 1] > 0
            to_gaps[at] = _bucket_of(age_s[b, t - 1] - age_s[b, t], n_buckets) if is_gap else 0
            at += 1
        to_age[b] = _bucket_of(age_s[b, end - 1], n_buckets) if rows[b, end - 1] > 0 else 0
    return length


@compiled("void(int16[:, ::1], int64[:, ::1], int64, float32[:, ::1])")
def _take(table: NDArray[np.int16], rows: Rows, length: int, own: Floats) -> None:
    """Write float16 vectors, given as their bits, of the last positions' rows behind the first."""
    wide = own.view(np.int32)
    place, end = 0, rows.shape[1]
    for b in range(len(rows)):
        for t in range(end - length, end):
            place += 1
            row = rows[b, t]
            if row <= 0:
                continue
            if row >= len(table):
                raise IndexError("a row that is not in the table")
            for m in range(own.shape[1]):
                # As `models.item_vectors.widened`: sign, exponent and fraction, once in place.
                wide[place, m] = (np.int32(table[row, m]) << 13) & np.int32(-0x70002000)
                own[place, m] *= np.float32(2.0 ** (127 - 15))
