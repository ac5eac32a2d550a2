from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.dataset import (
    N_BUCKETS,
    Histories,
    basket_starts,
    build_histories,
    gap_buckets,
    had_before,
    popularity,
    requests_at,
    targets_between,
    time_bucket,
    time_split,
    training_windows,
)
from models.features import EVENT_CODE, HISTORY, N_CONTEXT

ITEMS = [f"i{n}" for n in range(20)]


def histories(events: list[tuple[str, str, int]], kind: str = "view", **more: object) -> Histories:
    users, items, times = zip(*events, strict=True) if events else ((), (), ())
    kinds = [EVENT_CODE[kind]] * len(events)
    return build_histories(users, items, kinds, times, item_ids=ITEMS, **more)  # type: ignore[arg-type]


def test_events_are_grouped_by_user_in_time_order_and_unknown_items_left_out() -> None:
    h = histories(
        [("b", "i1", 5), ("a", "i2", 9), ("b", "nope", 6), ("b", "i3", 2), ("b", "i4", 5)]
    )
    assert h.user_ids == ["a", "b"]
    assert h.offsets.tolist() == [0, 1, 4]
    assert h.rows.tolist() == [3, 4, 2, 5]
    assert h.time_s.tolist() == [9, 2, 5, 5]


def test_contexts_follow_their_events() -> None:
    contexts = np.arange(2 * N_CONTEXT, dtype=np.float32).reshape(2, N_CONTEXT)
    h = histories([("a", "i1", 9), ("a", "i2", 3)], contexts=contexts)
    assert h.contexts is not None
    assert h.contexts[:, 0].tolist() == [N_CONTEXT, 0]


def test_a_split_puts_an_event_at_the_cut_into_the_later_part() -> None:
    h = histories([("a", f"i{n}", n) for n in range(10)])
    assert time_split(h, validation=0.3, test=0.2) == (5, 8)
    assert h.time_s[targets_between(h, 5, 8, limit=99)].tolist() == [5, 6, 7]
    assert popularity(h, 20, until_s=5).sum() == 5


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.1), (0.1, 0.0), (0.6, 0.5)])
def test_a_split_that_leaves_a_part_empty_is_refused(validation: float, test: float) -> None:
    with pytest.raises(ValueError, match="shares"):
        time_split(histories([("a", "i1", 1)]), validation=validation, test=test)


def test_a_request_holds_only_what_came_before_its_target() -> None:
    contexts = np.arange(3, dtype=np.float32)[:, None] * np.ones((1, N_CONTEXT), np.float32)
    h = histories([("a", "i1", 10), ("a", "i2", 40), ("a", "i3", 100)], contexts=contexts)
    r = requests_at(h, np.array([2, 0]))
    assert r.targets.tolist() == [4, 2]
    assert r.rows[:, -3:].tolist() == [[0, 2, 3], [0, 0, 0]]
    assert r.age_s[0, -2:].tolist() == [90, 60]
    assert r.contexts[:, 0].tolist() == [1, 0]  # as after event i2; none before the first


def test_a_repeat_of_the_item_before_is_no_target_but_another_users_same_item_is() -> None:
    h = histories([("a", "i1", 1), ("a", "i1", 2), ("a", "i2", 3), ("b", "i2", 4)])
    assert targets_between(h, 0, None, limit=9).tolist() == [0, 2, 3]


def test_undone_interactions_are_no_targets() -> None:
    h = histories([("a", "i1", 1), ("a", "i2", 2)], kind="refund")
    assert targets_between(h, 0, None, limit=9).tolist() == []
    assert popularity(h, 20, until_s=9).sum() == 0


@given(st.lists(st.integers(1, 260), min_size=1, max_size=4), st.integers(0, 5))
def test_an_epoch_has_each_target_before_the_cut_once_with_its_own_past(
    lengths: list[int], seed: int
) -> None:
    events = [(f"u{u}", f"i{n % 20}", n) for u, size in enumerate(lengths) for n in range(size)]
    h = histories(events)
    batches = list(training_windows(h, until_s=200, batch_size=3, rng=np.random.default_rng(seed)))
    n_targets = sum(int((b.weights > 0).sum()) for b in batches)
    assert n_targets == sum(min(size, 200) for size in lengths)
    for b in batches:
        # Items come in a cycle of 20, so a window is right if each target follows its position.
        has_past = (b.weights > 0) & (b.rows > 0)
        assert (b.targets[has_past] == b.rows[has_past] % 20 + 1).all()
        is_first = (b.weights > 0) & (b.rows == 0)
        assert (b.targets[is_first] == 1).all()
        assert (np.diff((b.rows > 0).astype(int), axis=1) >= 0).all()  # padding on the left only


