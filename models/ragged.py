"""Rows of different lengths in one array: lists that most rows have little of.

Reads   values of one row at a time.
Emits   values of several rows, one after another.
Owns    where each row's values lie, and closing the gaps that changes leave.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

Rows = NDArray[np.int64]

_FIRST: Final = 1_024
_GAPS: Final = 4_096  # values of gaps that are not worth closing


class Ragged:
    """A list of values for each row.

    Parameters
    ----------
    dtype
        Of the values.

    Notes
    -----
    8 bytes a row and the values; gaps are at most as much again, and the array grows by half.
    Fewer than 2^32 values in all.

    Examples
    --------
    >>> lists = Ragged(np.int32)
    >>> lists.put(2, [7, 8, 9])
    >>> lists.put(5, [4])
    >>> values, lengths = lists.take(np.array([5, 1, 2]))
    >>> values.tolist(), lengths.tolist()
    ([4, 7, 8, 9], [1, 0, 3])
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self._data: NDArray[Any] = np.zeros(_FIRST, dtype)
        self._end = 0
        self._n_gaps = 0
        self._starts: NDArray[np.uint32] = np.zeros(_FIRST, np.uint32)
        self._lengths: NDArray[np.int32] = np.zeros(_FIRST, np.int32)

    def put(self, row: int, values: Any) -> None:
        """Set a row's values, array-like; none frees their room."""
        if row >= len(self._lengths):
            n_rows = max(row + 1, 2 * len(self._lengths))
            self._starts = _grown(self._starts, n_rows)
            self._lengths = _grown(self._lengths, n_rows)
        new, old = len(values), int(self._lengths[row])
        if new > old:
            self._n_gaps += old
            self._lengths[row] = 0
            self._reserve(new)
            self._starts[row] = self._end
            self._end += new
        else:
            self._n_gaps += old - new
        self._lengths[row] = new
        start = int(self._starts[row])
        self._data[start : start + new] = values

    def get(self, row: int) -> NDArray[Any]:
        """Return a row's values, a view."""
        if row >= len(self._lengths):
            return self._data[:0]
        start = int(self._starts[row])
        return self._data[start : start + int(self._lengths[row])]

    def take(
        self, rows: Rows, most: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Return the values of rows, one row after another, and how many each has.

        `most`, of the same shape, bounds how many are taken of each; the first are.
        """
        lengths = np.zeros(len(rows), np.int32)
        is_held = rows < len(self._lengths)
        held = rows if is_held.all() else rows[is_held]
        own = self._lengths[held]
        if most is not None:
            own = np.minimum(own, most[is_held])
        lengths[is_held] = own
        before = np.cumsum(own) - own
        at = np.repeat(self._starts[held].astype(np.int64) - before, own)
        at += np.arange(len(at))
        return self._data[at], lengths

    def reorder(self, old_of_new: Rows) -> None:
        """Follow rows that moved; the values of those that are left out go."""
        values, lengths = self.take(old_of_new)
        self._pack(values, lengths)

    @property
    def values(self) -> NDArray[Any]:
        """All values, gaps included: to be changed in place, whatever row they are of."""
        return self._data[: self._end]

    def _reserve(self, n: int) -> None:
        if self._end + n <= len(self._data):
            return
        if self._n_gaps > max(_GAPS, self._end // 2):
            self.reorder(np.arange(len(self._lengths)))
        if self._end + n > len(self._data):
            self._data = _grown(self._data, self._end + max(n, self._end // 2))

    def _pack(self, values: NDArray[Any], lengths: NDArray[np.int32]) -> None:
        self._data, self._end, self._n_gaps = values, len(values), 0
        self._lengths = lengths
        self._starts = (np.cumsum(lengths, dtype=np.int64) - lengths).astype(np.uint32)


def _grown(array: NDArray[Any], n: int) -> NDArray[Any]:
    # Zeros that nobody wrote take no memory yet, which resizing in place would change.
    wider = np.zeros(n, array.dtype)
    wider[: len(array)] = array
    return wider
