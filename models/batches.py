"""Lists of a whole batch as one array, and what of them the queries rule out.

Reads   lists of rows, one a query, and what each query refuses.
Emits   arrays with a line a query, filled up with row 0, and of those what may be proposed.

A call of NumPy costs more than what it does to a hundred rows, so what all queries need is done
for all of them at once. No line is looked at for another one's sake: a query's answer does not
depend on who shares the batch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from models.sources import Query

Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]

_BLOCK: Final = 31 << 20  # bytes: just below the largest block that glibc learns from


def keep_freed_memory() -> None:
    """Let the process keep what a batch frees for the next one, 62 MB at most.

    glibc gives freed memory back to the system beyond twice the largest block that was ever freed
    whole, and a batch frees more than that. Each page that has to come back takes 2 µs, which is
    60 µs a trigger. Nothing is written here, so that no memory is taken; where there is no glibc
    it is without effect.
    """
    np.empty(_BLOCK, np.uint8)


def padded(lists: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], Flags]:
    """Return lists as the lines of an array, filled up with 0, and what of it is theirs.

    >>> lines, is_own = padded([np.array([7, 8]), np.array([9])])
    >>> lines.tolist(), is_own.tolist()
    ([[7, 8], [9, 0]], [[True, True], [True, False]])
    """
    sizes = np.array([len(own) for own in lists])
    is_own: Flags = np.arange(sizes.max()) < sizes[:, None]  # (B, L)
    together = np.concatenate(lists)
    if len(together) == is_own.size:
        return together.reshape(is_own.shape), is_own
    lines = np.zeros(is_own.shape, together.dtype)
    lines[is_own] = together
    return lines, is_own


def firsts(lines: Rows, is_wanted: Flags, limit: int) -> list[Rows]:
    """Return of each line the first `limit` that are wanted.

    >>> wanted = np.array([[True, False, True], [True, True, True]])
    >>> [own.tolist() for own in firsts(np.array([[5, 6, 7], [7, 6, 5]]), wanted, 2)]
    [[5, 7], [7, 6]]
    """
    return [own[wanted][:limit] for own, wanted in zip(lines, is_wanted, strict=True)]


def are_refused(queries: Sequence["Query"], lines: Rows) -> Flags:
    """Return what `Query.is_refused` says of each query's line, shape (B, L); row 0 is refused."""
    items = queries[0].items
    now_ms = np.array([query.time_ms for query in queries])[:, None]  # (B, 1)
    refused = ~items.is_open(lines, now_ms)
    for b, query in enumerate(queries):
        if len(query.blocked) or len(query.blocked_categories):
            refused[b] = query.is_refused(lines[b])
    return refused


def are_closed(queries: Sequence["Query"], lines: Rows) -> Flags:
    """Return what `Query.is_closed` says of each query's line, shape (B, L)."""
    closed = queries[0].items.are_among(lines, [query.closed for query in queries])
    return are_refused(queries, lines) | closed


def are_seen(queries: Sequence["Query"], lines: Rows) -> Flags:
    """Return what `Query.is_seen` says of each query's line, shape (B, L)."""
    seen = queries[0].items.are_among(lines, [query.seen for query in queries])
    return are_refused(queries, lines) | seen