def test_a_trigger_falls_between_an_event_and_its_target() -> None:
    h = histories([("a", f"i{n}", n * 1_000) for n in range(20)])
    (batch,) = training_windows(h, until_s=10**9, batch_size=99, rng=np.random.default_rng(0))
    ages = batch.ages[(batch.weights > 0) & (batch.rows > 0)]
    assert ages.max() <= time_bucket(np.array([1_000]))[0]
    assert ages.min() < ages.max()
    assert (batch.gaps[:, -5:] == time_bucket(np.array([1_000]))[0]).all()


def test_what_was_done_in_one_second_is_asked_for_before_the_first_of_it() -> None:
    bought = [("a", 0), ("b", 10), ("c", 10), ("d", 10), ("e", 90)]
    h = build_histories(["u"] * 5, *zip(*((i, 1, t) for i, t in bought), strict=True),
                        item_ids=list("abcde"))  # fmt: skip
    windows = partial(training_windows, h, until_s=99, batch_size=9)
    (own,) = windows(rng=np.random.default_rng(0))
    (batch,) = windows(rng=np.random.default_rng(0), baskets=True)
    last = np.arange(HISTORY - 4, HISTORY)

    assert (own.since == np.arange(HISTORY)).all()
    which, at = batch.asked()
    assert batch.targets[batch.weights > 0].tolist() == [2, 3, 4, 5]
    assert at.tolist() == [last[0]] * 3 + [last[3]]
    assert batch.rows[which, at].tolist() == [1, 1, 1, 4]
    # Nothing but `since` and the very first item, which has nothing before it, is different.
    assert own.targets[own.weights > 0].tolist() == [1, 2, 3, 4, 5]
    for name in ("rows", "types", "gaps", "ages"):
        assert (getattr(own, name) == getattr(batch, name)).all()
    # The age that is read is of where it is asked from, up to the basket.
    assert batch.ages[which, at].max() <= time_bucket(np.array([80]))[0]
    assert basket_starts(h).tolist() == [0, 1, 1, 1, 4]
    assert targets_between(h, 0, None, limit=9, baskets=True).tolist() == [1, 2, 3, 4]


def test_a_window_that_begins_inside_a_basket_does_not_ask_for_the_rest_of_it() -> None:
    n = 3 * HISTORY
    h = histories([("a", f"i{k % 20}", 7) for k in range(n)] + [("a", "i3", 50)])
    rng = np.random.default_rng(3)
    batches = list(training_windows(h, until_s=99, batch_size=1, rng=rng, baskets=True))
    assert sum(int((b.weights > 0).sum()) for b in batches) == 1
    assert len(batches) >= 3


def test_a_basket_holds_nothing_that_was_had_before_it_begins() -> None:
    h = histories([("a", "i1", 0), ("a", "i2", 10), ("a", "i1", 10), ("a", "i2", 10)])
    (batch,) = training_windows(
        h, until_s=99, batch_size=9, rng=np.random.default_rng(0), baskets=True
    )
    assert had_before(batch)[0, -3:].tolist() == [False, True, False]


def test_time_buckets_double_and_never_decrease() -> None:
    seconds = np.array([0.0, 0.99, 1, 2.99, 3, 6.99, 7, 86_400, 3e9, 1e20])
    assert time_bucket(seconds).tolist() == [0, 0, 1, 1, 2, 2, 3, 16, 31, 31]
    assert time_bucket(np.array([-7])).tolist() == [0]
    assert N_BUCKETS == 32


def test_the_first_item_has_no_gap_even_behind_padding() -> None:
    rows, age_s = np.zeros((1, HISTORY), np.int64), np.zeros((1, HISTORY), np.float32)
    rows[0, -2:], age_s[0, -2:] = [3, 4], [1_000, 0]
    assert gap_buckets(rows, age_s)[0, -3:].tolist() == [0, 0, 9]
