"""The student's network one position at a time, run on keys and values where they are kept.

Reads   a student's weights, histories, and keys and values where they are kept.
Emits   user vectors, and the keys and values of new positions, each in its place.
Owns    which of what is kept a history still fits. How weights lie: `models.incremental_weights`.

Compiled by Numba, for at this size calls are what costs: a position is 90,000 multiplications, some
5 µs, where an operator of ONNX Runtime or NumPy takes 1 to 4 µs before its first. Keys and values
are read where they are kept: to gather them would cost as much again.

Every row is added up by itself, and looks back from the newest position to the oldest, wherever
these stand in their ring. So a vector's bits depend on its history only: not on who is run beside
it, and not on what was kept.
"""

import math
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.dataset import N_BUCKETS
from models.features import EVENT_TYPES, FADING, HISTORY
from models.incremental_weights import (
    ANSWERS,
    COLUMNS,
    HEADS,
    HIDDEN,
    KEYS,
    REACH,
    RING,
    WEIGHTS,
)

_FEWER_BITS = np.int64(13)  # that float16 has for the fraction
_HALF_BITS = np.int64(-0x70002000)  # sign, and exponent and fraction of a float16, in a float32
_HALF_BIAS = np.float32(2.0 ** (127 - 15))
_FADES = np.float32(FADING)
_EPSILON = np.float32(1e-5)
_N_TYPES: Final = len(EVENT_TYPES)

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]

# Sums may be added up in another order than written, but always the same: without it no vectors.
_compiled = njit(cache=True, fastmath={"reassoc", "nsz", "contract"})


@_compiled
def advance(
    weights: Floats,
    layers: Rows,
    n_hidden: int,
    kept: Floats,
    kept_tokens: Rows,
    counts: Rows,
    places: Rows,
    tokens: Rows,
    items: Rows,
    types: Rows,
    time_s: Rows,
    now_s: Rows,
    context: Floats,
    table: NDArray[np.int16],
    vectors: Floats,
) -> tuple[int, int]:
    """Bring users up to date; return how many positions were run, and how many histories whole.

    All users' oldest new position is run, then all the next: weights are read once for all.

    Parameters
    ----------
    weights, layers
        From `models.incremental_weights`, `packed` and `layout`.
    n_hidden
        Hidden width where context and history meet, R.
    kept, kept_tokens, counts
        Of all users kept: keys and values, shape (U, S), in rings where position p stands at p mod
        the layer's reach; tokens, shape (U, T); positions, shape (U,). Changed at `places`.
    places
        Of the users, shape (B,), no place twice.
    tokens, items, types, time_s, now_s, context
        As of `models.incremental.Asked`, but the context scaled.
    table
        Item vectors, shape (N + 1, W), the bits of float16.
    vectors
        Where users' vectors go, shape (B, W).

    Raises
    ------
    IndexError
        If an item is not in the table, or a type has no code; nothing is changed then.
    """
    n_users, n_steps, n_whole, earliest = len(places), 0, 0, HISTORY
    pooled = _pooled(items, types, table)
    first, age = np.empty(n_users, np.int64), np.zeros(n_users, np.int64)
    for b in range(n_users):
        place = places[b]
        n_run, is_again = _to_run(kept_tokens[place], tokens[b])
        n_steps += n_run
        counts[place] -= is_again
        if n_run == 0:
            n_whole += 1
            n_run = 1  # who has no history is one position of padding
            while n_run < HISTORY and tokens[b, HISTORY - 1 - n_run] != 0:
                n_run += 1
            counts[place] = 0
        first[b] = HISTORY - n_run
        earliest = min(earliest, first[b])
        if tokens[b, -1] != 0:
            age[b] = _bucket(now_s[b] - time_s[b, -1])
        for t in range(HISTORY):
            kept_tokens[place, t] = tokens[b, t]
    states = np.empty((n_users, table.shape[1]), np.float32)
    due, due_places = np.empty(n_users, np.int64), np.empty(n_users, np.int64)
    for at in range(earliest, HISTORY):
        n_due, n_after = 0, HISTORY - 1 - at
        for b in range(n_users):
            if first[b] <= at:
                due[n_due], due_places[n_due] = b, places[b]
                n_due += 1
        x = states[:n_due]
        _start(weights, table, items, types, tokens, time_s, due, at, x)
        for layer in range(len(layers) - 1):
            if n_after < layers[layer, KEYS]:
                is_asking = n_after < layers[layer, ANSWERS]
                _run_layer(weights, layers[layer], kept, counts, due_places, is_asking, x)
        for n in range(n_due):
            counts[due_places[n]] += 1
    _meet(weights, layers[-1, WEIGHTS], n_hidden, states, pooled, context, age, vectors)
    return n_steps, n_whole


