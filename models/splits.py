"""Ways to cut histories into training, validation and test.

Reads   histories.
Emits   histories and two cuts of time, which is all that training and evaluation ask for;
        several of them for folds that roll through time.

Everybody's time is cut at once where time means something (`models.dataset.time_split`). Where it
does not, in files that tell the order alone, or where numbers must compare with papers, each
user's last item is the test and the one before it the validation: *leave one out*. It lets a model
read what others did later. Here it is the same cut of time: each user's clock is moved so that
the two last items fall behind the cuts, and only pauses between items, which stay, are ever read.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.dataset import Histories, time_split


class Split(NamedTuple):
    """Histories, where they are cut, and the shares of events that `time_split` cuts there."""

    histories: Histories
    cuts: tuple[int, int]  # seconds: validation from the first, test from the second
    validation: float
    test: float


def by_time(histories: Histories, *, validation: float, test: float) -> Split:
    """Return a cut of everybody's time at once."""
    cuts = time_split(histories, validation=validation, test=test)
    return Split(histories, cuts, validation, test)


def rolling(histories: Histories, folds: int, *, validation: float, test: float) -> list[Split]:
    """Return cuts that move through time: cross-validation in which nobody learns from later.

    The last fold is `by_time`; each one before ends where the test of the next begins. Tests do
    not overlap. Shares are of all events.

    Raises
    ------
    ValueError
        If the first fold would have nothing to train on.

    Examples
    --------
    >>> from models.dataset import build_histories
    >>> histories = build_histories(["a"] * 10, ["x"] * 10, [1] * 10, range(10), item_ids=["x"])
    >>> splits = rolling(histories, 3, validation=0.1, test=0.2)
    >>> [(split.cuts, len(split.histories.rows)) for split in splits]
    [((3, 4), 6), ((5, 6), 8), ((7, 8), 10)]
    """
    left = 1 - test * (folds - 1)
    if folds < 1 or left - validation - test <= 0:
        raise ValueError(f"{folds} folds of {test:g} each leave nothing to train on")
    times, found = np.sort(histories.time_s), []
    for place in range(folds):
        share = 1 - test * (folds - 1 - place)
        last = round(len(times) * share)
        until_s = int(times[last]) if last < len(times) else None
        found.append(
            by_time(_before(histories, until_s), validation=validation / share, test=test / share)
        )
    return found


def _before(histories: Histories, until_s: int | None) -> Histories:
    """Return histories before a moment, of the users who have any."""
    if until_s is None:
        return histories
    is_past = histories.time_s < until_s
    offsets = np.concatenate(([0], np.cumsum(is_past)))[histories.offsets]
    has_some, contexts = np.diff(offsets) > 0, histories.contexts
    return Histories(
        user_ids=[user for user, has in zip(histories.user_ids, has_some, strict=True) if has],
        offsets=np.concatenate((offsets[:1], offsets[1:][has_some])),
        rows=histories.rows[is_past],
        types=histories.types[is_past],
        time_s=histories.time_s[is_past],
        contexts=None if contexts is None else contexts[is_past],
    )


def leave_one_out(histories: Histories) -> Split:
    """Return histories whose users' last events are the test, the ones before the validation.

    Users with fewer than three events are trained on whole. Events of one second are put a
    second apart, so that the cut falls between them.

    Raises
    ------
    ValueError
        If no user has three events.

    Examples
    --------
    >>> from models.dataset import build_histories
    >>> histories = build_histories(["a"] * 4 + ["b"] * 3, [*"wxyz", *"xyz"], [1] * 7,
    ...                             [0, 5, 5, 9, 70, 80, 100], item_ids=[*"wxyz"])
    >>> split = leave_one_out(histories)
    >>> times = split.histories.time_s
    >>> (times >= split.cuts[0]).tolist()
    [False, False, True, True, False, True, True]
    >>> (times >= split.cuts[1]).tolist()
    [False, False, False, True, False, False, True]
    >>> np.diff(times[:4]).tolist()
    [5, 1, 3]
    """
    sizes = np.diff(histories.offsets)
    n_out = int((sizes >= 3).sum())
    if not n_out:
        raise ValueError("no user has three events: there is nothing to leave out")
    times = _apart(histories)
    first = int(times.max() - times.min()) + 1
    ends = histories.offsets[1:]
    # Of users who are trained on whole the last event falls just before the cut.
    pinned = np.where(sizes >= 3, np.maximum(ends - 2, 0), np.maximum(ends - 1, 0))
    at = np.where(sizes >= 3, first, first - 1) - times[pinned]
    moved = times + np.repeat(at, sizes)
    cuts = first, int(np.min(moved[ends - 1][sizes >= 3]))
    share = n_out / len(times)
    return Split(histories._replace(time_s=moved), cuts, share, share)


def _apart(histories: Histories) -> NDArray[np.int64]:
    """Return each user's times, made to grow by a second at least."""
    times = histories.time_s.astype(np.int64)
    users = np.repeat(np.arange(len(histories.user_ids)), np.diff(histories.offsets))
    places = np.arange(len(times)) - np.repeat(histories.offsets[:-1], np.diff(histories.offsets))
    # t_i >= t_(i-1) + 1 is t_i - i >= t_(i-1) - (i - 1): a running maximum, user after user.
    far = int(times.max() - times.min()) + len(times) + 1 if len(times) else 1
    slack = times - places + users * far
    grown: NDArray[np.int64] = np.maximum.accumulate(slack) - users * far + places
    return grown
