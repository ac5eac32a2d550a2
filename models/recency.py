"""What a user did lately, as rows: which are distinct, and how much the user's turn to each says.

Reads   rows of one user, newest first, with the types and ages of the events.
Emits   distinct rows, newest first, and their weights; the rows that are no discovery.
Owns    how an item's say fades.

One user at a time, compiled: the loops are short, and a call of NumPy takes longer than they do.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled
from models.features import EVENT_TYPES, HISTORY
from models.retrieval_kernels import WEIGHT_UNIT

Rows = NDArray[np.int64]

BOUGHT: Final = 200  # purchases beyond the history that are looked at
# How much of an item's say is left: 1% less by each place further back, and half by a year since
# the newest. On online-retail no fading finds 1% more, for its customers are shops that buy as
# they did; on MovieLens 4% a place finds 2% more.
_BY_PLACE: Final = np.array([WEIGHT_UNIT * 0.99**place for place in range(HISTORY + BOUGHT)])
_BY_DAY: Final = np.array([2.0 ** (-days / 365) for days in range(3_650)])  # then it stays
_IS_PUT_BACK: Final = np.isin(EVENT_TYPES, ("cart_remove", "refund"))  # by event code


def recent_rows(rows: Rows, types: Rows, age_s: Rows) -> tuple[Rows, Rows]:
    """Return the distinct rows of a user's events and their weights, without what was put back.

    Parameters
    ----------
    rows, types, age_s
        Of the events, newest first, int64, C-contiguous, each of shape (E,): rows, 0 for none;
        codes of `models.features.EVENT_TYPES`; seconds.

    Returns
    -------
    tuple
        Rows, newest first, and weights, 1 to `WEIGHT_UNIT`; int64, shape (R,).

    Raises
    ------
    IndexError
        If a type has no code.

    Examples
    --------
    >>> rows, types, age_s = np.array([[7, 0, 9, 7], [1, 1, 5, 1], [60, 70, 80, 90]])
    >>> [column.tolist() for column in recent_rows(rows, types, age_s)]
    [[7], [65536]]
    """
    # As arguments: a constant of another file would be kept as it was when this was compiled.
    return _recent_rows(rows, types, age_s, _IS_PUT_BACK, _BY_PLACE, _BY_DAY)


@compiled()
def _is_new(slots: Rows, row: int) -> bool:
    """Put a row into a hash table, free where it holds -1; say whether it was not there."""
    at = row & (len(slots) - 1)
    while slots[at] != row:
        if slots[at] < 0:
            slots[at] = row
            return True
        at = (at + 1) & (len(slots) - 1)
    return False


@compiled()
def _slots(n: int) -> Rows:
    """Return an empty hash table with room for n rows, and as many free slots at least."""
    size = 16
    while size < 2 * n:
        size *= 2
    return np.full(size, -1)


@compiled(
    "Tuple((int64[::1], int64[::1]))"
    "(int64[::1], int64[::1], int64[::1], boolean[::1], float64[::1], float64[::1])"
)
def _recent_rows(
    rows: Rows,
    types: Rows,
    age_s: Rows,
    is_put_back: NDArray[np.bool_],
    by_place: NDArray[np.float64],
    by_day: NDArray[np.float64],
) -> tuple[Rows, Rows]:
    slots = _slots(len(rows))
    recent, weights = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    n_found = place = 0
    for at in range(len(rows)):
        if rows[at] == 0 or not _is_new(slots, rows[at]):
            continue
        if not 0 <= types[at] < len(is_put_back):
            raise IndexError("an event type that has no code")
        days = min(max((age_s[at] - age_s[0]) // 86_400, 0), len(by_day) - 1)
        weight = np.int64(by_place[min(place, len(by_place) - 1)] * by_day[days])
        place += 1
        if weight > 0 and not is_put_back[types[at]]:
            recent[n_found], weights[n_found] = rows[at], weight
            n_found += 1
    return recent[:n_found], weights[:n_found]


@compiled()
def _add_new(slots: Rows, found: Rows, n_found: int, rows: Rows) -> int:
    """Put the rows that are new behind those found; return how many there are then."""
    for row in rows:
        if _is_new(slots, row):
            found[n_found] = row
            n_found += 1
    return n_found


@compiled("Tuple((int64[::1], int64[::1]))(int64[::1], int64[::1], int64[::1])")
def closed_and_seen(bought: Rows, history: Rows, cart: Rows) -> tuple[Rows, Rows]:
    """Return the distinct rows that were bought, and those of all three; each int64, shape (R,).

    >>> two = np.array([3, 3, 5]), np.array([5, 8])
    >>> [rows.tolist() for rows in closed_and_seen(*two, np.array([2]))]
    [[3, 5], [3, 5, 8, 2]]
    """
    n_all = len(bought) + len(history) + len(cart)
    slots, seen = _slots(n_all), np.empty(n_all, np.int64)
    n_closed = _add_new(slots, seen, 0, bought)
    n_seen = _add_new(slots, seen, _add_new(slots, seen, n_closed, history), cart)
    return seen[:n_closed], seen[:n_seen]
