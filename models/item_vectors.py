"""The student's vector of each item, kept beside the item's row.

Reads   ids and text vectors by row, and an embedder.
Owns    the array that scoring reads where it lies, and when a row is embedded anew.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Embed = Callable[[list[str], NDArray[np.float32]], NDArray[np.float32]]

_AT_ONCE = 65_536  # rows embedded in one call: 16 MB of text vectors


class ItemVectors:
    """Vectors by row, row 0 zeros.

    Parameters
    ----------
    embed
        Ids and text vectors, shape (n, D), to float32 of shape (n, M); a row must depend on its
        own id and text alone. Row 0 is never asked for.

    Notes
    -----
    4 M bytes a row; the array doubles, but what is not used yet takes no memory.

    Examples
    --------
    >>> texts = np.float32([[0], [1], [2]])
    >>> vectors = ItemVectors(lambda ids, texts: texts * 2)
    >>> vectors.update(["", "a", "b"], lambda rows: texts[rows], changed=[])
    array([1, 2])
    >>> vectors.table.tolist()
    [[0.0], [2.0], [4.0]]
    >>> vectors.reorder(np.array([0, 2]))
    >>> vectors.table.tolist()
    [[0.0], [4.0]]
    """

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._buffer: NDArray[np.float32] = np.zeros((1, 0), np.float32)
        self._n_rows = 1

    @property
    def table(self) -> NDArray[np.float32]:
        """The vectors, float32, C-contiguous, shape (n_rows, M); M is 0 before the first item."""
        return self._buffer[: self._n_rows]

    def update(
        self,
        item_ids: list[str],
        text_vectors_of: Callable[[Rows], NDArray[np.float32]],
        changed: list[int],
    ) -> Rows:
        """Embed the rows that are new, and those that changed; return them, distinct.

        `item_ids` are by row.
        """
        rows = [row for row in changed if row < self._n_rows]
        rows += range(self._n_rows, len(item_ids))
        embedded = np.array(rows, np.int64)
        for start in range(0, len(rows), _AT_ONCE):
            part = embedded[start : start + _AT_ONCE]
            ids = [item_ids[row] for row in part.tolist()]
            vectors = self._embed(ids, text_vectors_of(part))  # (n, M)
            self._reserve(len(item_ids), vectors.shape[1])
            self._buffer[part] = vectors
        self._n_rows = len(item_ids)
        return embedded

    def reorder(self, old_of_new: Rows) -> None:
        """Follow rows that moved."""
        self._buffer = self._buffer[old_of_new]
        self._n_rows = len(old_of_new)

    def _reserve(self, n_rows: int, width: int) -> None:
        if n_rows <= len(self._buffer) and width == self._buffer.shape[1]:
            return
        wider = np.zeros((max(n_rows, 2 * len(self._buffer)), width), np.float32)
        if width == self._buffer.shape[1]:
            wider[: self._n_rows] = self._buffer[: self._n_rows]
        self._buffer = wider
