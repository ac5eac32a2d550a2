"""The catalogue: all items that could be pushed, as each `decide` process holds them.

Reads   `push.items.v1`, `push.item-stats.v1` and vectors of items, message by message, and an
        embedder.
Emits   columns by row (`models.item_rows`), what of an item is shown, indexes of the items'
        content, and the student's item vectors and their index.

Messages change numbers at once; what is dear waits for `refresh`, which the flow calls between
batches: indexes follow, and vectors are made for new rows. A new item, and one with other words,
cannot be pushed as such before the refresh.

An id that only events or statistics name has a row, so that its neighbours help, but it is never
a candidate: nobody described it.
"""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from models.features import TEXT_DIM
from models.item_counts import COUNTRIES, HOUR_BLOCKS, INTEREST, NEIGHBOURS
from models.item_rows import CLOSES, OPENS, ItemRows
from models.item_vectors import TYPICAL, Embed, ItemVectors, directions
from models.neighbours import GRID, to_grid
from models.ragged import Ragged
from models.text import encode_texts
from models.trend import WEEK_MS, YEARS_MS, newness_value, trend_value
from models.vector_index import VectorIndex
from operators.item_text import own_text
from operators.messages import NONE_ARM, Item, ItemStats, LocalText

Rows = NDArray[np.int64]
Encode = Callable[[list[str]], NDArray[np.float32]]

HASHED: Final = "hash-1"  # id of the encoder that needs no model, `models.text`

_OF_WEEK: Final = tuple(
    (f"{kind}s", INTEREST[kind]) for kind in ("view", "click", "favorite", "cart", "purchase")
)
# Halfway from not at all to cosine's: of 0 to 0.5 tuned on online-retail and MovieLens.
_RARITY_POWER: Final = 0.25
_RARITY_PRIOR: Final = 5.0  # weighted interactions
_REPEAT_PRIOR: Final = 10.0  # purchases: a single one that came back says little
_STRONGEST: Final = 65_504.0  # pair: the largest float16
_AT_ONCE: Final = 16_384  # rows whose vectors are looked at in one call, 4 MB
_DECODED: Final = 4_096  # items kept ready to be shown, 1 kB each


