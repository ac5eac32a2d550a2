"""The student's vector of each item, kept beside the item's row.

Reads   ids and text vectors by row, and an embedder.
Owns    the array that scoring reads where it lies, and when a row is embedded anew.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled, fetch
from models.neighbours import GRID

Rows = NDArray[np.int64]
Embed = Callable[[list[str], NDArray[np.float32]], NDArray[np.float32]]

# Length of a typical vector in an index, where 1 is the bound: columns have room for 4 times their
# usual size.
TYPICAL: Final = 0.25
_SIGN_AND_SIZE = np.int32(-0x70002000)  # bits of a float32 that a float16's fill, once in place
_BIAS = np.float32(2.0 ** (127 - 15))  # the exponents' zeros lie apart
_AHEAD: Final = 12  # rows that are fetched before they are read
_AT_ONCE = 16_384  # rows embedded in one call: 4 MB of text vectors


def widened(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return finite numbers as float32, of float16 exactly and five times as fast as NumPy.

    >>> widened(np.float16([-1.5, 0.0, 65_504.0, 2.0**-24])).tolist()
    [-1.5, 0.0, 65504.0, 5.960464477539063e-08]
    """
    if vectors.dtype != np.float16:
        return vectors.astype(np.float32, copy=False)
    bits = vectors.view(np.int16).astype(np.int32)  # (sign 17 times, exponent 5, fraction 10)
    bits <<= 13
    bits &= _SIGN_AND_SIZE
    floats: NDArray[np.float32] = bits.view(np.float32)
    floats *= _BIAS
    return floats


def directions(table: NDArray[np.float16], rows: Rows, length: float) -> NDArray[np.float32]:
    """Return what an index finds rows by: vectors on the grid of `models.neighbours`, (..., M).

    Parameters
    ----------
    table
        C-contiguous, shape (R, M).
    rows
        Shape (...).
    length
        Of a typical vector of the table, which is made `TYPICAL`. Columns 4 times as long as is
        usual, and longer, are all the same: so that no vector is longer than 1.

    >>> directions(np.float16([[0, 0], [1, -9]]), np.array([1]), 1.0).tolist()
    [[0.25, -0.70703125]]
    """
    n_columns = table.shape[1]
    scale, most = np.float32(TYPICAL / length * GRID), np.float32(GRID // np.sqrt(n_columns))
    found = np.empty((rows.size, n_columns), np.float32)
    _scaled(table.view(np.int16), rows.ravel(), scale, most, np.float32(1 / GRID), found)
    return found.reshape(*rows.shape, n_columns)


@compiled("void(int16[:, ::1], int64[::1], float32, float32, float32, float32[:, ::1])")
def _scaled(
    table: NDArray[np.int16],
    rows: Rows,
    scale: np.float32,
    most: np.float32,
    step: np.float32,
    found: NDArray[np.float32],
) -> None:
    """Write rows of a table of float16 as whole numbers within bounds, times a step."""
    for at in range(len(rows)):
        if at + _AHEAD < len(rows):
            fetch(table, rows[at + _AHEAD])
        own = table[rows[at]]
        for column in range(found.shape[1]):
            bits = np.int32((np.int32(own[column]) << 13) & _SIGN_AND_SIZE)
            number = np.rint(bits.view(np.float32) * _BIAS * scale)
            found[at, column] = min(max(number, -most), most) * step


class ItemVectors:
    """Vectors by row, row 0 zeros.

    Parameters
    ----------
    embed
        Ids and text vectors, shape (n, D), to float32 of shape (n, M); a row must depend on its
        own id and text alone. Row 0 is never asked for.

    Notes
    -----
    2 M bytes a row: half the precision moves a score by less than 0.3% of the scores' spread. The
    array doubles, but what is not used yet takes no memory.

    Examples
    --------
    >>> texts = np.float32([[0], [1], [2]])
    >>> vectors = ItemVectors(lambda ids, texts: texts * 2)
    >>> ids = np.array(["", "a", "b"])
    >>> vectors.update(3, lambda rows: ids[rows].tolist(), lambda rows: texts[rows], changed=[])
    array([1, 2])
    >>> vectors.table.tolist()
    [[0.0], [2.0], [4.0]]
    >>> vectors.reorder(np.array([0, 2]))
    >>> vectors.table.tolist()
    [[0.0], [4.0]]
    """

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._buffer: NDArray[np.float16] = np.zeros((1, 0), np.float16)
        self._n_rows = 1

    @property
    def table(self) -> NDArray[np.float16]:
        """The vectors, float16, C-contiguous, shape (n_rows, M); M is 0 before the first item."""
        return self._buffer[: self._n_rows]

    def update(
        self,
        n_rows: int,
        ids_of: Callable[[Rows], list[str]],
        text_vectors_of: Callable[[Rows], NDArray[np.float32]],
        changed: list[int],
    ) -> Rows:
        """Embed the rows that are new, and those that changed; return them, distinct."""
        rows = [row for row in changed if row < self._n_rows]
        rows += range(self._n_rows, n_rows)
        embedded = np.array(rows, np.int64)
        for start in range(0, len(rows), _AT_ONCE):
            part = embedded[start : start + _AT_ONCE]
            vectors = self._embed(ids_of(part), text_vectors_of(part))  # (n, M)
            self._reserve(n_rows, vectors.shape[1])
            self._buffer[part] = vectors
        self._n_rows = n_rows
        return embedded

    def reorder(self, old_of_new: Rows) -> None:
        """Follow rows that moved."""
        self._buffer = self._buffer[old_of_new]
        self._n_rows = len(old_of_new)

    def _reserve(self, n_rows: int, width: int) -> None:
        if n_rows <= len(self._buffer) and width == self._buffer.shape[1]:
            return
        wider = np.zeros((max(n_rows, 2 * len(self._buffer)), width), np.float16)
        if width == self._buffer.shape[1]:
            wider[: self._n_rows] = self._buffer[: self._n_rows]
        self._buffer = wider
