"""The loops of retrieval over one query's rows, compiled.

Reads   columns of `models.item_rows`, and what one query is about and rules out.
Emits   rows, best first, equal values in the order of the ids' hashes, the larger one first.
Owns    no state. `slots` and `mark` are scratch by row: zeros before and after every call.

All sums are of whole numbers, so that their order does not matter: see `models.neighbours`.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled, fetch

Rows = NDArray[np.int64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Whole = int | np.integer[Any]
# What `Query.rules` gives: of all rows whether they are servable, from when, until when and their
# category; `mark`; whether there are windows at all; the query's time, the rows that are closed to
# it, those that its user has blocked, and blocked categories.
Rules = tuple[Flags, Ints, Ints, NDArray[np.uint16], Flags, bool, int, Rows, Rows, Rows]
_RULES: Final = (
    "Tuple((boolean[::1], int64[::1], int64[::1], uint16[::1], boolean[::1], boolean, int64, "
    "int64[::1], int64[::1], int64[::1]))"
)
WEIGHT_UNIT: Final = 65_536  # a recency weight of 1
IN_CART: Final = 4 * WEIGHT_UNIT
_STEPS: Final = 2.0**23  # of what the strongest pair says of the most recent item
_LEAST_STRENGTH: Final = 1e-30  # of a pair: less is nothing
_SIGN_AND_SIZE: Final = np.int32(-0x70002000)  # bits of a float32 that a float16's fill
_BIAS: Final = np.float32(2.0 ** (127 - 15))  # the exponents' zeros lie apart
_BUCKETS: Final = 1_024  # of values: narrow enough that few lie in that of the last one wanted
_FETCHED: Final = 16  # int32 numbers that memory gives at once


@compiled()
def _put(
    values: Ints, hashes: Ints, rows: Rows, n: int, value: Whole, hash_: Whole, row: Whole
) -> int:
    """Put a row into a heap of the best, the least of them first; return how many it holds."""
    size = len(rows)
    if n < size:
        at, n = n, n + 1
        while at:
            above = (at - 1) >> 1
            if values[above] < value or (values[above] == value and hashes[above] < hash_):
                break
            values[at], hashes[at], rows[at] = values[above], hashes[above], rows[above]
            at = above
    else:
        if value < values[0] or (value == values[0] and hash_ < hashes[0]):
            return n
        at = _sunk(values, hashes, rows, size, value, hash_)
    values[at], hashes[at], rows[at] = value, hash_, row
    return n


@compiled()
def _sunk(values: Ints, hashes: Ints, rows: Rows, n: int, value: Whole, hash_: Whole) -> int:
    """Move lesser ones up from the top of a heap; return the place that is left for a new one."""
    at = 0
    while True:
        below = 2 * at + 1
        if below >= n:
            return at
        other = below + 1
        if other < n and (
            values[other] < values[below]
            or (values[other] == values[below] and hashes[other] < hashes[below])
        ):
            below = other
        if value < values[below] or (value == values[below] and hash_ < hashes[below]):
            return at
        values[at], hashes[at], rows[at] = values[below], hashes[below], rows[below]
        at = below


@compiled()
def _put_in_order(values: Ints, hashes: Ints, rows: Rows, n: int) -> None:
    """Bring a heap of n rows into order, the best first."""
    for last in range(n - 1, 0, -1):
        value, hash_, row = values[last], hashes[last], rows[last]
        values[last], hashes[last], rows[last] = values[0], hashes[0], rows[0]
        at = _sunk(values, hashes, rows, last, value, hash_)
        values[at], hashes[at], rows[at] = value, hash_, row


@compiled()
def _best(values: Ints, rows: Rows, n: Whole, id_hash: Ints, limit: int) -> Ints:
    """Return the places of the largest of n values, the largest first, ties by the rows' hashes."""
    size = limit if limit < n else n
    kept, hashes = np.empty(size, np.int64), np.empty(size, np.int64)
    places = np.empty(size, np.int64)
    n_kept = 0
    for place in range(n):
        value = values[place]
        if n_kept < size or value >= kept[0]:
            n_kept = _put(kept, hashes, places, n_kept, value, id_hash[rows[place]], place)
    _put_in_order(kept, hashes, places, n_kept)
    return places


