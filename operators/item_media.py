"""The vectors of items' images, or sound: those that items bring, else made from files they name.

Reads   items' own vectors and the URLs of their files.
Emits   one mode of `models.fusion.ModeVectors`, NaN rows for what is missing.
Owns    that a given vector goes before a file, and that one of another width is none.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from operators import metrics

Read = Callable[[Sequence[str]], list[bytes | None]]


class MediaEncoder(Protocol):
    """What `models.media_encoders` has: files to rows, NaN where a file cannot be read."""

    id: str
    dim: int

    def encode(self, files: Sequence[bytes | None]) -> NDArray[np.float32]:
        """Return float32 rows, shape (N, dim)."""
        ...


class ItemMedia:
    """One mode of items.

    Parameters
    ----------
    columns
        Width of its vectors, as the fusion takes them (`Fusion.dims`); 0: not used.
    encoder
        For items that bring no vector but name a file. None: no file is read.
    read
        Gives the bytes of files, as `operators.media_files.MediaFiles.read`.

    Raises
    ------
    ValueError
        If the encoder has another width than the fusion, or comes without `read`.

    Examples
    --------
    >>> images = ItemMedia(columns=2)
    >>> images.rows([[0.5, 1.0], [], [1.0, 2.0, 3.0]], ["", "", ""]).tolist()
    [[0.5, 1.0], [nan, nan], [nan, nan]]
    >>> images.n_misfits, ItemMedia(columns=0).rows([[0.5]], [""])
    (1, None)
    """

    def __init__(
        self, columns: int, encoder: MediaEncoder | None = None, read: Read | None = None
    ) -> None:
        if encoder is not None and encoder.dim != columns:
            raise ValueError(
                f"the encoder {encoder.id} gives {encoder.dim} columns, the fusion takes {columns}"
            )
        if encoder is not None and read is None:
            raise ValueError("an encoder of files needs something that reads them")
        self._columns, self._encoder, self._read = columns, encoder, read
        self.n_misfits = 0  # vectors given with another number of columns
        self.n_unreadable = 0  # files that are no image, or no sound
        self._misfit = metrics.ITEM_MEDIA.labels("misfit")
        self._unreadable = metrics.ITEM_MEDIA.labels("unreadable")

    def file_of(self, vector: Sequence[float], url: str) -> str:
        """Return the file that an item's vector is made of, "" for none: part of its content.

        A file that changes under the same name is not noticed: give it a new one.
        """
        return url if self._encoder is not None and len(vector) != self._columns else ""

    def rows(
        self, vectors: Sequence[Sequence[float]], urls: Sequence[str]
    ) -> NDArray[np.float32] | None:
        """Return the items' vectors, float32, shape (N, columns); None where it is not used.

        `vectors` and `urls` are parallel, empty where an item has none.
        """
        if not self._columns:
            return None
        found = np.full((len(vectors), self._columns), np.nan, np.float32)
        for row, vector in zip(found, vectors, strict=True):
            if len(vector) == self._columns:
                row[:] = vector
            elif len(vector):
                self.n_misfits += 1
                self._misfit.inc()
        files = [self.file_of(*pair) for pair in zip(vectors, urls, strict=True)]
        named = [i for i, url in enumerate(files) if url]
        if named and self._encoder is not None and self._read is not None:
            contents = self._read([files[i] for i in named])
            made = self._encoder.encode(contents)  # (n, columns)
            found[named] = made
            n_there = sum(data is not None for data in contents)
            self._count(n_there - int(np.isfinite(made).all(axis=1).sum()))
        return found

    def _count(self, n_unreadable: int) -> None:
        self.n_unreadable += n_unreadable
        self._unreadable.inc(n_unreadable)
