"""What is known of each item, as columns: one row an item, found by its id.

Reads   numbers and ids, by row.
Owns    which row an item has, the order of ids, growth, and giving rows back.

Row 0 is padding: zeros, no item, so that a row number of 0 means "nothing" in every array.
`settle` sorts all rows by id the first time (two processes that read the same items in any
order agree), and appends in order of arrival from then on. Nothing downstream depends on the
row numbers: equal values are ordered by `id_rank`, a row's place among the sorted ids.

New rows are hidden from `row` until then, so that arrays made at a `settle` hold every row that
can be asked for.

A row may exist without an item: an id that statistics name before its item came, or a removed
item whose neighbours still tell what goes with it. Such rows are dropped when they outnumber
the items.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.features import TEXT_DIM
from models.item_counts import COUNTRIES, NEIGHBOURS

OPEN_END_MS: Final = 2**62  # "available for ever"

_FIRST_CAPACITY: Final = 1_024
# Up to this many new ids are put into the sorted order one by one, 20 µs each at 100,000 rows;
# sorting those anew takes 50 ms.
_INSERT_AT_MOST: Final = 256
_SPARE_ROWS: Final = 1_024  # rows without an item that are not worth a reordering


class Codes:
    """Small numbers for names, in the order of arrival; 0 is no name.

    Parameters
    ----------
    limit
        Bound on names; later ones are taken for none.

    Examples
    --------
    >>> codes = Codes(limit=2)
    >>> codes.add("shoes"), codes.add("hats"), codes.add("socks"), codes.get("hats")
    (1, 2, 0, 2)
    >>> codes.name(2), codes.name(0)
    ('hats', '')
    """

    def __init__(self, limit: int = 65_536) -> None:
        self._limit = limit
        self._names = [""]
        self._code_of = {"": 0}

    def add(self, name: str) -> int:
        """Return the name's code, a new one if it has none, 0 if there are too many."""
        code = self._code_of.get(name)
        if code is None:
            if len(self._names) > self._limit:
                return 0
            code = self._code_of[name] = len(self._names)
            self._names.append(name)
        return code

    def get(self, name: str) -> int:
        """Return the name's code, 0 if it has none."""
        return self._code_of.get(name, 0)

    def name(self, code: int) -> str:
        """Return the name of a code."""
        return self._names[code]


class Column(NamedTuple):
    """One array of `ItemRows`; `width` 0 is one number a row."""

    name: str
    dtype: type[np.generic]
    width: int = 0
    fill: int = 0


