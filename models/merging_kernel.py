"""The loop that thins out one query's rows, compiled. What it does and why: `models.merging`.

Reads   rows, best first, and columns of `models.item_rows`.
Emits   the places of those that stay, in order.
Owns    no state.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled, fetch

Rows = NDArray[np.int64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Whole = int | np.integer[Any]

_COMPARED_TO: Final = 64  # the best rows by content: to all would cost twice as much
_LOOKED_AT: Final = 8  # columns that tell of nearly all that they are no copies
_NEVER: Final = 1 << 13  # in steps, of a column: far apart from any
_LONGEST: Final = 2.02  # squared lengths of two vectors, added up


@compiled()
def _first(is_excess: Flags, is_out: Flags, n: int) -> Ints:
    """Return the first n places that are not out, in order; excess where too little else is."""
    n_good = 0
    n_left = 0
    for at in range(len(is_out)):
        n_good += not is_out[at] and not is_excess[at]
        n_left += not is_out[at]
    n_excess = max(min(n, n_left) - n_good, 0)
    kept = np.empty(min(n, n_left), np.int64)
    size = 0
    for at in range(len(is_out)):
        if is_out[at] or (is_excess[at] and not n_excess):
            continue
        if size == len(kept):
            break
        n_excess -= is_excess[at]
        kept[size] = at
        size += 1
    return kept


@compiled()
def _are_excess(codes: Ints, cap: int, taken: NDArray[np.int32]) -> Flags:
    """Return which rows have `cap` better ones of their category; code 0 is no category."""
    found = np.zeros(len(codes), np.bool_)
    for at in range(len(codes)):
        if codes[at]:
            taken[codes[at]] += 1
            found[at] = taken[codes[at]] > cap
    for code in codes:
        taken[code] = 0
    return found


@compiled()
def _is_near(
    steps: NDArray[np.int16],
    rows: Rows,
    own: NDArray[np.int16],
    apart: NDArray[np.int32],
    most_apart: Whole,
    least: Any,
) -> bool:
    """Return whether the product of a vector with one that is not far apart is at least `least`."""
    for before in range(len(apart)):
        if apart[before] <= most_apart:
            other, total = steps[rows[before]], np.int32(0)
            for column in range(steps.shape[1]):
                product = np.int32(np.int32(own[column]) * np.int32(other[column]))
                total = np.int32(total + product)
            if total >= least:
                return True
    return False


@compiled()
def _are_copies(
    keys: NDArray[np.uint64],
    steps: NDArray[np.int16],
    rows: Rows,
    is_excess: Flags,
    least: np.float32,
    limit: int,
) -> Flags:
    """Return which rows repeat the words, or nearly the content, of a better one that is no copy.

    `least` is of the cosine with one of the best 64; above 1: the words alone count. Vectors are
    on a grid, so products are exact. Nobody asks behind the first `limit` that are neither.
    """
    n_compared = _COMPARED_TO if least <= 1 else 0
    # Of two vectors at most 1 long whose product is `least` or more, the squared differences of
    # some columns add up to no more.
    most_apart = np.int32((_LONGEST - 2 * least) * 2.0**22)
    n_looked_at = min(_LOOKED_AT, steps.shape[1])
    best = np.full((n_looked_at, _COMPARED_TO), _NEVER, np.int32)  # by column; of copies nothing
    apart = np.empty(_COMPARED_TO, np.int32)
    is_copy = np.zeros(len(rows), np.bool_)
    n_good = 0
    for at in range(len(rows)):
        if n_good == limit:
            break
        is_same = False
        for before in range(at):
            is_same |= bool(keys[before] == keys[at] and not is_copy[before])
        own = steps[rows[at]]
        if n_compared and not is_same:
            apart[:] = 0
            for column in range(n_looked_at):
                number = np.int32(own[column])
                for before in range(_COMPARED_TO):
                    difference = np.int32(best[column, before] - number)
                    apart[before] += np.int32(difference * difference)
            if apart.min() <= most_apart:
                near = apart[: min(at, n_compared)]
                is_same = _is_near(steps, rows, own, near, most_apart, least * 2.0**22)
        if at < n_compared and not is_same:
            for column in range(n_looked_at):
                best[column, at] = own[column]
        is_copy[at] = is_same
        n_good += not is_same and not is_excess[at]
    return is_copy


@compiled(
    "int64[::1](int64[::1], uint16[::1], uint64[::1], int16[:, ::1], int32[::1], int64, int64, "
    "int64, float32)"
)
def thinned(
    rows: Rows,
    category: NDArray[np.uint16],
    text_key: NDArray[np.uint64],
    steps: NDArray[np.int16],
    taken: NDArray[np.int32],
    category_cap: int,
    compared: int,
    limit: int,
    copy_cosine: np.float32,
) -> Ints:
    """Return the places of at most `limit` rows, in order, without copies and excess.

    Parameters
    ----------
    rows
        Best first.
    category, text_key, steps
        Of all rows.
    taken
        Scratch by category: zeros before and after.
    category_cap
        Rows of a category, while there are others.
    compared
        Rows of which copies are looked for.
    """
    for at in range(min(compared, len(rows))):
        fetch(steps, rows[at])
        fetch(text_key, rows[at])
    codes = np.empty(len(rows), np.int64)
    for at in range(len(rows)):
        codes[at] = category[rows[at]]
    is_excess = _are_excess(codes, category_cap, taken)
    kept = _first(is_excess, np.zeros(len(rows), np.bool_), compared)
    own = rows[kept]
    keys = np.empty(len(own), np.uint64)
    for at in range(len(own)):
        keys[at] = text_key[own[at]]
    is_excess = is_excess[kept]
    is_copy = _are_copies(keys, steps, own, is_excess, copy_cosine, limit)
    return kept[_first(is_excess, is_copy, limit)]
