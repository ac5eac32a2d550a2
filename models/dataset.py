"""Histories of users as arrays: what the student trains and is tested on.

Reads   parallel columns of events (user, item, type code, time), any order.
Emits   batches of windows for training, and of single requests for evaluation and serving.
Owns    the rule of what an example is, the split by time, and the buckets of elapsed time.

An *example* is: given a user's events up to some moment, which item comes next? Its target is
an event; its history the user's events before it; its trigger a moment between the two. All
splits cut **time**, for everybody at once, so that nothing learned comes from after the cut:
a random split, or leaving out each user's last item, lets a model read next month's fashion.

Item *rows* count from 1 in the order of the given item ids; 0 is padding, always on the left.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.features import EVENT_TYPES, HISTORY, N_CONTEXT

N_BUCKETS: Final = 32  # of elapsed time, doubling from one second: the last starts at 34 years

# What a target is worth in the loss. Undone interactions stay in the history, as a sign, but
# are never a thing to predict.
_TARGET_WEIGHTS: Final = {
    **{"view": 1.0, "click": 1.0, "search": 1.0, "rate": 1.0, "comment": 1.0, "share": 1.0},
    **{"cart": 1.5, "favorite": 1.5, "purchase": 2.0},
}
TARGET_WEIGHT: Final[NDArray[np.float32]] = np.array(
    [_TARGET_WEIGHTS.get(name, 0.0) for name in EVENT_TYPES], np.float32
)


class Histories(NamedTuple):
    """All users' events, user after user, each in time order; E events, U users.

    `contexts` holds the raw context (`models.features.CONTEXT`) as it stood right after each
    event, or None where only sequences are known. Memory: 17 bytes an event, and 4 C with it.
    """

    user_ids: list[str]
    offsets: NDArray[np.int64]  # shape (U + 1,); user u has events offsets[u]:offsets[u + 1]
    rows: NDArray[np.int64]  # shape (E,), item rows from 1
    types: NDArray[np.int8]  # shape (E,), codes of models.features.EVENT_TYPES
    time_s: NDArray[np.int64]  # shape (E,), seconds
    contexts: NDArray[np.float32] | None  # shape (E, C)


class Requests(NamedTuple):
    """What the student is asked, B users at once; the arrays of `StudentScorer.user_vectors`."""

    rows: NDArray[np.int64]  # shape (B, T), 0-padded on the left
    types: NDArray[np.int64]  # shape (B, T)
    age_s: NDArray[np.float32]  # shape (B, T), seconds before the trigger
    contexts: NDArray[np.float32]  # shape (B, C), raw
    targets: NDArray[np.int64]  # shape (B,), the row that came next


class Windows(NamedTuple):
    """A training batch: every position predicts the item after it, or its whole basket."""

    rows: NDArray[np.int64]  # shape (B, T), 0-padded on the left
    types: NDArray[np.int64]  # shape (B, T)
    gaps: NDArray[np.int64]  # shape (B, T), bucket of the time since the position before
    ages: NDArray[np.int64]  # shape (B, T), bucket of the time from the position to its trigger
    contexts: NDArray[np.float32] | None  # shape (B, T, C), raw
    targets: NDArray[np.int64]  # shape (B, T)
    weights: NDArray[np.float32]  # shape (B, T), 0 where there is nothing to learn
    since: NDArray[np.int64]  # shape (B, T), the position from whose state a target is asked for
    users: NDArray[np.int64]  # shape (B,), whose window it is

    def asked(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the windows and positions whose states answer, of the E targets with a weight."""
        which, at = np.nonzero(self.weights > 0)
        return which, self.since[which, at]


def build_histories(
    users: Sequence[str],
    items: Sequence[str],
    types: Sequence[int],
    time_s: Sequence[int],
    *,
    item_ids: Sequence[str],
    contexts: NDArray[np.float32] | None = None,
) -> Histories:
    """Group events by user in time order; events of items not in `item_ids` are left out.

    `contexts`, shape (E, C), is parallel to the other columns. Events of one user and second
    keep the order given.

    >>> h = build_histories(["b", "a", "b"], ["y", "x", "x"], [1, 1, 6], [30, 10, 20],
    ...                     item_ids=["x", "y"])
    >>> h.user_ids, h.offsets.tolist(), h.rows.tolist(), h.types.tolist()
    (['a', 'b'], [0, 1, 3], [1, 1, 2], [1, 6, 1])
    """
    row_of = {item_id: row for row, item_id in enumerate(item_ids, start=1)}
    rows = np.array([row_of.get(item, 0) for item in items], np.int64)
    known = np.flatnonzero(rows)
    names, codes = np.unique(np.asarray(users, dtype=np.str_)[known], return_inverse=True)
    times = np.asarray(time_s, np.int64)[known]
    order = np.lexsort((times, codes))  # stable
    picked = known[order]
    return Histories(
        user_ids=[str(name) for name in names],
        offsets=np.searchsorted(codes[order], np.arange(len(names) + 1)).astype(np.int64),
        rows=rows[picked],
        types=np.asarray(types, np.int8)[picked],
        time_s=times[order],
        contexts=None if contexts is None else np.ascontiguousarray(contexts[picked], np.float32),
    )


