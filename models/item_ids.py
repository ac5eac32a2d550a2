"""Which row an item has, by its id, and which id a row has.

Reads   ids, in the order of their rows.
Owns    the text of all ids, and where each lies.

A dict of strings takes 170 bytes an id of 8 letters. Here the text lies in one array, and a table
with open addressing, keyed by the id's hash, holds row numbers: 20 bytes. Finding a row takes
1 µs where a dict takes 0.1, so those that were asked for lately are in a dict of bounded size.
"""

from collections.abc import Iterable
from itertools import repeat
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.neighbours import hash_of

Rows = NDArray[np.int64]

_FIRST: Final = 1_024
_KNOWN: Final = 131_072  # ids asked for lately, 20 MB


class ItemIds:
    """Ids by row; row 0 is "".

    Notes
    -----
    The text, 4 bytes a row, and 8 to 16 for the table. Fewer than 2^32 bytes of text.

    Examples
    --------
    >>> ids = ItemIds()
    >>> ids.add("b"), ids.add("a"), ids.find("a"), ids.find("c")
    (1, 2, 2, 0)
    >>> ids.settled(["a"]), ids.settle(), ids.settled(["a", "c", ""])
    ([0], None, [2, 0, 0])
    >>> ids[1], ids.named(np.array([2, 0])), len(ids)
    ('b', ['a', ''], 3)
    """

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends: NDArray[np.uint32] = np.zeros(_FIRST, np.uint32)  # of each row's text
        self._n = self._n_settled = 1
        self._slots: NDArray[np.int32] = np.zeros(2 * _FIRST, np.int32)  # rows, 0: free
        self._known: dict[str, int] = {}  # of ids that are settled, or have no row: 0

    def __len__(self) -> int:
        """Return the number of rows, that of "" included."""
        return self._n

    def __getitem__(self, row: int) -> str:
        """Return the id of a row."""
        if not 0 <= row < self._n:
            raise IndexError(f"row {row} of {self._n}")
        return self._bytes(row).decode()

    def named(self, rows: Rows) -> list[str]:
        """Return the ids of rows."""
        ends = self._ends[rows].tolist()
        starts = self._ends[rows - 1].tolist()  # of row 0 whatever: its text ends at 0
        text = self._text
        return [text[start:end].decode() for start, end in zip(starts, ends, strict=True)]

    def find(self, item_id: str) -> int:
        """Return the id's row, new or not, 0 where it has none."""
        row = self._known.get(item_id)
        if row is None:
            row = self._look_up(item_id)
        return row

    def settled(self, item_ids: Iterable[str]) -> list[int]:
        """Return the rows of several ids, 0 for those that had none at the last `settle`."""
        ids = list(item_ids)
        if not ids:
            return []
        rows = list(map(self._known.get, ids, repeat(-1)))
        if -1 in rows:
            for place, item_id in enumerate(ids):
                if rows[place] < 0:
                    row = self._look_up(item_id)
                    rows[place] = row if row < self._n_settled else 0
        return rows

    def add(self, item_id: str) -> int:
        """Give an id without a row one, the next; return it."""
        if 2 * self._n >= len(self._slots):
            self._spread(2 * len(self._slots))
        if self._n == len(self._ends):
            self._ends = np.concatenate([self._ends, np.zeros(self._n, np.uint32)])
        row = self._n
        self._text += item_id.encode()
        self._ends[row] = len(self._text)
        self._n += 1
        self._slots[self._slot(item_id)] = row
        self._known.pop(item_id, None)
        return row

    def settle(self) -> None:
        """Let `settled` tell of all rows."""
        self._n_settled = self._n

    def reorder(self, old_of_new: Rows) -> None:
        """Follow rows that moved, row 0 the first; the ids of those that are left out go."""
        kept = [self._bytes(row) for row in old_of_new.tolist()]
        self._text = bytearray().join(kept)
        self._ends = np.cumsum([len(own) for own in kept]).astype(np.uint32)
        self._n = self._n_settled = len(kept)
        self._known.clear()
        self._spread(len(self._slots))

    def _bytes(self, row: int) -> bytearray:
        start = self._ends.item(row - 1) if row else 0
        return self._text[start : self._ends.item(row)]

    def _look_up(self, item_id: str) -> int:
        row = self._slots.item(self._slot(item_id)) if item_id else 0
        if row < self._n_settled:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[item_id] = row
        return row

    def _slot(self, item_id: str) -> int:
        """Return where the id's row is, or else where it belongs."""
        text, slots = item_id.encode(), self._slots
        at = hash_of(item_id) & len(slots) - 1
        while (row := slots.item(at)) and self._bytes(row) != text:
            at = at + 1 & len(slots) - 1
        return at

    def _spread(self, n_slots: int) -> None:
        """Make a table of a power of 2 of slots, all rows in it."""
        self._slots = slots = np.zeros(n_slots, np.int32)
        rows = np.arange(1, self._n)
        at = np.array([hash_of(self[row]) for row in rows.tolist()], np.int64) & n_slots - 1
        while len(rows):
            is_free = slots[at] == 0
            slots[at[is_free]] = rows[is_free]  # of those that meet at a slot one gets it
            is_left = slots[at] != rows
            rows, at = rows[is_left], at[is_left] + 1 & n_slots - 1
