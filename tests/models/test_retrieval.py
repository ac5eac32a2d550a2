"""What is asked of retrieval: all that a user takes up at once, of what is new to them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.dataset import Histories, Requests, build_histories, requests_at
from models.features import EVENT_CODE
from models.linear_weights import UNIT, ItemWeights
from models.retrieval import K, linear_scores, recalls, stretches_between

ITEMS = [f"i{n}" for n in range(1, 151)]
HOUR_S = 3_600


def orders() -> Histories:
    """Return a's two orders, the second an hour later with an item of the first, and b's first."""
    events = [
        ("a", "i1", 0, "purchase"), ("a", "i2", 10, "purchase"),
        ("a", "i1", HOUR_S, "purchase"), ("a", "i3", HOUR_S + 10, "purchase"),
        ("a", "i4", HOUR_S + 20, "purchase"), ("a", "i5", HOUR_S + 30, "cart_remove"),
        ("b", "i3", HOUR_S, "purchase"),
    ]  # fmt: skip
    users, items, times, types = zip(*events, strict=True)
    return build_histories(users, items, [EVENT_CODE[x] for x in types], times, item_ids=ITEMS)


def test_a_stretch_is_what_follows_a_pause_of_a_user_with_a_past() -> None:
    found = stretches_between(orders(), HOUR_S, 2 * HOUR_S, limit=9)
    assert [x.tolist() for x in found] == [[2], [6], [0]]
    assert not len(stretches_between(orders(), HOUR_S + 1, 2 * HOUR_S, limit=9).starts)


@pytest.mark.parametrize(("n_better", "share"), [(K - 1, 0.5), (K - 2, 1.0)])
def test_only_new_items_count_and_take_places(n_better: int, share: float) -> None:
    # Items 3 and 4 are new and wanted: 3 is the best, and 4 stands behind `n_better` others.
    def score(requests: Requests) -> NDArray[np.float64]:
        scores = np.zeros((len(requests.rows), len(ITEMS)))
        scores[:, :4] = 9.0, 9.0, 8.0, 1.0  # what was met is better still, and takes no place
        scores[:, 4 : 4 + n_better] = 7.0
        return scores

    stretches = stretches_between(orders(), HOUR_S, 2 * HOUR_S, limit=9)
    assert recalls(score, orders(), stretches).tolist() == [share]


def test_weights_of_the_newer_items_say_more_and_of_what_was_taken_back_nothing() -> None:
    # i1 says a quarter of i3, i2 says half of i4, and i3 says all of i5.
    starts = np.array([0, 1, 2, 3, *[3] * (len(ITEMS) - 3)])
    quarters = np.uint16([UNIT // 4, UNIT // 2, UNIT])
    score = linear_scores(ItemWeights(starts, np.int32([2, 3, 4]), quarters))
    kinds = ("purchase", "purchase", "cart_remove")
    users, items, types = ["a"] * 3, ["i1", "i2", "i3"], [EVENT_CODE[kind] for kind in kinds]
    histories = build_histories(users, items, types, [0, 10, 20], item_ids=ITEMS)
    assert score(requests_at(histories, np.array([2])))[0, :6].tolist() == pytest.approx(
        [0, 0, 0.99 * 0.25, 0.5, 0, 0]
    )
    scores = score(requests_at(histories, np.array([1])))
    assert scores.shape == (1, len(ITEMS))
    assert scores[0, 2:5].tolist() == [0.25, 0, 0]