@compiled()
def _reached(values: Ints, wanted: int) -> np.int64:
    """Return what so many of some values reach, and not many more; 1 where fewer are above 0."""
    largest = np.int64(1)
    for value in values:
        largest = max(largest, value)
    shift = 0
    while largest >> shift >= _BUCKETS:
        shift += 1
    counts = np.zeros(_BUCKETS, np.int64)
    for value in values:
        counts[value >> shift] += 1
    bucket, n = _BUCKETS, 0
    while bucket > 0 and n < wanted:
        bucket -= 1
        n += counts[bucket]
    return max(np.int64(bucket) << shift, np.int64(1))


@compiled()
def _are_allowed(rules: Rules, rows: Rows) -> Flags:
    """Return which rows may be proposed."""
    # Taken apart once: each time it is, Numba counts who holds the arrays.
    (is_servable, from_ms, until_ms, category, mark, has_windows, time_ms, closed, blocked,
     codes) = rules  # fmt: skip
    for row in closed:
        mark[row] = True
    for row in blocked:
        mark[row] = True
    allowed = np.empty(len(rows), np.bool_)
    for at in range(len(rows)):
        row = rows[at]
        allowed[at] = is_servable[row] and not mark[row]
        if has_windows:
            is_over = until_ms[row] != 0 and until_ms[row] <= time_ms
            allowed[at] &= from_ms[row] <= time_ms and not is_over
        for code in codes:
            allowed[at] &= category[row] != code
    for row in closed:
        mark[row] = False
    for row in blocked:
        mark[row] = False
    return allowed


@compiled()
def _widened(half: np.int16) -> np.float64:
    """Return the number whose bits as a float16 these are, exactly; of finite ones."""
    bits = np.int32((np.int32(half) << 13) & _SIGN_AND_SIZE)
    return np.float64(bits.view(np.float32) * _BIAS)


@compiled(f"int64[::1]({_RULES}, int64[::1], int64)")
def allowed(
    rules: Rules,
    rows: Rows,
    limit: int,
) -> Rows:
    """Return the first `limit` of `rows` that may be proposed."""
    return rows[_are_allowed(rules, rows)][:limit].copy()


@compiled(f"int64[::1]({_RULES}, int64[::1], int64[::1], uint64[::1], int64)")
def unlike(
    rules: Rules,
    rows: Rows,
    recent: Rows,
    text_key: NDArray[np.uint64],
    limit: int,
) -> Rows:
    """Return what `allowed` does, without rows that say the same as a recent or a better one."""
    kept = np.empty(min(limit, len(rows)), np.int64)
    known = np.empty(len(recent) + len(kept), np.uint64)
    n, n_known = 0, len(recent)
    for at in range(n_known):
        known[at] = text_key[recent[at]]
    for row in allowed(rules, rows, len(rows)):
        if n == limit:
            break
        key = text_key[row]
        is_known = False
        for at in range(n_known):  # to the end: so it is done for many at once
            is_known |= known[at] == key
        if not is_known:
            known[n_known] = key
            n_known += 1
            kept[n] = row
            n += 1
    return kept[:n].copy()


@compiled()
def _part(
    starts: NDArray[np.uint32], lengths: NDArray[np.int32], row: int, most: int
) -> tuple[np.int64, np.int64]:
    """Return where a row's first `most` values begin, and how many there are."""
    if row >= len(lengths):
        return np.int64(0), np.int64(0)
    n = np.int64(lengths[row])
    return np.int64(starts[row]), n if n < most else np.int64(most)


