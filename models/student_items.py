"""A student's vectors of all items, and their index, kept beside the catalogue.

Reads   the catalogue's rows: ids, hashes of their words, text vectors, what can be had.
Emits   the table that scoring reads, and the index that the user's vector searches.
Owns    which rows are those of the catalogue as it is now: a row is known by the hashes of its id
        and of its words, so that nothing need be told of what changed, or moved.

Several students stand side by side so, the served one and one on trial. A new one's table is made
in slices between batches, and is used when it is whole.
"""

import copy
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.item_rows import ItemRows
from models.item_vectors import TYPICAL, directions
from models.linear_weights import by_row
from models.neighbours import GRID
from models.ragged import Ragged
from models.serving import StudentScorer
from models.sources import Query
from models.vector_index import VectorIndex

Rows = NDArray[np.int64]

_AT_ONCE: Final = 16_384  # rows embedded in one call: 4 MB of text vectors


class StudentItems:
    """One student's vectors by row, row 0 zeros.

    Parameters
    ----------
    items
        The catalogue.
    scorer
        Its `embed_items` gives a row the same bytes whatever the others are.

    Attributes
    ----------
    tower
        Finds what can be had by the student's vectors of users; empty where weights retrieve.

    Notes
    -----
    2 M bytes a row for the table, M for the index, 40 for the rest. `follow`
    looks at all rows: 0.3 ms of 100,000 where nothing has changed.
    """

    def __init__(self, items: ItemRows, scorer: StudentScorer) -> None:
        self._items = items
        self._scorer = scorer
        self._n = 1
        self._table: NDArray[np.float16] = np.zeros((1, scorer.dim), np.float16)
        self._hashes = np.zeros(1, np.int64)  # of the ids, by row
        self._keys = np.zeros(1, np.uint64)  # of the words that a row was embedded with
        self._numbers = scorer.numbers([""])  # of the scorer's `item_ids`, by row
        self._is_made = np.ones(1, np.bool_)
        self._is_empty = np.ones(1, np.bool_)  # a vector of zeros is found by nothing
        self._weights = self._by_row()
        self._rarity = np.ones(1, np.float32)
        self._view: tuple[int, ItemRows] | None = None  # of a version of the catalogue
        self.tower = VectorIndex(
            scorer.dim, self._directions, lambda rows: items.id_hash[rows], length=TYPICAL
        )

    @property
    def table(self) -> NDArray[np.float16]:
        """The vectors, float16, C-contiguous, shape (rows at the last `follow`, M)."""
        return self._table[: self._n]

    def view(self) -> ItemRows:
        """Return the catalogue with this student's index in it, good until its next refresh."""
        if self._view is None or self._view[0] != self._items.version:
            self._view = self._items.version, self._made_view()
        return self._view[1]

    def _made_view(self) -> ItemRows:
        items = copy.copy(self._items)
        items.tower = self.tower
        if self._weights is not None:
            # A neighbour of weight 1 is worth 1, however common it is.
            items.linear = copy.copy(items)
            items.linear.neighbours = self._weights
            if len(self._rarity) != len(items.rarity):
                self._rarity = np.ones_like(items.rarity)
            items.linear.rarity = self._rarity
        return items

    def asked(self, users: NDArray[np.float32], queries: Sequence[Query]) -> list[Query]:
        """Return queries that search this student's index.

        Parameters
        ----------
        users
            What the student's network makes of the queries' users, shape (B, M).
        queries
            Of rows as at the last `follow`.
        """
        view = self.view()
        return [
            query._replace(items=view, user_vector=own if own.any() else None)
            for query, own in zip(queries, users, strict=True)
        ]

    def follow(self, most: int | None = None) -> bool:
        """Become what the catalogue is now; call it after each of the catalogue's refreshes.

        Parameters
        ----------
        most
            Rows embedded at most in this call, all where None.

        Returns
        -------
        bool
            Whether all rows have their vectors.
        """
        n_rows = self._items.n_rows
        hashes = self._items.id_hash[:n_rows]
        is_moved = n_rows < self._n or bool((hashes[: self._n] != self._hashes[: self._n]).any())
        if is_moved:
            self._move(hashes)
        self._reserve(n_rows)
        self._hashes[self._n : n_rows] = hashes[self._n :]
        self._n = n_rows
        keys = self._items.text_key[:n_rows]
        stale = np.flatnonzero(~self._is_made[:n_rows] | (keys != self._keys[:n_rows]))
        rows = stale[:most]
        for start in range(0, len(rows), _AT_ONCE):
            self._embed(rows[start : start + _AT_ONCE])
        self._index(rows)
        if is_moved or len(rows):
            self._weights = self._by_row()
        self._view = None
        return len(rows) == len(stale)

    def _by_row(self) -> Ragged | None:
        weights = self._scorer.linear
        if weights is None:
            return None
        is_made, numbers = self._is_made[: self._n], self._numbers[: self._n]
        return by_row(weights, np.where(is_made, numbers, weights.n_items))

    def _embed(self, rows: Rows) -> None:
        texts = self._items.text_vectors[rows].astype(np.float32) * np.float32(1 / GRID)
        ids = self._items.item_ids.named(rows)
        self._table[rows] = self._scorer.embed_items(ids, texts)
        self._numbers[rows] = self._scorer.numbers(ids)
        self._keys[rows] = self._items.text_key[rows]
        self._is_made[rows] = True
        self._is_empty[rows] = ~self._table[rows].any(axis=1)

    def _index(self, embedded: Rows) -> None:
        """Make the index hold what can be had, of the rows that are made."""
        n_rows, tower = self._n, self.tower
        can_be = self._items.is_servable[:n_rows] & self._is_made[:n_rows]
        can_be &= ~self._is_empty[:n_rows] & (self._scorer.linear is None)
        is_held = tower.holds(np.arange(n_rows))
        tower.remove(np.flatnonzero(is_held & ~can_be))
        is_other = ~is_held
        is_other[embedded] = True
        tower.put(np.flatnonzero(can_be & is_other))

    def _move(self, hashes: NDArray[np.int64]) -> None:
        """Follow rows to their new places; those that are not known are made anew."""
        known, n_new = self._hashes[: self._n], len(hashes)
        order = np.argsort(known, kind="stable")
        at = np.minimum(np.searchsorted(known, hashes, sorter=order), self._n - 1)
        old_of_new = order[at]
        is_known = known[old_of_new] == hashes
        new_of_old = np.zeros(max(self._n, n_new), np.int64)
        new_of_old[old_of_new[is_known]] = np.flatnonzero(is_known)
        is_held = self.tower.holds(np.arange(len(new_of_old)))  # makes room for the last, too
        self.tower.remove(np.flatnonzero(is_held & (new_of_old == 0)))
        self.tower.reorder(new_of_old)
        self._table, self._keys = self._table[old_of_new], self._keys[old_of_new]
        self._numbers = self._numbers[old_of_new]
        self._is_made = self._is_made[old_of_new] & is_known
        self._is_empty = self._is_empty[old_of_new]
        self._hashes = hashes.copy()
        self._n = n_new

    def _reserve(self, n_rows: int) -> None:
        spare = max(n_rows, 2 * len(self._table)) - len(self._table)
        if n_rows <= len(self._table):
            return
        self._table = np.concatenate([self._table, np.zeros((spare, self._scorer.dim), np.float16)])
        self._hashes = np.concatenate([self._hashes, np.zeros(spare, np.int64)])
        self._keys = np.concatenate([self._keys, np.zeros(spare, np.uint64)])
        self._numbers = np.concatenate([self._numbers, np.zeros(spare, np.int32)])
        self._is_made = np.concatenate([self._is_made, np.zeros(spare, np.bool_)])
        self._is_empty = np.concatenate([self._is_empty, np.ones(spare, np.bool_)])

    def _directions(self, rows: Rows) -> NDArray[np.float32]:
        return directions(self._table, rows, self._scorer.item_length)