def time_split(histories: Histories, *, validation: float, test: float) -> tuple[int, int]:
    """Return two cuts in seconds: targets before the first train, from the second on test.

    The shares are of events. An event exactly at a cut belongs to the later part.

    >>> h = build_histories(["a"] * 10, ["x"] * 10, [1] * 10, range(10), item_ids=["x"])
    >>> time_split(h, validation=0.2, test=0.1)
    (7, 9)
    """
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise ValueError(f"shares must be positive and leave some to train: {validation}, {test}")
    times = np.sort(histories.time_s)
    if len(times) == 0:
        raise ValueError("no events of known items to split")
    n = len(times)
    first, second = (round(n * (1 - validation - test)), round(n * (1 - test)))
    return int(times[min(first, n - 1)]), int(times[min(second, n - 1)])


def popularity(histories: Histories, n_items: int, *, until_s: int) -> NDArray[np.float64]:
    """Return the weighted count of each row's events before `until_s`, shape (n_items + 1,)."""
    is_past = histories.time_s < until_s
    weights = TARGET_WEIGHT[histories.types[is_past]]
    counts = np.bincount(histories.rows[is_past], weights, minlength=n_items + 1)
    return counts.astype(np.float64)


def targets_between(
    histories: Histories,
    since_s: int,
    until_s: int | None,
    *,
    limit: int,
    repeats: bool = True,
    baskets: bool = False,
) -> NDArray[np.int64]:
    """Return events to predict in [since_s, until_s), at most `limit`, evenly strided.

    An event that repeats the item just before it is no example: it is the same intent. Without
    `repeats` neither is an event of an item that its user had before; and of `baskets` none of
    the user's first one.
    """
    is_target = (histories.time_s >= since_s) & (TARGET_WEIGHT[histories.types] > 0)
    if until_s is not None:
        is_target &= histories.time_s < until_s
    is_target &= ~_is_repeat(histories)
    if not repeats:
        is_target &= ~is_had(histories)
    if baskets:
        is_target &= basket_starts(histories) > _firsts(histories)
    events = np.flatnonzero(is_target)
    if len(events) > limit:
        events = events[np.linspace(0, len(events) - 1, limit).astype(np.int64)]
    return events


def is_had(histories: Histories) -> NDArray[np.bool_]:
    """Return whether the user had an event's item before, shape (E,)."""
    users = np.repeat(np.arange(len(histories.user_ids)), np.diff(histories.offsets))
    pairs = np.stack((users, histories.rows), axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)
    found = np.ones(len(users), np.bool_)
    found[first] = False
    return found


def basket_starts(histories: Histories) -> NDArray[np.int64]:
    """Return the first event of each event's basket: of its user and second, shape (E,).

    >>> h = build_histories(["a"] * 4, ["x", "y", "x", "y"], [1] * 4, [1, 5, 5, 9],
    ...                     item_ids=["x", "y"])
    >>> basket_starts(h).tolist()
    [0, 1, 1, 3]
    """
    n = len(histories.rows)
    is_first = np.arange(n) == _firsts(histories)
    is_first[1:] |= np.diff(histories.time_s) != 0
    return np.maximum.accumulate(np.where(is_first, np.arange(n), 0))


def had_before(batch: Windows) -> NDArray[np.bool_]:
    """Return whether the window holds a target up to where it is asked for, shape (B, T)."""
    is_same = batch.rows[:, None, :] == batch.targets[:, :, None]  # (B, T, T)
    is_past = np.arange(batch.rows.shape[1]) <= batch.since[:, :, None]  # (B, T, T)
    found: NDArray[np.bool_] = (is_same & is_past).any(axis=2)
    return found


