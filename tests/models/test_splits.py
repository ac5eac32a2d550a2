"""Leaving one out is a cut of time on moved clocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.dataset import build_histories, targets_between, time_split
from models.splits import leave_one_out

ITEMS = [*"abcdefgh"]


@given(
    st.lists(
        st.lists(st.integers(0, 50), min_size=1, max_size=8),
        min_size=1,
        max_size=6,
    ).filter(lambda users: any(len(times) >= 3 for times in users))
)
def test_each_users_last_two_items_are_behind_the_cuts_and_nothing_else(
    users: list[list[int]],
) -> None:
    events = [(f"u{u}", time) for u, times in enumerate(users) for time in sorted(times)]
    items = [ITEMS[n % 8] for n in range(len(events))]
    histories = build_histories(
        [user for user, _ in events],
        items,
        [1] * len(events),
        [time for _, time in events],
        item_ids=ITEMS,
    )
    split = leave_one_out(histories)

    long = np.diff(histories.offsets) >= 3
    lasts = histories.offsets[1:][long] - 1
    moved = split.histories
    n = len(events)
    assert np.flatnonzero(moved.time_s >= split.cuts[1]).tolist() == lasts.tolist()
    between = (moved.time_s >= split.cuts[0]) & (moved.time_s < split.cuts[1])
    assert np.flatnonzero(between).tolist() == (lasts - 1).tolist()
    assert moved.rows.tolist() == histories.rows.tolist()
    # The student's own training cuts by shares, and comes to the same places.
    if split.validation + split.test < 1:
        cuts = time_split(moved, validation=split.validation, test=split.test)
        first, second = (targets_between(moved, cut, None, limit=n) for cut in cuts)
        ours = (targets_between(moved, cut, None, limit=n) for cut in split.cuts)
        assert [first.tolist(), second.tolist()] == [own.tolist() for own in ours]


def test_pauses_between_a_users_items_stay() -> None:
    histories = build_histories(
        ["a"] * 4 + ["b"] * 3, [*"abcd", *"abc"], [1] * 7, [0, 10, 40, 100, 7, 9, 30],
        item_ids=ITEMS,
    )  # fmt: skip
    times = leave_one_out(histories).histories.time_s
    assert np.diff(times[:4]).tolist() == [10, 30, 60]
    assert np.diff(times[4:]).tolist() == [2, 21]


def test_histories_too_short_to_leave_anything_out_are_refused() -> None:
    histories = build_histories(["a", "a"], ["a", "b"], [1, 1], [0, 1], item_ids=ITEMS)
    with pytest.raises(ValueError, match="three events"):
        leave_one_out(histories)
