"""The catalogue: all items that could be pushed, as each `decide` process holds them.

Reads   `push.items.v1` and `push.item-stats.v1`, message by message, and an embedder.
Emits   columns by row (`models.item_rows`), and the student's item vectors.

Messages change numbers at once; what is dear waits for `refresh`, which the flow calls between
batches: texts are encoded together, the first load is put in the order of ids, and vectors are
made for new rows. An item cannot be pushed before the refresh that encoded it.

An id that only events or statistics name has a row, so that its neighbours help, but it is never
a candidate: nobody described it.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.item_counts import COUNTRIES, INTEREST, NEIGHBOURS
from models.item_rows import OPEN_END_MS, ItemRows
from models.item_vectors import Embed, ItemVectors
from models.neighbours import to_grid
from models.text import encode_texts, item_text
from models.trend import WEEK_MS, newness_value, trend_value
from operators.messages import NONE_ARM, Item, ItemStats

Encode = Callable[[list[str]], NDArray[np.float32]]

_OF_WEEK: Final = tuple(
    (f"{kind}s", INTEREST[kind]) for kind in ("view", "click", "favorite", "cart", "purchase")
)
_ENCODE_AT_ONCE: Final = 1_024  # texts, 5 ms: bounds the memory of one call


class Catalogue(ItemRows):
    """Items, their statistics and their vectors.

    Parameters
    ----------
    encode
        Texts to vectors of `TEXT_DIM` columns, a row depending on its own text alone.
    max_rows
        Bound on items and on ids without an item, together.

    Notes
    -----
    0.9 kB a row, 4 M more for the student's vector, and the ids. Applying an item takes 4 µs,
    statistics with 50 neighbours 25 µs, encoding a text 30 µs (`python -m bench.candidates`).

    Examples
    --------
    >>> catalogue = Catalogue()
    >>> catalogue.apply("b", Item(item_id="b", title="red lamp", categories=["home"]))
    >>> catalogue.apply("a", Item(item_id="a", title="blue lamp"))
    >>> catalogue.refresh()
    True
    >>> catalogue.row("a"), catalogue.row("b"), catalogue.category_of("b"), len(catalogue)
    (1, 2, 'home', 2)
    >>> catalogue.apply("a", None)
    >>> len(catalogue), bool(catalogue.is_servable[1]), catalogue.refresh()
    (1, False, True)
    """

    def __init__(self, *, encode: Encode = encode_texts, max_rows: int = 1_000_000) -> None:
        super().__init__(max_rows=max_rows)
        self._encode = encode
        self._vectors: ItemVectors | None = None
        self._texts: dict[str, str] = {}  # item_id -> text to encode at the next refresh
        self._is_available: dict[str, bool] = {}  # of those, to apply once they are encoded
        self._n_listed = 0
        self._is_changed = False

    def __len__(self) -> int:
        """Return the number of items, available or not."""
        return self._n_listed

    def __contains__(self, item_id: object) -> bool:
        """Return whether an item with this id existed at the last refresh and still does."""
        return isinstance(item_id, str) and bool(self.is_listed[self.row(item_id)])

    def apply(self, item_id: str, item: Item | None) -> None:
        """Take an item, or its removal (None)."""
        self._is_changed = True
        if item is None:
            self._remove(item_id)
            return
        # An item called as the arm that sends nothing could not be told from it.
        row = self.add(item_id) if item_id != NONE_ARM else 0
        if row == 0:
            return
        self._n_listed += not self.is_listed[row]
        self.is_listed[row] = True
        self.price[row] = item.price
        self.category[row] = self.categories.add((item.categories or [""])[0])
        self.from_ms[row] = item.available_from_ms or 0
        self.until_ms[row] = item.available_until_ms or OPEN_END_MS
        self.created_ms[row] = item.created_ms or 0
        if not self.popularity[row]:
            self.trend[row] = self.trend_week[row] = newness_value(item.created_ms or 0)
        text = item_text(item.title, item.description, item.categories, item.tags)
        key = xxhash.xxh3_64_intdigest(text.encode())
        if int(self.text_key[row]) == key and item_id not in self._texts:
            self.is_servable[row] = item.is_available
        else:
            # Until then the old vector, if there is one, goes on standing for the item.
            self.text_key[row] = key
            self._texts[item_id] = text
            self._is_available[item_id] = item.is_available
            self.is_servable[row] &= item.is_available

    def apply_stats(self, stats: ItemStats) -> None:
        """Take what the stream taught about an item."""
        row = self.add(stats.item_id)
        if row == 0:
            return
        self._is_changed = True
        as_of = stats.as_of_ms
        self.stats_ms[row], self.first_seen_ms[row] = as_of, stats.first_seen_ms
        self.views[row], self.clicks[row] = stats.views, stats.clicks
        self.purchases[row] = stats.purchases
        self.pushes[row], self.opens[row] = stats.pushes, stats.opens
        self.favorites[row] = stats.favorites
        self.popularity[row] = stats.popularity_1d
        if stats.popularity_1d > 0:
            self.trend[row] = trend_value(stats.popularity_1d, as_of)
            of_week = sum(getattr(stats, name) * weight for name, weight in _OF_WEEK)
            self.trend_week[row] = trend_value(of_week, as_of, WEEK_MS)
        else:
            self.trend[row] = self.trend_week[row] = newness_value(int(self.created_ms[row]))
        self.country[row] = self.country_trend[row] = 0
        for slot, (country, count) in enumerate(list(stats.by_country.items())[:COUNTRIES]):
            self.country[row, slot] = self.countries.add(country)
            self.country_trend[row, slot] = trend_value(count, as_of)
        pairs = [(self.add(other), strength) for other, strength in stats.neighbours[:NEIGHBOURS]]
        self.neighbour_rows[row] = self.neighbour_strength[row] = 0
        if pairs:
            rows, strengths = zip(*pairs, strict=True)
            self.neighbour_rows[row, : len(rows)] = rows
            self.neighbour_strength[row, : len(rows)] = strengths

    @property
    def item_table(self) -> NDArray[np.float32]:
        """The student's vectors by row, float32, shape (n_rows, M), row 0 zeros.

        C-contiguous; (1, 0) without an embedder or items. Read it anew after each refresh.
        """
        return self._vectors.table if self._vectors else np.zeros((1, 0), np.float32)

    def set_embedder(self, embed: Embed) -> None:
        """Serve another student from now on: `refresh` is called, all rows get its vectors.

        `embed` takes ids and text vectors, see `models.item_vectors.ItemVectors`.
        """
        self._vectors = ItemVectors(embed)
        self._is_changed = True
        self.refresh()

    def refresh(self) -> bool:
        """Bring everything up to date; return whether anything changed. Call between batches."""
        if not self._is_changed:
            return False
        old_of_new = self.settle()
        if old_of_new is not None and self._vectors:
            self._vectors.reorder(old_of_new)
        changed = self._encode_texts()
        if self._vectors:
            self._vectors.update(self.item_ids, self.text_vectors, changed)
        self._is_changed = False
        return True

    def category_of(self, item_id: str) -> str:
        """Return the item's main category, "" where it has none or is unknown."""
        return self.categories.name(int(self.category[self.row(item_id)]))

    def _remove(self, item_id: str) -> None:
        row = self.find(item_id)
        if self.is_listed[row]:
            self._n_listed -= 1
            self.is_listed[row] = self.is_servable[row] = False
            # The vector stays: in users' histories a removed item still tells their taste.
            if self._texts.pop(item_id, None) is not None:
                self.text_key[row] = 0  # never encoded: should it come back, it must be
                del self._is_available[item_id]

    def _encode_texts(self) -> list[int]:
        """Encode what waits; return the rows that got a vector."""
        waiting = list(self._texts.items())
        changed: list[int] = []
        for start in range(0, len(waiting), _ENCODE_AT_ONCE):
            part = waiting[start : start + _ENCODE_AT_ONCE]
            rows = self.rows_of(item_id for item_id, _ in part)
            self.text_vectors[rows] = to_grid(self._encode([text for _, text in part]))
            self.is_servable[rows] = [self._is_available[item_id] for item_id, _ in part]
            changed += rows
        self._texts.clear()
        self._is_available.clear()
        return changed
