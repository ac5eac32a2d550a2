"""Items and queries for the tests of candidate sources, made of what a test is about alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.item_rows import ItemRows
from models.neighbours import GRID
from models.sources import Query, Source

NOW_MS = 1_700_000_000_000
NONE = np.zeros(0, np.int64)


def items_of(ids: Sequence[str], **columns: Sequence[Any]) -> ItemRows:
    """Return items that can be had, with some columns by the order of `ids`."""
    items = ItemRows()
    rows = [items.add(item_id) for item_id in ids]
    items.is_listed[rows] = items.is_servable[rows] = True
    # Words of their own, unless a test says otherwise.
    items.text_key[rows] = rows
    for name, values in columns.items():
        getattr(items, name)[rows] = values
    for row in rows:
        items.touch(row)
    items.settle()
    return items


def query(items: ItemRows, **fields: Any) -> Query:
    """Return the query of a user of whom nothing is known, but for `fields`."""
    nothing: dict[str, Any] = {
        "time_ms": NOW_MS,
        "recent": NONE,
        "weights": NONE,
        "history": NONE,
        "types": NONE,
        "age_s": NONE,
        "cart": [],
        "country": 0,
        "category": 0,
        "closed": NONE,
        "seen": NONE,
    }
    arrays = {name for name, value in nothing.items() if value is NONE} | {"blocked"}
    given = {
        name: np.ascontiguousarray(value, np.int64) if name in arrays else value
        for name, value in fields.items()
    }
    return Query(items, **{**nothing, **given})


def rows_of(items: ItemRows, *ids: str) -> np.ndarray:
    """Return the rows of ids, in their order."""
    return np.array([items.row(item_id) for item_id in ids], np.int64)


def ids_by(source: Source, asked: Query) -> list[str]:
    """Return the ids that a source proposes for a query."""
    [rows] = source.propose([asked])
    return [asked.items.item_ids[row] for row in rows.tolist()]


def in_steps(vectors: np.ndarray) -> np.ndarray:
    """Return vectors on the grid of `models.neighbours` in its steps, as columns hold them."""
    return np.rint(vectors * GRID).astype(np.int16)
