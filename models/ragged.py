"""Rows of different lengths in one array: lists that most rows have little of.

Reads   values of one row at a time.
Emits   values of several rows, one after another.
Owns    where each row's values lie, and closing the gaps that changes leave.

A value may have several parts, each in an array of its own: structs of odd sizes are gathered 15
times slower.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

Rows = NDArray[np.int64]

_FIRST: Final = 1_024
_GAPS: Final = 4_096  # values of gaps that are not worth closing
_AT_ONCE: Final = 65_536  # rows packed in one call: bounds the scratch


class Ragged:
    """A list of values for each row.

    Parameters
    ----------
    dtypes
        Of the parts of a value, at least one.

    Notes
    -----
    8 bytes a row and the values; gaps are at most as much again, and the arrays grow by half.
    Fewer than 2^32 values in all.

    Examples
    --------
    >>> lists = Ragged(np.int32)
    >>> lists.put(2, [7, 8, 9])
    >>> lists.put(5, [4])
    >>> [values], lengths = lists.take(np.array([5, 1, 2]))
    >>> values.tolist(), lengths.tolist()
    ([4, 7, 8, 9], [1, 0, 3])
    """

    def __init__(self, *dtypes: DTypeLike) -> None:
        self._parts: list[NDArray[Any]] = [np.zeros(_FIRST, dtype) for dtype in dtypes]
        self._end = 0
        self._n_gaps = 0
        self._starts: NDArray[np.uint32] = np.zeros(_FIRST, np.uint32)
        self._lengths: NDArray[np.int32] = np.zeros(_FIRST, np.int32)

    @classmethod
    def of(cls, lengths: NDArray[np.integer], *parts: NDArray[Any]) -> "Ragged":
        """Return lists of these lengths, whose values are the parts, one after another.

        >>> lists = Ragged.of(np.array([0, 2, 1]), np.int32([7, 8, 9]))
        >>> lists.get(1)[0].tolist(), lists.get(2)[0].tolist()
        ([7, 8], [9])
        """
        lists = cls(*(part.dtype for part in parts))
        lists._parts, lists._end = list(parts), len(parts[0])
        lists._lengths = lengths.astype(np.int32)
        lists._starts = (np.cumsum(lengths) - lengths).astype(np.uint32)
        return lists

    def put(self, row: int, *values: Any) -> None:
        """Set a row's values by part, array-likes of one length; empty ones free their room."""
        if row >= len(self._lengths):
            n_rows = max(row + 1, 2 * len(self._lengths))
            self._starts = _grown(self._starts, n_rows)
            self._lengths = _grown(self._lengths, n_rows)
        new, old = len(values[0]), int(self._lengths[row])
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
        for part, own in zip(self._parts, values, strict=True):
            part[start : start + new] = own

    def get(self, row: int) -> list[NDArray[Any]]:
        """Return a row's values by part, views."""
        if row >= len(self._lengths):
            return [part[:0] for part in self._parts]
        start = int(self._starts[row])
        end = start + int(self._lengths[row])
        return [part[start:end] for part in self._parts]

    @property
    def columns(self) -> tuple[NDArray[np.uint32], NDArray[np.int32], list[NDArray[Any]]]:
        """Where each row's values begin, how many there are, and the parts; to be read."""
        return self._starts, self._lengths, self._parts

    def take(
        self, rows: Rows, most: NDArray[np.int64] | None = None
    ) -> tuple[list[NDArray[Any]], NDArray[np.int32]]:
        """Return the values of rows by part, one row after another, and how many each row has.

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
        return [part.take(at) for part in self._parts], lengths

    def reorder(self, old_of_new: Rows) -> None:
        """Follow rows that moved; the values of those that are left out go."""
        starts = range(0, max(len(old_of_new), 1), _AT_ONCE)
        taken = [self.take(old_of_new[start : start + _AT_ONCE]) for start in starts]
        for number in range(len(self._parts)):
            self._parts[number] = np.concatenate([parts[number] for parts, _ in taken])
        self._lengths = np.concatenate([lengths for _, lengths in taken])
        ends = np.cumsum(self._lengths, dtype=np.int64)
        self._starts = (ends - self._lengths).astype(np.uint32)
        self._end, self._n_gaps = len(self._parts[0]), 0

    @property
    def values(self) -> list[NDArray[Any]]:
        """All values by part, gaps included: to be changed in place, whatever row they are of."""
        return [part[: self._end] for part in self._parts]

    def _reserve(self, n: int) -> None:
        if self._end + n <= len(self._parts[0]):
            return
        if self._n_gaps > max(_GAPS, self._end // 2):
            self.reorder(np.arange(len(self._lengths)))
        if self._end + n > len(self._parts[0]):
            wanted = self._end + max(n, self._end // 2)
            for number, part in enumerate(self._parts):
                self._parts[number] = _grown(part, wanted)


def _grown(array: NDArray[Any], n: int) -> NDArray[Any]:
    # Zeros that nobody wrote take no memory yet, which resizing in place would change.
    wider = np.zeros(n, array.dtype)
    wider[: len(array)] = array
    return wider
