"""Nearest vectors by inner product: approximate where there are many, and the same everywhere.

Reads   rows, and by functions their vectors and the hashes of their ids.
Emits   for each query of a batch the best rows with exact scores.
Owns    4-bit codes of the vectors, and which row lies at which place among them.

Many vectors are searched in two steps. A scan of 4-bit codes (faiss's fast scan: table look-ups
in registers) proposes about 1.8 times as many rows as are wanted, and exact products order those.
Nothing is trained: vectors are turned by a fixed rotation, after which the columns of any vector
of length 1 are about normal, and each column is put on the 16 levels that are best for a normal
one. So a vector's code follows from the vector alone, inserts are cheap, and what is found does
not depend on the order of arrival, on changes long undone, or on the processor:

- Rotation, levels and the scaled query lie on grids on which sums are exact, see
  `models.neighbours`. The query's largest column is scaled to 1, which makes the largest range
  of a look-up table 255 and so faiss's own rounding to bytes a rounding of exact numbers.
- Scores of the scan are whole numbers. Of rows that tie with the last one proposed the scan keeps
  some by their places, so all of that score are dropped; too few left, and it is asked for more.
- A removed row's place is taken by the last row: codes never hold what is not in the table.

Below `SCAN_FROM` rows a compiled loop over all vectors is faster than a scan, and exact.

References
----------
André et al., "Cache locality is not enough: high-performance nearest neighbor search with product
quantization fast scan", VLDB 2015. Max, "Quantizing for minimum distortion", 1960. Zandieh et al.,
"TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate", ICLR 2026.
"""

import hashlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.neighbours import GRID, best_of_each, in_steps, score_values
from models.retrieval_kernels import nearest

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]

