"""Vectors as bytes, and a scan of them all that proposes which are near some queries.

Reads   vectors and queries on the grid of `models.neighbours`, and the hashes of the vectors' ids.
Emits   for each query the places whose products with it are the largest, nearly always the best.
Owns    the bytes, by place.

Nothing is trained: vectors are turned by a fixed rotation, after which the columns of any vector
are about normal, and each column is put on the same 255 steps. So a vector's bytes follow from the
vector alone, and an insert is a write. Rotation and grid make the turned columns exact, and the
products are of whole numbers, so what is proposed depends neither on the order of arrival nor on
the processor. Equal products go by hash.

References
----------
Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", NeurIPS 2022,
for products of bytes; Zandieh et al., "TurboQuant: Online Vector Quantization with Near-optimal
Distortion Rate", ICLR 2026, for the rotation.
"""

import hashlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.byte_scan_kernel import FEW, LANES, MANY, MOST, QUAD, best_places

Floats = NDArray[np.float32]
Places = NDArray[np.integer[Any]]

_SPREAD: Final = 5.0  # standard deviations of a column that the bytes reach to either side
_ZERO: Final = 128


class ByteScan:
    """Bytes of vectors by place.

    Parameters
    ----------
    dim
        D, columns of a vector.
    length
        Of a typical vector: what the steps are spread for.

    Notes
    -----
    W bytes a vector, the power of 2 from D on and 4 at least, and 4 for its hash. Arrays double,
    but what is not used yet takes no memory. One thread at a time.

    Examples
    --------
    >>> vectors = np.float32([[1, 0], [0, 1], [-1, 0]])
    >>> scan = ByteScan(2, 1.0)
    >>> scan.write(np.arange(3), vectors, np.array([4, 5, 6]))
    >>> scan.propose(vectors[:2], 3, wanted=1).tolist()
    [[0], [1]]
    """

    def __init__(self, dim: int, length: float) -> None:
        self._rotation = rotation(dim)  # (D, W)
        self._scale = np.float32(MOST / (_SPREAD * length))
        self._n_quads = self._rotation.shape[1] // QUAD
        self._codes: NDArray[np.uint8] = np.zeros((0, self._n_quads, LANES, QUAD), np.uint8)
        self._hashes: NDArray[np.uint32] = np.zeros(0, np.uint32)

    def write(self, places: Places, vectors: Floats, hashes: NDArray[np.int64]) -> None:
        """Put vectors, shape (n, D), at places, any up to the first that is free."""
        end = int(places.max()) + 1
        if end > len(self._hashes):
            n_blocks = max(-(-end // LANES), 2 * len(self._codes))
            self._codes = _longer(self._codes, n_blocks)
            self._hashes = _longer(self._hashes, n_blocks * LANES)
        steps = np.rint(vectors @ self._rotation * self._scale)
        codes = (np.clip(steps, -MOST, MOST) + _ZERO).astype(np.uint8)
        self._codes[places // LANES, :, places % LANES] = codes.reshape(-1, self._n_quads, QUAD)
        self._hashes[places] = hashes >> 31

    def move(self, place: int, to: int) -> None:
        """Put what is at one place at another, too."""
        codes = self._codes
        codes[to // LANES, :, to % LANES] = codes[place // LANES, :, place % LANES]
        self._hashes[to] = self._hashes[place]

    def propose(self, queries: Floats, n: int, wanted: int) -> NDArray[np.int32]:
        """Return places of the first n, in any order, shape (Q, wanted).

        Parameters
        ----------
        queries
            Shape (Q, D), none of zeros.
        wanted
            At most n.
        """
        n_queries = len(queries)
        if wanted == n:
            return np.broadcast_to(np.arange(n, dtype=np.int32), (n_queries, n))
        width = FEW if n_queries <= len(FEW) else MANY
        held = self._codes, n, self._hashes
        places: NDArray[np.int32] = best_places(width, *held, queries, self._rotation, wanted)
        return places


def _longer(array: NDArray[Any], size: int) -> NDArray[Any]:
    longer = np.zeros((size, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer


def rotation(dim: int) -> Floats:
    """Return a fixed rotation but for its scale, shape (D, W), W the power of 2 from D on, 4 least.

    Hadamard's matrix after random signs: entries of 1 and -1, so that products are exact. A
    vector of length 1 gets columns of mean square 1.

    >>> rotation(3).shape
    (3, 4)
    """
    width = max(1 << (dim - 1).bit_length(), QUAD)
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < width:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    bits = np.frombuffer(hashlib.shake_128(b"pushflow").digest(dim), np.uint8) & 1
    turned: Floats = (2 * bits.astype(np.float32) - 1)[:, None] * matrix[:dim]
    return turned