@_compiled
def _to_run(kept: Rows, asked: Rows) -> tuple[int, int]:
    """Return how many positions to run, 0 for the whole history, and 1 if the newest kept goes."""
    last = HISTORY - 1
    if kept[last] == 0 or asked[last] == 0:
        return 0, 0
    for n_new in range(last):
        at = last - n_new  # where the newest kept should be
        is_again = 1 if n_new == 0 or asked[at] != kept[last] else 0
        is_past = asked[at] != 0
        for t in range(at):
            if asked[t] != kept[t + n_new]:
                is_past = False
                break
        if is_past:
            return n_new + is_again, is_again
    return 0, 0


@_compiled
def _pooled(items: Rows, types: Rows, table: NDArray[np.int16]) -> Floats:
    """Return the fading sums of histories' vectors, (B, W); everything is in range after it."""
    item = np.empty(table.shape[1], np.float32)
    pooled = np.zeros((len(items), table.shape[1]), np.float32)
    for b in range(len(items)):
        for t in range(HISTORY):
            if not 0 <= items[b, t] < len(table):
                raise IndexError("an item is not in the table")
            if not 0 <= types[b, t] < _N_TYPES:
                raise IndexError("a type has no code")
            _spread(table[items[b, t]], item)
            for c in range(len(item)):
                pooled[b, c] = pooled[b, c] * _FADES + item[c] * _HALF_BIAS
    return pooled


@_compiled
def _spread(half: NDArray[np.int16], wide: Floats) -> None:
    """Put float16's bits where a float32 has them: see `models.item_vectors.widened`."""
    bits = wide.view(np.int32)
    for c in range(len(half)):
        bits[c] = (np.int64(half[c]) << _FEWER_BITS) & _HALF_BITS


@_compiled
def _bucket(seconds: int) -> int:
    """Return the bucket of an elapsed time, see `models.dataset.time_bucket`."""
    exponent = math.frexp(1.0 + max(seconds, 0))[1]
    return min(exponent - 1, N_BUCKETS - 1)


@_compiled
def _start(
    weights: Floats,
    table: NDArray[np.int16],
    items: Rows,
    types: Rows,
    tokens: Rows,
    time_s: Rows,
    due: Rows,
    at: int,
    x: Floats,
) -> None:
    """Put what the first layer reads of a position of the users who are due in x, (n, W)."""
    width = x.shape[1]
    item = np.empty(x.shape, np.float32)
    for n in range(len(x)):
        _spread(table[items[due[n], at]], item[n])
        for c in range(width):
            x[n, c] = 0
            item[n, c] *= _HALF_BIAS
    kinds_at = _add_linear(weights, 0, item, x)
    gaps_at = kinds_at + _N_TYPES * width
    for n in range(len(x)):
        b, gap = due[n], 0
        if at > 0 and tokens[b, at - 1] != 0:
            gap = _bucket(time_s[b, at] - time_s[b, at - 1])
        _add(weights, kinds_at + types[b, at] * width, x[n])
        _add(weights, gaps_at + gap * width, x[n])