# Above it a scan of codes and refining cost less than products with all vectors.
SCAN_FROM: Final = 16_000
# Queries that share a pass over the codes, 3 and 3: as fast as what faiss picks or faster, where
# 4 and 4 take a quarter longer on some processors (their tables do not fit into the registers).
_TOGETHER: Final = 0x33
_WIDTH: Final = 32  # codes are packed in blocks of so many rows
# Half of what Max (1960) gives for 16 levels and a normal variable, in steps that make the
# outermost 127.5: whole halves, so that products with a query on its grid are exact.
_HALF: Final = (6.0, 18.0, 30.5, 44.0, 58.5, 75.5, 96.5, 127.5)
_LEVELS: Final = np.array([*(-x for x in reversed(_HALF)), *_HALF], np.float32)
_STEPS: Final = 127.5 / 2.7326  # of a level, to one standard deviation
_BOUNDS: Final = (_LEVELS[1:] + _LEVELS[:-1]) / 2 / np.float32(_STEPS)
_QUERY_GRID: Final = np.float32(4_096)
_AT_ONCE: Final = 65_536  # rows encoded in one call: 50 MB of scratch
_QUERIES: Final = 64  # in one call: bounds the scratch, 4 MB
_REFINED: Final = 8  # queries whose rows are looked at together: their vectors stay in cache
_SPARE: Final = 32  # proposed beyond what the limit takes: small limits need it
_MORE: Final = 8  # how many times more are asked for where ties leave too few


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
        Of a typical vector, above 0 and at most 1: what the levels are spread for.
    scan_from
        Rows from which on codes are scanned; tests set it lower.

    Notes
    -----
    Of 100,000 random vectors of 64 columns, the worst case, the scan finds 99% of the exact 100
    best, 4 times as fast as all products (`python -m bench.index`). Codes take D / 2 bytes a row
    and at times twice that, places 8 bytes; below `scan_from` rows a copy of the vectors 2 D.

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
        scan_from: int = SCAN_FROM,
    ) -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self._dim = dim
        self.vectors = vectors_of  # of rows, whether they can be found or not
        self._hashes_of = hashes_of
        self._length = length
        self._scan_from = scan_from
        self._n = 0
        self._rows: NDArray[np.int32] = np.zeros(64, np.int32)  # by place
        self._places: NDArray[np.int32] = np.zeros(64, np.int32)  # by row: place + 1, 0 for none
        self._near: _Near | None = None  # while there are few
        self._codes: _Codes | None = None

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
            self._change(known[start : start + _AT_ONCE])
        for start in range(0, len(new), _AT_ONCE):
            self._append(new[start : start + _AT_ONCE])

    def remove(self, rows: Rows) -> None:
        """Drop rows; those that are not held are passed over."""
        for row in rows[self.holds(rows)].tolist():
            place, last = int(self._places[row]) - 1, self._n - 1
            if self._near is not None:
                self._near.move(last, place)
            if self._codes is not None:
                self._codes.drop(place)
            self._rows[place] = moved = self._rows[last]
            self._places[moved] = place + 1
            self._places[row] = 0
            self._n = last
        if self._n < self._scan_from // 2:
            self._codes = None

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
        search = self._all_products if self._n < self._scan_from else self._scan
        for start in range(0, len(asked) if self._n else 0, _QUERIES):
            part = asked[start : start + _QUERIES]
            for at, hits in zip(part.tolist(), search(queries[part], limit), strict=True):
                found[at] = hits
        return found

    def _reserve(self, n_rows: int) -> None:
        if n_rows > len(self._places):
            wider = np.zeros(max(n_rows, 2 * len(self._places)), np.int32)
            wider[: len(self._places)] = self._places
            self._places = wider

    def _change(self, rows: Rows) -> None:
        places = self._places[rows] - 1
        vectors = self.vectors(rows)
        if self._near is not None:
            self._near.write(places, vectors, self._hashes_of(rows))
        if self._codes is not None:
            self._codes.change(places, vectors)

    def _append(self, rows: Rows) -> None:
        end = self._n + len(rows)
        if end > len(self._rows):
            wider = np.zeros(max(end, 2 * len(self._rows)), np.int32)
            wider[: self._n] = self._rows[: self._n]
            self._rows = wider
        self._rows[self._n : end] = rows
        self._places[rows] = np.arange(self._n + 1, end + 1)
        if end >= self._scan_from:
            self._near = None
        if self._near is not None:
            places = np.arange(self._n, end)
            self._near.write(places, self.vectors(rows), self._hashes_of(rows))
        if self._codes is not None:
            self._codes.append(self.vectors(rows))
        self._n = end

    def _all_products(self, queries: Floats, limit: int) -> list[Hits]:
        if self._near is None:
            self._near = _Near(self._dim)
            rows = self._rows[: self._n].astype(np.int64)
            self._near.write(np.arange(self._n), self.vectors(rows), self._hashes_of(rows))
        shape = (len(queries), min(limit, self._n))
        values, hashes, places = (np.empty(shape, np.int64) for _ in range(3))
        near = self._near
        nearest(near.steps, self._n, near.hashes, in_steps(queries), values, hashes, places)
        scores = (values * (1 / GRID**2)).astype(np.float32)  # exact
        return list(map(Hits, self._rows[places].astype(np.int64), scores))

    def _scan(self, queries: Floats, limit: int) -> list[Hits]:
        if self._codes is None:
            self._codes = _Codes(self._dim, self._length)
            for start in range(0, self._n, _AT_ONCE):
                rows = self._rows[start : min(start + _AT_ONCE, self._n)].astype(np.int64)
                self._codes.append(self.vectors(rows))
        n_wanted = limit + limit // 2 + _SPARE
        places, is_sure = self._codes.propose(queries, min(n_wanted, self._n))  # (B, P)
        rows = self._rows[places].astype(np.int64)
        scores = np.empty(rows.shape, np.float32)  # (B, P), exact
        for start in range(0, len(rows), _REFINED):
            part = slice(start, start + _REFINED)
            vectors = self.vectors(rows[part])  # (b, P, D)
            scores[part] = np.matmul(vectors, queries[part, :, None])[:, :, 0]
        found = self._best(rows, scores, limit, is_sure)
        for b, hits in enumerate(found):
            if len(hits.rows) < min(limit, self._n):
                found[b] = self._ask_for_more(queries[b], limit, _MORE * n_wanted)
        return found

    def _ask_for_more(self, query: Floats, limit: int, n_wanted: int) -> Hits:
        """Return the hits of a query with more ties at the cut than were proposed beyond it."""
        assert self._codes is not None  # noqa: S101 # only `_scan` calls
        [places], [is_sure] = self._codes.propose(query[None], min(n_wanted, self._n))
        if np.count_nonzero(is_sure) < min(limit, self._n):
            return self._ask_for_more(query, limit, _MORE * n_wanted)
        rows = self._rows[places[is_sure]].astype(np.int64)
        [hits] = self._best(rows[None], (self.vectors(rows) @ query)[None], limit)
        return hits

    def _best(
        self, rows: Rows, scores: Floats, limit: int, is_own: NDArray[np.bool_] | None = None
    ) -> list[Hits]:
        """Return the best of each query's rows; all three of shape (B, P)."""
        values, hashes = score_values(scores), self._hashes_of(rows)
        if is_own is not None:
            values[~is_own] = -1
        best = best_of_each(values, hashes, limit)
        each = zip(rows, scores, best, strict=True)
        return [Hits(own[places], score[places]) for own, score, places in each]