@compiled()
def _ask_for(
    recent: Rows,
    most: int,
    starts: NDArray[np.uint32],
    lengths: NDArray[np.int32],
    others: NDArray[np.int32],
    strengths: NDArray[np.int16],
) -> None:
    """Have the neighbours of rows fetched; as `beside` has them."""
    for row in recent:
        if row < len(lengths):
            fetch(starts, row)
            fetch(lengths, row)
    for row in recent:
        start, n_own = _part(starts, lengths, row, most)
        for at in range(start, start + n_own, _FETCHED):
            fetch(others, at)
            fetch(strengths, at)


@compiled()
def _best_allowed(rules: Rules, rows: Rows, values: Ints, id_hash: Ints, limit: int) -> Rows:
    """Return those of the largest values, all at least 0, that may be proposed; none of value 0."""
    n_rows = len(values)
    found, own = np.empty(n_rows, np.int64), np.empty(n_rows, np.int64)
    # The rules are looked up for what would be among the best: for all where that is too few.
    least = _reached(values, limit + len(rules[7]) + len(rules[8]))
    while True:
        n_above = n = 0
        for at in range(n_rows):
            if values[at] >= least:
                found[n_above], own[n_above] = rows[at], values[at]
                n_above += 1
        is_allowed = _are_allowed(rules, found[:n_above])
        for at in range(n_above):
            found[n], own[n] = found[at], own[at]
            n += is_allowed[at]
        if n >= limit or least == 1:
            return found[_best(own, found, n, id_hash, limit)]
        least = np.int64(1)


@compiled(
    f"int64[::1]({_RULES}, int64[::1], int64[::1], int64, uint32[::1], int32[::1], int32[::1], "
    "int16[::1], float32[::1], int64[::1], int32[::1], int64)"
)
def beside(
    rules: Rules,
    recent: Rows,
    weights: Ints,
    most: int,
    starts: NDArray[np.uint32],
    lengths: NDArray[np.int32],
    others: NDArray[np.int32],
    strengths: NDArray[np.int16],
    rarity: NDArray[np.float32],
    id_hash: Ints,
    slots: NDArray[np.int32],
    limit: int,
) -> Rows:
    """Return the rows of the largest sums of strength x recency, times rarity.

    Parameters
    ----------
    recent, weights
        Rows, and how recent they are, whole numbers.
    most
        Neighbours of each that are looked at.
    starts, lengths, others, strengths
        Of all rows, as `models.ragged` has them: neighbours, and the bits of float16 numbers.
    """
    _ask_for(recent, most, starts, lengths, others, strengths)
    strongest = np.int16(0)  # as bits, which are in the order of the numbers
    n_said = np.int64(0)
    for row in recent:
        start, n_own = _part(starts, lengths, row, most)
        n_said += n_own
        for at in range(start, start + n_own):
            strongest = max(strongest, strengths[at])
    distinct, says = np.empty(n_said + 1, np.int64), np.empty(most, np.int32)
    n_distinct = 0
    scale = _STEPS / (WEIGHT_UNIT * max(_widened(strongest), _LEAST_STRENGTH))
    for place in range(len(recent)):
        weight = weights[place] * scale
        start, n_own = _part(starts, lengths, recent[place], most)
        for at in range(n_own):  # of many at once
            says[at] = np.int32(np.rint(max(_widened(strengths[start + at]) * weight, 0.0)))
        for at in range(n_own):
            # Without a branch, for half of them are new. What says 0 so far is written twice.
            other = others[start + at]
            total = slots[other]
            distinct[n_distinct] = other
            n_distinct += total == 0
            slots[other] = total + says[at]
    totals = np.empty(n_distinct, np.int64)
    for at in range(n_distinct):
        row = distinct[at]
        totals[at] = np.int64(np.rint(np.float64(slots[row]) * np.float64(rarity[row])))
        slots[row] = 0
    return _best_allowed(rules, distinct, totals, id_hash, limit)