def pasts_of(
    rows: NDArray[np.int64], which: NDArray[np.int64], at: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the rows of windows `which` up to positions `at`, else 0, shape (E, T).

    >>> pasts_of(np.array([[0, 4, 7]]), np.array([0, 0]), np.array([1, 2])).tolist()
    [[0, 4, 0], [0, 4, 7]]
    """
    return np.where(np.arange(rows.shape[1]) <= at[:, None], rows[which], 0)


def requests_at(histories: Histories, events: NDArray[np.int64]) -> Requests:
    """Return what is asked at the moment of each target event, from the user's events before it."""
    index, is_past = _window(histories, events)
    return _requests(histories, index, is_past, histories.time_s[events], histories.rows[events])


def requests_when(
    histories: Histories, user_ids: Sequence[str], time_s: NDArray[np.int64]
) -> Requests:
    """Return what is asked of users at given seconds, from their events before them.

    Targets are 0; of a user who did nothing before, or is not known, so is all.

    >>> h = build_histories(["a", "a"], ["x", "y"], [1, 1], [10, 20], item_ids=["x", "y"])
    >>> asked = requests_when(h, ["a", "b", "a"], np.array([20, 20, 25]))
    >>> asked.rows[:, -2:].tolist(), asked.age_s[:, -1].tolist()
    ([[0, 1], [0, 0], [1, 2]], [10.0, 0.0, 5.0])
    """
    place_of = {user: place for place, user in enumerate(histories.user_ids)}
    ends, sizes = np.zeros(len(user_ids), np.int64), np.zeros(len(user_ids), np.int64)
    for asked, user in enumerate(user_ids):
        if (place := place_of.get(user)) is not None:
            start, stop = histories.offsets[place : place + 2]
            sizes[asked] = np.searchsorted(histories.time_s[start:stop], time_s[asked])
            ends[asked] = start + sizes[asked]
    steps = np.arange(-HISTORY, 0)
    is_past = steps >= -sizes[:, None]  # (B, T)
    index = np.where(is_past, ends[:, None] + steps, 0)
    return _requests(histories, index, is_past, time_s, np.zeros(len(user_ids), np.int64))


def _requests(
    histories: Histories,
    index: NDArray[np.int64],
    is_past: NDArray[np.bool_],
    time_s: NDArray[np.int64],
    targets: NDArray[np.int64],
) -> Requests:
    """Return requests at `time_s`, shape (B,), of the events `index`, shape (B, T)."""
    rows = np.where(is_past, histories.rows[index], 0)  # (B, T)
    age_s = np.where(is_past, time_s[:, None] - histories.time_s[index], 0)
    contexts = np.zeros((len(rows), N_CONTEXT), np.float32)
    if histories.contexts is not None:
        contexts[is_past[:, -1]] = histories.contexts[index[is_past[:, -1], -1]]
    return Requests(
        rows=rows,
        types=np.where(is_past, histories.types[index], 0).astype(np.int64),
        age_s=age_s.astype(np.float32),
        contexts=contexts,
        targets=targets,
    )


def training_windows(
    histories: Histories,
    *,
    until_s: int,
    batch_size: int,
    rng: np.random.Generator,
    baskets: bool = False,
) -> Iterator[Windows]:
    """Yield one epoch of shuffled windows, in which each target before `until_s` is once.

    More than T targets of a user are cut at a random phase, a new one each epoch, so that a
    target is met with short and with long histories.

    With `baskets` all that a user did in one second is asked for from before the first of it:
    the order in it says little, and a model that learns it learns what goes with what is in the
    basket already. What fills a window from its start is not asked for then.
    """
    ends = _window_ends(histories, until_s, rng)
    rng.shuffle(ends)
    for start in range(0, len(ends), batch_size):
        first, last = ends[start : start + batch_size].T
        yield _windows(histories, first, last, rng, baskets=baskets)


def n_windows(histories: Histories, *, until_s: int) -> int:
    """Return about how many windows an epoch has."""
    n_past = np.add.reduceat(
        np.append(histories.time_s < until_s, 0).astype(np.int64), histories.offsets[:-1]
    )
    n_cuts = np.where(n_past > HISTORY, (n_past - 1) / HISTORY, 0)
    return int((n_cuts + 1)[n_past > 0].sum())


def time_bucket(seconds: NDArray[np.floating] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bucket of an elapsed time: floor(log2(1 + seconds)), within 0..N_BUCKETS - 1.

    Exact (it reads the exponent), so training and serving agree at every border.

    >>> time_bucket(np.array([-5.0, 0.0, 1.0, 2.9, 3.0, 3600.0, 1e30])).tolist()
    [0, 0, 1, 1, 2, 11, 31]
    """
    exponents: NDArray[np.int32] = np.frexp(1.0 + np.maximum(seconds, 0))[1]
    return np.minimum(exponents - 1, N_BUCKETS - 1).astype(np.int64)


def gap_buckets(rows: NDArray[np.int64], age_s: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the bucket of the time since the item before, shape (B, T); 0 for the first item.

    Gaps, not ages, are what the sequence layers read: an item's gap never changes afterwards,
    so its keys and values may be kept from one request to the next.
    """
    gaps = np.zeros(rows.shape, np.float32)
    gaps[:, 1:] = np.where(rows[:, :-1] > 0, age_s[:, :-1] - age_s[:, 1:], 0)
    return time_bucket(gaps)


def _firsts(histories: Histories) -> NDArray[np.int64]:
    """Return the first event of each event's user, shape (E,)."""
    return np.repeat(histories.offsets[:-1], np.diff(histories.offsets))


def _is_repeat(histories: Histories) -> NDArray[np.bool_]:
    is_repeat = np.zeros(len(histories.rows), np.bool_)
    is_repeat[1:] = histories.rows[1:] == histories.rows[:-1]
    is_repeat[histories.offsets[:-1][np.diff(histories.offsets) > 0]] = False
    return is_repeat


def _window(
    histories: Histories, targets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the T event numbers before each target, and which of them are the same user's."""
    users = np.searchsorted(histories.offsets, targets, side="right") - 1
    index = targets[:, None] - HISTORY + np.arange(HISTORY)  # (B, T)
    is_own = index >= histories.offsets[users][:, None]
    return np.where(is_own, index, 0), is_own


def _window_ends(histories: Histories, until_s: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return (first target, last target) of each window, shape (W, 2)."""
    spans = []
    for start, stop in zip(histories.offsets[:-1], histories.offsets[1:], strict=True):
        end = start + np.searchsorted(histories.time_s[start:stop], until_s)
        # Up to T targets need no cut: one window gives each of them its whole past.
        phase = rng.integers(1, HISTORY + 1) if end - start > HISTORY else HISTORY
        cuts = np.arange(start + phase, end, HISTORY)
        borders = np.unique(np.concatenate(([start], cuts, [end])))
        spans.append(np.stack((borders[:-1], borders[1:] - 1), axis=1))
    return np.concatenate(spans) if spans else np.empty((0, 2), np.int64)


def _windows(
    histories: Histories,
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    baskets: bool,
) -> Windows:
    index, is_own = _window(histories, last)
    target = np.minimum(last[:, None] - HISTORY + 1 + np.arange(HISTORY), last[:, None])  # (B, T)
    is_target = target >= first[:, None]
    target = np.where(is_target, target, 0)
    rows = np.where(is_own, histories.rows[index], 0)
    gap_s = np.zeros(rows.shape, np.int64)
    gap_s[:, 1:] = np.where(
        is_own[:, :-1], histories.time_s[index[:, 1:]] - histories.time_s[index[:, :-1]], 0
    )
    to_target = np.where(is_own & is_target, histories.time_s[target] - histories.time_s[index], 0)
    # The trigger falls anywhere between the two events, evenly in log time: in serving it may
    # come seconds after the last event (intent) or days after it (idle).
    age_s = np.expm1(rng.random(rows.shape) * np.log1p(np.maximum(to_target, 0)))
    is_new = histories.rows[target] != rows
    weights = TARGET_WEIGHT[histories.types[target]] * (is_target & is_new)
    since = np.broadcast_to(np.arange(HISTORY), rows.shape)
    if baskets:
        since = np.maximum.accumulate(np.where(to_target > 0, since, -1), axis=1)
        weights = weights * (since >= 0)
        since = np.maximum(since, 0)
    contexts = None
    if histories.contexts is not None:
        contexts = np.where(is_own[:, :, None], histories.contexts[index], 0)  # (B, T, C)
    return Windows(
        rows=rows,
        types=np.where(is_own, histories.types[index], 0).astype(np.int64),
        gaps=time_bucket(gap_s),
        ages=time_bucket(age_s),
        contexts=contexts,
        targets=np.where(is_target, histories.rows[target], 0),
        weights=weights.astype(np.float32),
        since=since,
        users=np.searchsorted(histories.offsets, last, side="right") - 1,
    )