class _Near:
    """Vectors in steps of the grid, and the hashes of their ids, by place."""

    def __init__(self, dim: int) -> None:
        self.steps: NDArray[np.int16] = np.zeros((64, dim), np.int16)
        self.hashes: NDArray[np.int64] = np.zeros(64, np.int64)

    def write(
        self, places: NDArray[np.integer], vectors: Floats, hashes: NDArray[np.int64]
    ) -> None:
        end = int(places.max()) + 1
        if end > len(self.hashes):
            held, size = len(self.hashes), max(end, 2 * len(self.hashes))
            steps, self.steps = self.steps, np.zeros((size, self.steps.shape[1]), np.int16)
            self.steps[:held] = steps
            self.hashes = np.concatenate([self.hashes, np.zeros(size - held, np.int64)])
        self.steps[places] = in_steps(vectors)
        self.hashes[places] = hashes

    def move(self, place: int, to: int) -> None:
        self.steps[to] = self.steps[place]
        self.hashes[to] = self.hashes[place]


class _Codes:
    """Vectors as 4-bit codes by place, and the scan over them."""

    def __init__(self, dim: int, length: float) -> None:
        import faiss  # noqa: PLC0415 # 50 MB that a small catalogue does without

        faiss.omp_set_num_threads(1)  # a decide process has one core
        self._faiss = faiss
        self._rotation = _rotation(dim)  # (D, W)
        self._bounds = _BOUNDS * np.float32(length)
        width = self._rotation.shape[1]
        self._index: Any = faiss.IndexPQFastScan(
            width, width, 4, faiss.METRIC_INNER_PRODUCT, _WIDTH
        )
        faiss.copy_array_to_vector(np.tile(_LEVELS, width), self._index.pq.centroids)
        self._index.is_trained = True
        self._index.qbs = _TOGETHER
        self._packer: Any = self._index.get_CodePacker()

    def append(self, vectors: Floats) -> None:
        # On the levels already, so that faiss has nothing to decide.
        self._index.add(_LEVELS[self._levels_of(vectors)])

    def change(self, places: NDArray[np.int32], vectors: Floats) -> None:
        levels = self._levels_of(vectors)
        packed = levels[:, ::2] | levels[:, 1::2] << 4  # (n, W / 2)
        for place, code in zip(places.tolist(), packed, strict=True):
            self._write(place, code)

    def drop(self, place: int) -> None:
        """Put the last code in a place, and forget it at the end."""
        last = self._index.ntotal - 1
        code = self._packer.unpack_1(self._block(last), last % _WIDTH)
        self._write(place, code)
        # Adding sets bits in what must be zeros.
        self._write(last, np.zeros_like(code))
        self._index.ntotal = last

    def propose(
        self, queries: Floats, n_wanted: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return places, shape (B, n_wanted), and which of them no tie has chosen."""
        turned = queries @ self._rotation  # (B, W), exact
        scaled = turned / np.abs(turned).max(axis=1, keepdims=True)
        scores, places = self._index.search(np.rint(scaled * _QUERY_GRID) / _QUERY_GRID, n_wanted)
        if n_wanted == self._index.ntotal:
            return places, np.ones(places.shape, np.bool_)
        return places, scores > scores.min(axis=1, keepdims=True)

    def _levels_of(self, vectors: Floats) -> NDArray[np.uint8]:
        levels = np.searchsorted(self._bounds, vectors @ self._rotation)
        return levels.astype(np.uint8)

    def _block(self, place: int) -> NDArray[np.uint8]:
        """Return the packed codes of a place and its neighbours, writable, shape (1, bytes)."""
        codes, size = self._index.codes, self._packer.block_size
        view = self._faiss.rev_swig_ptr(codes.get(), codes.size())
        start = place // _WIDTH * size
        block: NDArray[np.uint8] = view[None, start : start + size]
        return block

    def _write(self, place: int, code: NDArray[np.uint8]) -> None:
        self._packer.pack_1(np.ascontiguousarray(code), place % _WIDTH, self._block(place))


def _rotation(dim: int) -> Floats:
    """Return a fixed rotation but for its scale, shape (D, W), W the power of 2 from D on.

    Hadamard's matrix after random signs: entries of 1 and -1, so that products are exact. A
    vector of length 1 gets columns of mean square 1.
    """
    width = 1 << max(dim - 1, 1).bit_length()
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < width:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    bits = np.frombuffer(hashlib.shake_128(b"pushflow").digest(dim), np.uint8) & 1
    rotation: Floats = (2 * bits.astype(np.float32) - 1)[:, None] * matrix[:dim]
    return rotation