@compiled(
    f"int64[::1]({_RULES}, int64[::1], int64[::1], int64[::1], int64[::1], int64, int64[::1], "
    "int64[::1], int64, int64[::1], int32[::1], int64)"
)
def unfinished(
    rules: Rules,
    history: Rows,
    types: Ints,
    age_s: Ints,
    cart: Rows,
    first: int,
    says: Ints,
    decay: Ints,
    purchase: int,
    id_hash: Ints,
    slots: NDArray[np.int32],
    limit: int,
) -> Rows:
    """Return the rows of a history and a cart that are most wanted and not bought.

    Parameters
    ----------
    history, types, age_s
        Newest first; what came before a purchase is settled, a view after it counts.
    cart, first
        Newest first, and what the place in it says: 0 where the cart is not the reason.
    says, decay
        By type, and by hour of age: what is older counts for nothing.
    purchase
        Which type it is.
    """
    size = len(history) + len(cart)
    distinct, wanted = np.empty(size, np.int64), np.zeros(size, np.int64)
    is_settled = np.zeros(size, np.bool_)
    n_distinct = 0
    for at in range(len(history)):
        row, hours = history[at], age_s[at] // 3_600
        if not row or hours >= len(decay):
            continue
        if not slots[row]:
            distinct[n_distinct] = row
            n_distinct += 1
            slots[row] = n_distinct
        slot = slots[row] - 1
        if types[at] == purchase:
            is_settled[slot] = True
        if not is_settled[slot]:
            wanted[slot] += says[types[at]] * decay[hours]
    for at in range(len(cart)):
        row = cart[at]
        if not slots[row]:
            distinct[n_distinct] = row
            n_distinct += 1
            slots[row] = n_distinct
        slot = slots[row] - 1
        wanted[slot] = max(wanted[slot], 0) + IN_CART + (len(cart) - at) * first
    is_allowed, n = _are_allowed(rules, distinct[:n_distinct]), 0
    for at in range(n_distinct):
        row = distinct[at]
        slots[row] = 0
        if wanted[at] > 0 and is_allowed[at]:
            distinct[n], wanted[n] = row, wanted[at]
            n += 1
    return distinct[_best(wanted, distinct, n, id_hash, limit)]


@compiled(
    "int64[:, ::1](int64[::1], int64[::1], int64[:, ::1], int64, int64[::1], int32[::1], int64)"
)
def fused(
    rows: Rows,
    ends: Ints,
    says: Ints,
    place_bits: int,
    id_hash: Ints,
    slots: NDArray[np.int32],
    limit: int,
) -> Ints:
    """Return the rows of which most is said, the sums, and what says most of each, (3, n).

    Parameters
    ----------
    rows, ends
        Distinct rows of one source, then of the next; and where each source's end, shape (S,).
    says
        By source and place in its list: what it says above the lowest `place_bits`, which tell the
        source; shape (S, at least the longest list).
    """
    for row in rows:
        fetch(slots, row)
        fetch(id_hash, row)
    held = np.empty((3, len(rows)), np.int64)
    n_held = start = 0
    for source in range(len(ends)):
        for at in range(start, ends[source]):
            row, said = rows[at], says[source, at - start]
            slot = slots[row]
            if not slot:
                held[0, n_held], held[1, n_held], held[2, n_held] = row, said >> place_bits, said
                n_held += 1
                slots[row] = n_held
            else:
                held[1, slot - 1] += said >> place_bits
                held[2, slot - 1] = max(held[2, slot - 1], said)
        start = ends[source]
    for at in range(n_held):
        slots[held[0, at]] = 0
    best = _best(held[1], held[0], n_held, id_hash, limit)
    found = np.empty((3, len(best)), np.int64)
    for at in range(len(best)):
        for part in range(3):
            found[part, at] = held[part, best[at]]
    return found
