"""What is known of each item, as columns: one row an item, found by its id.

Reads   numbers and ids, by row.
Owns    which row an item has, growth, giving rows back, and what has changed lately.

Row 0 is padding: zeros, no item, so that a row number of 0 means "nothing" in every array. Rows
are in the order of arrival, which differs from process to process, so nothing downstream depends
on their numbers: equal values are ordered by `id_hash`.

New rows are hidden from `row` until `settle`, so that arrays made then hold every row that can be
asked for.

A row may exist without an item: an id that statistics name before its item came, or a removed
item whose neighbours still tell what goes with it. Such rows are dropped when they outnumber
the items.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.codes import Codes
from models.features import TEXT_DIM
from models.item_counts import COUNTRIES, HOUR_BLOCKS
from models.item_ids import ItemIds
from models.neighbours import GRID, hash_of
from models.ragged import Ragged
from models.vector_index import VectorIndex

Rows = NDArray[np.int64]

OPENS: Final = 1
CLOSES: Final = 2
# Parts of a neighbour: its row, and how strong it is to 3 decimals.
NEIGHBOUR: Final = (np.int32, np.float16)

_FIRST_CAPACITY: Final = 1_024
_SPARE_ROWS: Final = 1_024  # rows without an item that are not worth a reordering
_REMEMBERED: Final = 256  # settles whose changes are kept
_FEW: Final = 16  # a change of more than one row in so many is told as "everything"


class Column(NamedTuple):
    """One array of `ItemRows`; `width` 0 is one number a row."""

    name: str
    dtype: type[np.generic]
    width: int = 0


COLUMNS: Final = (
    Column("id_hash", np.int64),  # models.neighbours.hash_of
    Column("is_listed", np.bool_),  # an item with this id exists
    Column("is_servable", np.bool_),  # listed, said to be available, and its text is encoded
    # Since the last settle: whether any column has changed, the vector that content is found by,
    # the words, and what `is_servable` becomes: `OPENS` or `CLOSES`.
    Column("is_touched", np.bool_),
    Column("is_recoded", np.bool_),
    Column("is_reworded", np.bool_),
    Column("pending", np.int8),
    Column("from_ms", np.int64),
    Column("until_ms", np.int64),  # 0: no end
    Column("created_ms", np.int64),
    Column("price", np.float32),
    Column("category", np.uint16),  # code of the main category, 0: none
    Column("text_key", np.uint64),  # hash of the text; equal for the same words
    # In steps of 2^-11, see models.neighbours: what the student reads, and where another encoder
    # serves, its vectors.
    Column("text_vectors", np.int16, TEXT_DIM),
    Column("encoded_vectors", np.int16, TEXT_DIM),
    Column("stats_ms", np.int64),  # what the next eight are decayed to; 0: no statistics
    Column("views", np.float32),  # half-life 7 days, as the next five
    Column("clicks", np.float32),
    Column("purchases", np.float32),
    Column("pushes", np.float32),
    Column("opens", np.float32),
    Column("favorites", np.float32),
    Column("popularity", np.float32),  # half-life 1 day
    Column("first_seen_ms", np.int64),
    Column("trend", np.uint32),  # of models.trend: comparable whatever the rows' stats_ms
    Column("trend_week", np.uint32),  # the same of the counts of half-life 7 days
    Column("trend_years", np.uint32),  # and of half-life 730 days
    # What pairs with it is multiplied by, above 0 to 1: what everybody has goes with everything.
    # 1 until its statistics come.
    Column("rarity", np.float32),
    Column("repeat_s", np.uint32),  # usual pause before it is bought again; 0: not known
    Column("repeat_share", np.float32),  # of its buyers who come back for it, 0 to 1
    Column("trend_hour", np.uint32, HOUR_BLOCKS),  # and by block of the day; 0: nothing
    Column("country", np.uint16, COUNTRIES),  # codes, 0: none
    Column("country_trend", np.uint32, COUNTRIES),
)


class ItemRows:
    """Columns of items.

    Parameters
    ----------
    max_rows
        Bound on rows, padding and rows without an item included, >= 2. Ids beyond it get no
        row, and are counted in `n_refused`.

    Attributes
    ----------
    item_ids
        By row, see `models.item_ids`; row 0 is "".
    neighbours
        By row, rows and strengths, the strongest first.
    categories, countries
        Codes of the columns `category` and `country`.
    is_encoded
        Whether the content is of `encoded_vectors`, and not of `text_vectors`.
    content, tower
        What can be found by its content, and by the student's vectors of users.
    linear
        The same rows with the student's weights from item to item as neighbours, where these
        retrieve in the vectors' place.
    top_lists
        Kept by `models.trend`.
    mark, slots
        Scratch by row for one call at a time: zeros before and after.
    has_windows
        Whether any item may be had only for a time.
    version
        Counts calls of `settle`: what is derived from the columns is good until it changes.
    (columns)
        One attribute for each of `COLUMNS`, shape (capacity,) or (capacity, width).

    Notes
    -----
    A row takes 440 bytes, 256 of them content vectors, 150 more for its id, 8 and 8 for each
    neighbour. Arrays double, but what is not used yet takes no memory; while one column grows it
    is there twice.

    Examples
    --------
    >>> rows = ItemRows()
    >>> [rows.add("b"), rows.add("a"), rows.add("b"), rows.row("b")]
    [1, 2, 1, 0]
    >>> rows.settle()
    >>> list(rows.item_ids), rows.row("a")
    (['', 'b', 'a'], 2)
    """

    id_hash: NDArray[np.int64]
    is_listed: NDArray[np.bool_]
    is_servable: NDArray[np.bool_]
    is_touched: NDArray[np.bool_]
    is_recoded: NDArray[np.bool_]
    is_reworded: NDArray[np.bool_]
    pending: NDArray[np.int8]
    from_ms: NDArray[np.int64]
    until_ms: NDArray[np.int64]
    created_ms: NDArray[np.int64]
    price: NDArray[np.float32]
    category: NDArray[np.uint16]
    text_key: NDArray[np.uint64]
    text_vectors: NDArray[np.int16]
    encoded_vectors: NDArray[np.int16]
    stats_ms: NDArray[np.int64]
    views: NDArray[np.float32]
    clicks: NDArray[np.float32]
    purchases: NDArray[np.float32]
    pushes: NDArray[np.float32]
    opens: NDArray[np.float32]
    favorites: NDArray[np.float32]
    popularity: NDArray[np.float32]
    first_seen_ms: NDArray[np.int64]
    trend: NDArray[np.uint32]
    trend_week: NDArray[np.uint32]
    trend_years: NDArray[np.uint32]
    rarity: NDArray[np.float32]
    repeat_s: NDArray[np.uint32]
    repeat_share: NDArray[np.float32]
    trend_hour: NDArray[np.uint32]
    country: NDArray[np.uint16]
    country_trend: NDArray[np.uint32]

    def __init__(self, *, max_rows: int = 1_000_000) -> None:
        if max_rows < 2:
            raise ValueError(f"max_rows must be at least 2, got {max_rows}")
        self._max_rows = max_rows
        self.n_refused = 0
        self.version = 0
        self.categories = Codes()
        self.countries = Codes()
        self.neighbours = Ragged(*NEIGHBOUR)
        self.is_encoded = False
        self.content = VectorIndex(TEXT_DIM, self._content_vectors, self._hashes)
        self.tower = VectorIndex(1, self._no_vectors, self._hashes)
        self.linear: ItemRows | None = None
        self.top_lists: dict[tuple[str, int], Any] = {}
        self.item_ids = ItemIds()
        self.has_windows = False
        # Rows changed by each of the last settles; None: too many to tell.
        self._changes: deque[Rows | None] = deque(maxlen=_REMEMBERED)
        self.mark: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self.slots: NDArray[np.int32] = np.zeros(0, np.int32)
        self._capacity = 0
        self._grow(min(_FIRST_CAPACITY, max_rows))

    @property
    def n_rows(self) -> int:
        """Rows in use, the padding and new ones included."""
        return len(self.item_ids)

    @property
    def content_steps(self) -> NDArray[np.int16]:
        """What content is found by: vectors by row in steps of 2^-11, shape (capacity, D)."""
        return self.encoded_vectors if self.is_encoded else self.text_vectors

    def row(self, item_id: str) -> int:
        """Return the item's row, 0 for an id that had none at the last `settle`."""
        [row] = self.item_ids.settled([item_id])
        return row

    def rows_of(self, item_ids: Iterable[str]) -> list[int]:
        """Return the rows of several ids, 0 for those without one."""
        return self.item_ids.settled(item_ids)

    def find(self, item_id: str) -> int:
        """Return the item's row even if it is new, 0 for an id without one."""
        return self.item_ids.find(item_id)

    def add(self, item_id: str) -> int:
        """Return the item's row, a new one if it has none, 0 if the table is full."""
        row = self.find(item_id)
        if row or not item_id:
            return row
        row = self.n_rows
        if row >= self._max_rows:
            self.n_refused += 1
            return 0
        if row >= self._capacity:
            self._grow(min(2 * self._capacity, self._max_rows))
        self.item_ids.add(item_id)
        self.id_hash[row] = hash_of(item_id)
        self.rarity[row] = 1.0
        return row

    def touch(self, row: int) -> None:
        """Say that a row's columns have changed."""
        self.is_touched[row] = True

    def settle(self) -> Rows | None:
        """Make the columns whole after changes: new ids, excess rows without an item.

        Returns the rows' old numbers by new number, padding included, where rows have moved;
        the caller's own arrays by row must follow. None where they stayed.
        """
        self.item_ids.settle()
        moved: Rows | None = None
        if self._is_wasteful():
            moved = np.concatenate(([0], self._kept()))
            self._reorder(moved)
        touched = np.flatnonzero(self.is_touched[: self.n_rows])
        is_many = moved is not None or len(touched) > self.n_rows // _FEW + 64
        self._changes.append(None if is_many else touched)
        for flags in (self.is_touched, self.is_recoded, self.is_reworded, self.pending):
            flags[: self.n_rows] = 0
        self.has_windows = self.has_windows or bool(self.from_ms.any() or self.until_ms.any())
        self.version += 1
        return moved

    def changed_since(self, version: int) -> Rows | None:
        """Return the rows that were touched after a version; None where that may be all."""
        n = self.version - version
        if n > len(self._changes):
            return None
        parts: list[Rows] = []
        for at in range(len(self._changes) - n, len(self._changes)):
            part = self._changes[at]
            if part is None:
                return None
            parts.append(part)
        return np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))

    def is_open(self, rows: Rows, time_ms: int | NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of `rows` can be had at a time: servable, and within their window.

        Times broadcast to rows. Windows count from the first `settle` on that sees one.
        """
        is_open = self.is_servable[rows]
        if not self.has_windows:
            return is_open
        is_open &= self.from_ms[rows] <= time_ms
        until_ms = self.until_ms[rows]
        is_open &= (until_ms == 0) | (until_ms > time_ms)
        return is_open

    def is_among(self, rows: Rows, chosen: Rows) -> NDArray[np.bool_]:
        """Return which of `rows` are among `chosen`; the cost is that of both, not of all rows."""
        self.mark[chosen] = True
        found = self.mark[rows]
        self.mark[chosen] = False
        return found

    def _content_vectors(self, rows: Rows) -> NDArray[np.float32]:
        # `take` is three times as fast as an index here.
        vectors: NDArray[np.float32] = self.content_steps.take(rows, axis=0).astype(np.float32)
        vectors *= np.float32(1 / GRID)
        return vectors

    def _no_vectors(self, rows: Rows) -> NDArray[np.float32]:
        return np.zeros((*rows.shape, 1), np.float32)

    def _hashes(self, rows: Rows) -> NDArray[np.int64]:
        return self.id_hash[rows]

    def _is_wasteful(self) -> bool:
        n_empty = self.n_rows - 1 - int(np.count_nonzero(self.is_listed[: self.n_rows]))
        is_full = self.n_rows >= self._max_rows and n_empty > 0
        return is_full or n_empty > max(_SPARE_ROWS, self.n_rows // 2)

    def _kept(self) -> Rows:
        """Return the rows to keep, in the order they have."""
        rows = np.arange(1, self.n_rows)
        empty = rows[~self.is_listed[rows]]
        # Half of the empty rows stay, those with the newest statistics: their items are still
        # in users' histories.
        ids = self.item_ids
        by_age = sorted(empty.tolist(), key=lambda row: (-int(self.stats_ms[row]), ids[row]))
        is_kept = self.is_listed[: self.n_rows].copy()
        is_kept[by_age[: len(by_age) // 2]] = True
        return rows[is_kept[1:]]

    def _reorder(self, old_of_new: Rows) -> None:
        new_of_old = np.zeros(self.n_rows, np.int64)
        new_of_old[old_of_new] = np.arange(len(old_of_new))
        for column in COLUMNS:
            array = getattr(self, column.name)
            if array.any():
                array[: len(old_of_new)] = array[old_of_new]
                array[len(old_of_new) : self.n_rows] = 0
        self.content.reorder(new_of_old)
        self.tower.reorder(new_of_old)
        self.neighbours.reorder(old_of_new)
        named = self.neighbours.values[0]
        named[:] = new_of_old[named]  # dropped ones become padding
        self.item_ids.reorder(old_of_new)

    def _grow(self, capacity: int) -> None:
        for column in COLUMNS:
            shape = (capacity, column.width) if column.width else (capacity,)
            array: NDArray[Any] = np.zeros(shape, column.dtype)
            # What nobody wrote takes no memory, and should not by being copied.
            if self._capacity and (held := getattr(self, column.name)).any():
                array[: self._capacity] = held
            setattr(self, column.name, array)
        self.mark = np.zeros(capacity, np.bool_)
        self.slots = np.zeros(capacity, np.int32)
        self._capacity = capacity