COLUMNS: Final = (
    Column("id_rank", np.int64),
    Column("is_listed", np.bool_),  # an item with this id exists
    Column("is_servable", np.bool_),  # listed, said to be available, and its text is encoded
    Column("from_ms", np.int64),
    Column("until_ms", np.int64, fill=OPEN_END_MS),
    Column("created_ms", np.int64),
    Column("price", np.float64),
    Column("category", np.int64),  # code of the main category, 0: none
    Column("text_key", np.uint64),  # hash of the text; equal for the same words
    Column("text_vectors", np.float32, TEXT_DIM),  # on the grid of models.neighbours
    Column("stats_ms", np.int64),  # what the next eight are decayed to; 0: no statistics
    Column("views", np.float64),  # half-life 7 days, as the next five
    Column("clicks", np.float64),
    Column("purchases", np.float64),
    Column("pushes", np.float64),
    Column("opens", np.float64),
    Column("favorites", np.float64),
    Column("popularity", np.float64),  # half-life 1 day
    Column("first_seen_ms", np.int64),
    Column("trend", np.int64),  # of models.trend: comparable whatever the rows' stats_ms
    Column("trend_week", np.int64),  # the same of the counts of half-life 7 days
    Column("country", np.int64, COUNTRIES),  # codes, 0: none
    Column("country_trend", np.int64, COUNTRIES),
    Column("neighbour_rows", np.int32, NEIGHBOURS),  # strongest first, 0: none
    Column("neighbour_strength", np.float32, NEIGHBOURS),
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
        By row; row 0 is "".
    row_of_rank
        int64, shape (n_rows,): the row of the i-th smallest id.
    categories, countries
        Codes of the columns `category` and `country`.
    version
        Counts calls of `settle`: what is derived from the columns is good until it changes.
    (columns)
        One attribute for each of `COLUMNS`, shape (capacity,) or (capacity, width).

    Notes
    -----
    A row takes 0.9 kB, 400 bytes of it neighbours and 256 the text vector. Arrays double, so at
    times they take twice that.

    Examples
    --------
    >>> rows = ItemRows()
    >>> [rows.add("b"), rows.add("a"), rows.add("b"), rows.row("b")]
    [1, 2, 1, 0]
    >>> rows.settle()
    array([0, 2, 1])
    >>> rows.item_ids, rows.row("a")
    (['', 'a', 'b'], 1)
    """

    id_rank: NDArray[np.int64]
    is_listed: NDArray[np.bool_]
    is_servable: NDArray[np.bool_]
    from_ms: NDArray[np.int64]
    until_ms: NDArray[np.int64]
    created_ms: NDArray[np.int64]
    price: NDArray[np.float64]
    category: NDArray[np.int64]
    text_key: NDArray[np.uint64]
    text_vectors: NDArray[np.float32]
    stats_ms: NDArray[np.int64]
    views: NDArray[np.float64]
    clicks: NDArray[np.float64]
    purchases: NDArray[np.float64]
    pushes: NDArray[np.float64]
    opens: NDArray[np.float64]
    favorites: NDArray[np.float64]
    popularity: NDArray[np.float64]
    first_seen_ms: NDArray[np.int64]
    trend: NDArray[np.int64]
    trend_week: NDArray[np.int64]
    country: NDArray[np.int64]
    country_trend: NDArray[np.int64]
    neighbour_rows: NDArray[np.int32]
    neighbour_strength: NDArray[np.float32]

    def __init__(self, *, max_rows: int = 1_000_000) -> None:
        if max_rows < 2:
            raise ValueError(f"max_rows must be at least 2, got {max_rows}")
        self._max_rows = max_rows
        self.n_refused = 0
        self.version = 0
        self.categories = Codes()
        self.countries = Codes()
        self.item_ids: list[str] = [""]
        self._row_of: dict[str, int] = {"": 0}
        self._new: dict[str, int] = {}  # since the last settle
        self._sorted_ids: list[str] = []
        self.row_of_rank: NDArray[np.int64] = np.zeros(1, np.int64)
        self._windowed: NDArray[np.int64] = np.zeros(0, np.int64)
        self._capacity = 0
        self._grow(min(_FIRST_CAPACITY, max_rows))

    @property
    def n_rows(self) -> int:
        """Rows in use, the padding and new ones included."""
        return len(self.item_ids)

    def row(self, item_id: str) -> int:
        """Return the item's row, 0 for an id that had none at the last `settle`."""
        return self._row_of.get(item_id, 0)

    def rows_of(self, item_ids: Iterable[str]) -> list[int]:
        """Return the rows of several ids, 0 for those without one."""
        get = self._row_of.get
        return [get(item_id, 0) for item_id in item_ids]

    def find(self, item_id: str) -> int:
        """Return the item's row even if it is new, 0 for an id without one."""
        return self._row_of.get(item_id) or self._new.get(item_id, 0)

    def add(self, item_id: str) -> int:
        """Return the item's row, a new one if it has none, 0 if the table is full."""
        row = self.find(item_id)
        if row:
            return row
        row = self.n_rows
        if row >= self._max_rows:
            self.n_refused += 1
            return 0
        if row >= self._capacity:
            self._grow(min(2 * self._capacity, self._max_rows))
        self.item_ids.append(item_id)
        self._new[item_id] = row
        return row

    def settle(self) -> NDArray[np.int64] | None:
        """Make the columns whole after changes: order of ids, excess rows without an item.

        Returns the rows' old numbers by new number, padding included, where rows have moved;
        the caller's own arrays by row must follow. None where they stayed.
        """
        self._row_of |= self._new
        self._new.clear()
        moved: NDArray[np.int64] | None = None
        if len(self._sorted_ids) < 2 or self._is_wasteful():
            moved = self._reorder(np.concatenate(([0], self._kept())))
        elif self.n_rows != len(self._sorted_ids):
            self._rank_new()
        has_window = (self.from_ms > 0) | (self.until_ms < OPEN_END_MS)
        self._windowed = np.flatnonzero(has_window[: self.n_rows])
        self.version += 1
        return moved

    def closed_rows(self, time_ms: int) -> NDArray[np.int64]:
        """Return the rows whose window of availability, as last settled, is not now."""
        rows = self._windowed
        closed: NDArray[np.int64] = rows[
            (self.from_ms[rows] > time_ms) | (self.until_ms[rows] <= time_ms)
        ]
        return closed

    def _is_wasteful(self) -> bool:
        n_empty = self.n_rows - 1 - int(np.count_nonzero(self.is_listed[: self.n_rows]))
        is_full = self.n_rows >= self._max_rows and n_empty > 0
        return is_full or n_empty > max(_SPARE_ROWS, self.n_rows // 2)

    def _kept(self) -> NDArray[np.int64]:
        """Return the rows to keep in their new order: sorted the first time, then as they were."""
        if len(self._sorted_ids) < 2:
            ids = self.item_ids
            return np.array(sorted(range(1, self.n_rows), key=ids.__getitem__), np.int64)
        rows = np.arange(1, self.n_rows)
        empty = rows[~self.is_listed[rows]]
        # Half of the empty rows stay, those with the newest statistics: their items are still
        # in users' histories.
        by_age = sorted(empty.tolist(), key=lambda r: (-int(self.stats_ms[r]), self.item_ids[r]))
        is_kept = self.is_listed[: self.n_rows].copy()
        is_kept[by_age[: len(by_age) // 2]] = True
        return rows[is_kept[1:]]

    def _reorder(self, old: NDArray[np.int64]) -> NDArray[np.int64]:
        new_of_old = np.zeros(self.n_rows, np.int64)
        new_of_old[old] = np.arange(len(old))
        for column in COLUMNS:
            array = getattr(self, column.name)
            array[: len(old)] = array[old]
            array[len(old) :] = column.fill
        self.neighbour_rows[:] = new_of_old[self.neighbour_rows]  # dropped ones become padding
        self.item_ids = [self.item_ids[row] for row in old.tolist()]
        self._row_of = {item_id: row for row, item_id in enumerate(self.item_ids)}
        self._rank_all()
        return old

    def _rank_all(self) -> None:
        by_id = sorted(range(self.n_rows), key=self.item_ids.__getitem__)
        self._sorted_ids = [self.item_ids[row] for row in by_id]
        self.row_of_rank = np.array(by_id, np.int64)
        self.id_rank[self.row_of_rank] = np.arange(self.n_rows)

    def _rank_new(self) -> None:
        first_new = len(self._sorted_ids)
        if self.n_rows - first_new > _INSERT_AT_MOST:
            self._rank_all()
            return
        for row in range(first_new, self.n_rows):
            rank = bisect_left(self._sorted_ids, self.item_ids[row])
            insort(self._sorted_ids, self.item_ids[row])
            ranks = self.id_rank[:row]
            ranks[ranks >= rank] += 1
            self.id_rank[row] = rank
        self.row_of_rank = np.empty(self.n_rows, np.int64)
        self.row_of_rank[self.id_rank[: self.n_rows]] = np.arange(self.n_rows)

    def _grow(self, capacity: int) -> None:
        for column in COLUMNS:
            shape = (capacity, column.width) if column.width else (capacity,)
            array = np.full(shape, column.fill, column.dtype)
            if self._capacity:
                array[: self._capacity] = getattr(self, column.name)
            setattr(self, column.name, array)
        self._capacity = capacity