class _Shown(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What of an item is needed to show it, in 100 bytes."""

    title: str
    category: str
    price: float
    from_ms: int | None
    until_ms: int | None
    is_available: bool
    image_url: str
    deep_link: str
    titles: dict[str, str]  # by locale


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(_Shown)


class Catalogue(ItemRows):
    """Items, their statistics and their vectors.

    Parameters
    ----------
    encode
        Texts to vectors of `TEXT_DIM` columns, a row depending on its own text alone.
    max_rows
        Bound on items and on ids without an item, together.

    Attributes
    ----------
    encoder
        Id of the encoder whose vectors are `content`.

    Notes
    -----
    0.86 kB an item with statistics, 12 neighbours, a short title and the vectors of a student,
    which are a quarter of it (`python -m bench.index`). Applying an item takes 45 µs, 30 of them
    its words, statistics with 50 neighbours 25 µs.

    Examples
    --------
    >>> catalogue = Catalogue()
    >>> catalogue.apply("b", Item(item_id="b", title="red lamp", categories=["home"]))
    >>> catalogue.apply("a", Item(item_id="a", title="blue lamp"))
    >>> catalogue.refresh()
    True
    >>> catalogue.row("b"), catalogue.row("a"), catalogue.category_of("b"), len(catalogue)
    (1, 2, 'home', 2)
    >>> catalogue.apply("b", None)
    >>> len(catalogue), bool(catalogue.is_servable[1]), catalogue.refresh()
    (1, False, True)
    >>> catalogue.item("a").title, catalogue.item("b")
    ('blue lamp', None)
    """

    def __init__(self, *, encode: Encode = encode_texts, max_rows: int = 1_000_000) -> None:
        super().__init__(max_rows=max_rows)
        self.encoder = HASHED
        self._encode = encode
        self._vectors: ItemVectors | None = None
        self._length = 1.0
        self._documents = Ragged(np.uint8)  # `_Shown` by row
        self._decoded: dict[str, Item] = {}
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
        from_ms, until_ms = item.available_from_ms or 0, item.available_until_ms or 0
        # What nobody writes takes no memory, and few items have a window.
        if self.from_ms[row] != from_ms or self.until_ms[row] != until_ms:
            self.from_ms[row], self.until_ms[row] = from_ms, until_ms
        self.created_ms[row] = item.created_ms or 0
        if not self.popularity[row]:
            newness = newness_value(item.created_ms or 0)
            self.trend[row] = self.trend_week[row] = self.trend_years[row] = newness
        self._documents.put(row, np.frombuffer(_document(item), np.uint8))
        self._decoded.pop(item_id, None)
        self.touch(row)
        text = own_text(item)
        key = xxhash.xxh3_64_intdigest(text.encode())
        if int(self.text_key[row]) == key and not self.pending[row]:
            self.is_servable[row] = item.is_available
            return
        self.text_key[row] = key
        self.text_vectors[row] = np.rint(to_grid(self._encode([text]))[0] * GRID)
        self.is_reworded[row] = True
        if not self.is_encoded:
            self.is_recoded[row] = True
        self.pending[row] = OPENS if item.is_available else CLOSES
        self.is_servable[row] &= item.is_available

    def apply_vector(self, item_id: str, vector: bytes | None) -> None:
        """Take an item's vector of the encoder that serves, or its removal.

        Parameters
        ----------
        vector
            `TEXT_DIM` int16, little-endian, in steps of 2^-11. Without one the item is found by
            all but its content.
        """
        row = self.add(item_id)
        if row == 0:
            return
        self._is_changed = True
        self.encoded_vectors[row] = 0 if vector is None else np.frombuffer(vector, "<i2")
        self.is_recoded[row] = True
        self.touch(row)

    def serve_encoder(self, encoder: str, vectors: Mapping[str, bytes]) -> None:
        """Search these vectors from now on, and no others; by item, as `apply_vector` has them."""
        self.encoder, self.is_encoded = encoder, encoder != HASHED
        self.encoded_vectors[: self.n_rows] = 0
        for item_id, vector in vectors.items():
            self.apply_vector(item_id, vector)
        self.content = VectorIndex(TEXT_DIM, self._content_vectors, self._hashes)
        self.is_recoded[: self.n_rows] = True
        self._is_changed = True
        self.refresh()

    def item(self, item_id: str) -> Item | None:
        """Return what is shown of an item: no description, no tags, the main category alone."""
        item = self._decoded.get(item_id)
        if item is None:
            row = self.find(item_id)
            if not self.is_listed[row]:
                return None
            if len(self._decoded) >= _DECODED:
                self._decoded.clear()
            item = self._decoded[item_id] = _item(item_id, self._documents.get(row)[0].tobytes())
        return item

    def apply_stats(self, stats: ItemStats) -> None:
        """Take what the stream taught about an item."""
        row = self.add(stats.item_id)
        if row == 0:
            return
        self._is_changed = True
        self.touch(row)
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
        self.trend_years[row] = (
            trend_value(stats.interest, as_of, YEARS_MS) if stats.interest > 0 else self.trend[row]
        )
        self.rarity[row] = (stats.interest + _RARITY_PRIOR) ** -_RARITY_POWER
        self.repeat_s[row], self.repeat_share[row] = _repeat(stats)
        self.trend_hour[row] = 0
        for block, count in enumerate(stats.by_hour[:HOUR_BLOCKS]):
            self.trend_hour[row, block] = trend_value(count, as_of, WEEK_MS) if count > 0 else 0
        self.country[row] = self.country_trend[row] = 0
        for slot, (country, count) in enumerate(list(stats.by_country.items())[:COUNTRIES]):
            self.country[row, slot] = self.countries.add(country)
            self.country_trend[row, slot] = trend_value(count, as_of)
        pairs = stats.neighbours[:NEIGHBOURS]
        others = [self.add(other) for other, _ in pairs]
        self.neighbours.put(row, others, [min(strength, _STRONGEST) for _, strength in pairs])

    @property
    def item_table(self) -> NDArray[np.float16]:
        """The student's vectors by row, float16, shape (n_rows, M), row 0 zeros.

        C-contiguous; (1, 0) without an embedder or items. Read it anew after each refresh.
        """
        return self._vectors.table if self._vectors else np.zeros((1, 0), np.float16)

    def set_embedder(self, embed: Embed, length: float = 1.0) -> None:
        """Serve another student from now on: `refresh` is called, all rows get its vectors.

        Parameters
        ----------
        embed
            Takes ids and text vectors, see `models.item_vectors.ItemVectors`.
        length
            Of its item vectors, typically, above 0: what the index makes its steps by. Columns
            4 times as long as is usual for that length, and longer, are all the same to it.
        """
        self._vectors = ItemVectors(embed)
        self._length = length
        self.tower = VectorIndex(1, self._no_vectors, self._hashes)
        self._is_changed = True
        self.refresh()

    def refresh(self) -> bool:
        """Bring everything up to date; return whether anything changed. Call between batches."""
        if not self._is_changed:
            return False
        pending = np.flatnonzero(self.pending[: self.n_rows])
        self.is_servable[pending] = self.pending[pending] == OPENS
        touched = np.flatnonzero(self.is_touched[: self.n_rows] | self.is_recoded[: self.n_rows])
        self._follow(self.content, touched, self.is_recoded[touched])
        if self._vectors:
            reworded = np.flatnonzero(self.is_reworded[: self.n_rows]).tolist()
            named = self.item_ids.named
            embedded = self._vectors.update(self.n_rows, named, self._text_vectors, reworded)
            dim = self._vectors.table.shape[1]
            if len(self.tower) == 0 and dim:
                self.tower = VectorIndex(dim, self._student_vectors, self._hashes, length=TYPICAL)
            rows = np.union1d(touched, embedded)
            self._follow(self.tower, rows, self.is_among(rows, embedded))
        old_of_new = self.settle()
        if old_of_new is not None:
            self._documents.reorder(old_of_new)
            if self._vectors:
                self._vectors.reorder(old_of_new)
        self._is_changed = False
        return True

    def category_of(self, item_id: str) -> str:
        """Return the item's main category, "" where it has none or is unknown.

        Asked for every event: 0.3 µs.
        """
        row = self.find(item_id)
        return self.categories.name(int(self.category[row])) if self.is_listed[row] else ""

    def _remove(self, item_id: str) -> None:
        row = self.find(item_id)
        if self.is_listed[row]:
            self._n_listed -= 1
            self.is_listed[row] = self.is_servable[row] = False
            # The vector stays: in users' histories a removed item still tells their taste.
            self._documents.put(row, ())
            self._decoded.pop(item_id, None)
            self.pending[row] = 0
            self.touch(row)

    def _follow(self, index: VectorIndex, rows: Rows, is_other: NDArray[np.bool_]) -> None:
        """Make an index hold those of `rows` that can be found; `is_other`: by another vector."""
        for start in range(0, len(rows), _AT_ONCE):
            part, other = rows[start : start + _AT_ONCE], is_other[start : start + _AT_ONCE]
            can_be = self.is_servable[part] & index.vectors(part).any(axis=1)
            index.remove(part[~can_be])
            index.put(part[can_be & (other | ~index.holds(part))])

    def _text_vectors(self, rows: Rows) -> NDArray[np.float32]:
        return self.text_vectors[rows].astype(np.float32) * np.float32(1 / GRID)

    def _student_vectors(self, rows: Rows) -> NDArray[np.float32]:
        return directions(self.item_table, rows, self._length)


def _document(item: Item) -> bytes:
    return _ENCODER.encode(
        _Shown(
            item.title,
            item.categories[0] if item.categories else "",
            item.price,
            item.available_from_ms,
            item.available_until_ms,
            item.is_available,
            item.image_url,
            item.deep_link,
            {locale: text.title for locale, text in item.locales.items()},
        )
    )


def _item(item_id: str, document: bytes) -> Item:
    shown = _DECODER.decode(document)
    return Item(
        item_id=item_id,
        title=shown.title,
        categories=[shown.category] if shown.category else [],
        price=shown.price,
        available_from_ms=shown.from_ms,
        available_until_ms=shown.until_ms,
        is_available=shown.is_available,
        image_url=shown.image_url,
        deep_link=shown.deep_link,
        locales={locale: LocalText(title=title) for locale, title in shown.titles.items()},
    )


def _repeat(stats: ItemStats) -> tuple[int, float]:
    """Return the usual pause in seconds before an item is bought again, and how many come back."""
    share = stats.repeat_buys / (stats.first_buys + stats.repeat_buys + _REPEAT_PRIOR)
    return int(stats.repeat_days * 86_400), share