@_compiled
def _run_layer(
    weights: Floats,
    sizes: Rows,
    kept: Floats,
    counts: Rows,
    places: Rows,
    is_asking: bool,
    x: Floats,
) -> None:
    """Keep positions' keys and values; where they are asked, take x (n, W) through the layer."""
    reach, n_heads, columns = sizes[REACH], sizes[HEADS], sizes[COLUMNS]
    normed, at = _norm(weights, sizes[WEIGHTS], x)
    flat = np.zeros((len(x), 3 * columns), np.float32)
    at = _add_linear(weights, at, normed, flat)
    qkv = flat.reshape(len(x), 3, n_heads, -1)
    bias = weights[at : at + n_heads * reach].reshape(n_heads, reach)
    mixed = np.zeros((len(x), n_heads, columns // n_heads), np.float32)
    for n in range(len(x)):
        own = kept[places[n], sizes[RING] : sizes[RING] + 2 * reach * columns]
        ring = own.reshape(2, n_heads, reach, -1)
        count = counts[places[n]]
        for h in range(n_heads):
            for c in range(ring.shape[3]):
                ring[0, h, count % reach, c] = qkv[n, 1, h, c]
                ring[1, h, count % reach, c] = qkv[n, 2, h, c]
            if is_asking:
                _attend(qkv[n, 0, h], ring[0, h], ring[1, h], bias[h], count, mixed[n, h])
    if is_asking:
        at = _add_linear(weights, at + n_heads * reach, mixed.reshape(len(x), -1), x)
        normed, at = _norm(weights, at, x)
        hidden = np.zeros((len(x), sizes[HIDDEN]), np.float32)
        at = _add_linear(weights, at, normed, hidden)
        _cut(hidden)
        _add_linear(weights, at, hidden, x)


@_compiled
def _attend(
    query: Floats, keys: Floats, values: Floats, bias: Floats, count: int, mixed: Floats
) -> None:
    """Add to `mixed` (A/H,) the values of a ring (R, A/H) that a head looks at."""
    reach = len(keys)
    n_seen, newest = min(count + 1, reach), count % reach
    logits = np.empty(n_seen, np.float32)
    most = np.float32(-np.inf)
    for behind in range(n_seen):
        key = keys[newest - behind if behind <= newest else newest - behind + reach]
        logit = np.float32(0)
        for c in range(len(query)):
            logit += query[c] * key[c]
        logits[behind] = logit + bias[behind]
        most = max(most, logits[behind])
    total = np.float32(0)
    for behind in range(n_seen):
        share = math.exp(logits[behind] - most)
        total += share
        value = values[newest - behind if behind <= newest else newest - behind + reach]
        for c in range(len(mixed)):
            mixed[c] += share * value[c]
    for c in range(len(mixed)):
        mixed[c] /= total


@_compiled
def _meet(
    weights: Floats,
    at: int,
    n_hidden: int,
    states: Floats,
    pooled: Floats,
    context: Floats,
    age: Rows,
    vectors: Floats,
) -> None:
    """Put users' vectors (B, W) in their place: where history, context and trigger meet."""
    normed, at = _norm(weights, at, states)
    joined = np.zeros((len(states), n_hidden), np.float32)
    at = _add_linear(weights, at, normed, joined)
    at = _add_linear(weights, at, context, joined)
    for b in range(len(states)):
        _add(weights, at + age[b] * n_hidden, joined[b])
        for c in range(vectors.shape[1]):
            vectors[b, c] = 0
    _cut(joined)
    at = _add_linear(weights, at + N_BUCKETS * n_hidden, joined, vectors)
    at = _add_linear(weights, at, normed, vectors)
    _add_linear(weights, at, pooled, vectors)


@_compiled
def _cut(x: Floats) -> None:
    """Cut what is below 0 of x, (n, I)."""
    for n in range(len(x)):
        for c in range(x.shape[1]):
            x[n, c] = max(x[n, c], np.float32(0))


@_compiled
def _add(weights: Floats, at: int, x: Floats) -> None:
    """Add weights to x, (I,)."""
    added = weights[at : at + len(x)]
    for c in range(len(x)):
        x[c] += added[c]


@_compiled
def _norm(weights: Floats, at: int, x: Floats) -> tuple[Floats, int]:
    """Return x (n, W) after a LayerNorm, and where the next weights start."""
    width = x.shape[1]
    scale, shift = weights[at : at + width], weights[at + width : at + 2 * width]
    normed = np.empty(x.shape, np.float32)
    for n in range(len(x)):
        mean = square = np.float32(0)
        for c in range(width):
            mean += x[n, c]
        mean /= np.float32(width)
        for c in range(width):
            square += (x[n, c] - mean) ** 2
        size = np.float32(1) / np.sqrt(square / np.float32(width) + _EPSILON)
        for c in range(width):
            normed[n, c] = (x[n, c] - mean) * size * scale[c] + shift[c]
    return normed, at + 2 * width


@_compiled
def _add_linear(weights: Floats, at: int, x: Floats, y: Floats) -> int:
    """Add x (n, I) after a linear layer to y (n, O); return where the next weights start."""
    n_in: int = x.shape[1]
    n_out: int = y.shape[1]
    end = at + n_in * n_out
    matrix = weights[at:end].reshape(n_in, n_out)
    for n in range(len(x)):
        _add(weights, end, y[n])
    n_fours = n_in // 4
    for four in range(n_fours):  # fewer times through y
        i = 4 * four
        for n in range(len(x)):
            a, b, c, d = x[n, i], x[n, i + 1], x[n, i + 2], x[n, i + 3]
            for j in range(n_out):
                y[n, j] += (
                    a * matrix[i, j]
                    + b * matrix[i + 1, j]
                    + c * matrix[i + 2, j]
                    + d * matrix[i + 3, j]
                )
    for i in range(4 * n_fours, n_in):
        for n in range(len(x)):
            for j in range(n_out):
                y[n, j] += x[n, i] * matrix[i, j]
    return end + n_out
