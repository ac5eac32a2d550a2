"""Nearest vectors by inner product: nearly exact, and the same everywhere.

Reads   rows, and by functions their vectors and the hashes of their ids.
Emits   for each query of a batch the best rows with exact scores.
Owns    which row lies at which place of the scan.

A scan of all vectors as bytes (`models.byte_scan`) proposes somewhat more rows than are wanted,
and exact products order those. What is found does not depend on the order of arrival, on changes
long undone, or on the processor. A removed row's place is taken by the last row: the scan never
holds what cannot be found.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.byte_scan import ByteScan
from models.neighbours import best_of_each

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]

_AT_ONCE: Final = 8_192  # rows written in one call: 8 MB of scratch
_QUERIES: Final = 64  # in one call: bounds the scratch, 2 MB
_REFINED: Final = 8  # queries whose rows are looked at together: their vectors stay in cache
_SPARE: Final = 16  # proposed beyond the limit and an eighth of it: small limits need it


class Hits(NamedTuple):
    """What was found for one query, best first; equal scores in the order of the ids' hashes."""

    rows: Rows
    scores: Floats  # exact dot products


NO_HITS: Final = Hits(np.zeros(0, np.int64), np.zeros(0, np.float32))


class VectorIndex:
    """Rows to be found by their vectors.

    Parameters
    ----------
    dim
        D, columns of a vector, at least 1.
    vectors_of
        Rows, shape (...), to their vectors, float32, shape (..., D), on the grid of
        `models.neighbours`, at most 1 long.
    hashes_of
        Rows to the 64-bit hashes of their ids, by which ties go.
    length
        Of a typical vector, above 0 and at most 1: what the bytes are spread for.

    Notes
    -----
    Of 100,000 random vectors of 64 columns, the worst case, it finds the exact 100 best, 4 times as
    fast as all products (`python -m bench.index`). Takes D bytes a row for the scan (the power of
    2 from D on) and 12 for places.

    Examples
    --------
    >>> table, hashes = np.float32([[0, 0], [1, 0], [0, 1], [1, 0]]), np.array([9, 3, 1, 2])
    >>> index = VectorIndex(2, lambda rows: table[rows], lambda rows: hashes[rows])
    >>> index.put(np.array([1, 2, 3]))
    >>> [hits.rows.tolist() for hits in index.search(np.float32([[1, 0], [0, 1]]), limit=2)]
    [[1, 3], [2, 1]]
    >>> index.remove(np.array([3]))
    >>> [hits.rows.tolist() for hits in index.search(np.float32([[1, 0]]), limit=2)], len(index)
    ([[1, 2]], 2)
    """

    def __init__(
        self,
        dim: int,
        vectors_of: Callable[[Rows], Floats],
        hashes_of: Callable[[Rows], NDArray[np.int64]],
        *,
        length: float = 1.0,
    ) -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.vectors = vectors_of  # of rows, whether they can be found or not
        self._hashes_of = hashes_of
        self._scan = ByteScan(dim, length)
        self._n = 0
        self._rows: NDArray[np.int32] = np.zeros(64, np.int32)  # by place
        self._places: NDArray[np.int32] = np.zeros(64, np.int32)  # by row: place + 1, 0 for none

    def __len__(self) -> int:
        """Return the number of rows that can be found."""
        return self._n

    def holds(self, rows: Rows) -> NDArray[np.bool_]:
        """Return which of `rows` can be found."""
        self._reserve(int(rows.max(initial=0)) + 1)
        return self._places[rows] > 0

    def put(self, rows: Rows) -> None:
        """Take distinct rows that are new or whose vectors have changed."""
        if not len(rows):
            return
        self._reserve(int(rows.max()) + 1)
        places = self._places[rows]
        known, new = rows[places > 0], rows[places == 0]
        for start in range(0, len(known), _AT_ONCE):
            self._write(known[start : start + _AT_ONCE])
        for start in range(0, len(new), _AT_ONCE):
            self._append(new[start : start + _AT_ONCE])

    def remove(self, rows: Rows) -> None:
        """Drop rows; those that are not held are passed over."""
        for row in rows[self.holds(rows)].tolist():
            place, last = int(self._places[row]) - 1, self._n - 1
            self._scan.move(last, place)
            self._rows[place] = moved = self._rows[last]
            self._places[moved] = place + 1
            self._places[row] = 0
            self._n = last

    def reorder(self, new_of_old: Rows) -> None:
        """Follow rows that moved, by their new numbers; those held have all been kept."""
        rows = new_of_old[self._rows[: self._n]]
        self._rows[: self._n] = rows
        self._places[:] = 0
        self._places[rows] = np.arange(1, self._n + 1)

    def search(self, queries: Floats, limit: int) -> list[Hits]:
        """Return the best rows for each query.

        Parameters
        ----------
        queries
            Float32, shape (B, D), on the grid and at most 1 long; one of zeros finds nothing.
        limit
            Hits at most, at least 1.

        Notes
        -----
        A query's hits do not depend on the others of the batch.
        """
        found = [NO_HITS] * len(queries)
        asked = np.flatnonzero(queries.any(axis=1))
        for start in range(0, len(asked) if self._n else 0, _QUERIES):
            part = asked[start : start + _QUERIES]
            for at, hits in zip(part.tolist(), self._search(queries[part], limit), strict=True):
                found[at] = hits
        return found

    def _search(self, queries: Floats, limit: int) -> list[Hits]:
        n_proposed = min(limit + limit // 8 + _SPARE, self._n)
        places = self._scan.propose(queries, self._n, n_proposed)  # (B, P)
        rows = self._rows[places].astype(np.int64)
        scores = np.empty(rows.shape, np.float32)  # (B, P), exact
        for start in range(0, len(rows), _REFINED):
            part = slice(start, start + _REFINED)
            vectors = self.vectors(rows[part])  # (b, P, D)
            scores[part] = np.matmul(vectors, queries[part, :, None])[:, :, 0]
        best = best_of_each(scores, self._hashes_of(rows), min(limit, self._n))
        each = zip(rows, scores, best, strict=True)
        return [Hits(own[places], score[places]) for own, score, places in each]

    def _reserve(self, n_rows: int) -> None:
        if n_rows > len(self._places):
            wider = np.zeros(max(n_rows, 2 * len(self._places)), np.int32)
            wider[: len(self._places)] = self._places
            self._places = wider

    def _append(self, rows: Rows) -> None:
        end = self._n + len(rows)
        if end > len(self._rows):
            wider = np.zeros(max(end, 2 * len(self._rows)), np.int32)
            wider[: self._n] = self._rows[: self._n]
            self._rows = wider
        self._rows[self._n : end] = rows
        self._places[rows] = np.arange(self._n + 1, end + 1)
        self._write(rows)
        self._n = end

    def _write(self, rows: Rows) -> None:
        """Put the vectors of rows where they have their places."""
        self._scan.write(self._places[rows] - 1, self.vectors(rows), self._hashes_of(rows))
