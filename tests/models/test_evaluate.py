import numpy as np
import pytest

from models.dataset import Requests, build_histories
from models.evaluate import next_item_ranks, ranking_metrics, ranks


def test_a_constant_scorer_ranks_every_item_last() -> None:
    scores = np.zeros((2, 50))
    assert ranks(scores, np.array([0, 1]), np.array([0, 49])).tolist() == [50, 50]
    assert ranking_metrics(scores, [[0], [49]], cuts=(10,))["ndcg@10"] == 0


def test_scores_that_are_no_numbers_rank_last() -> None:
    scores = np.array([[np.nan, 0.0, -5.0]])
    assert ranks(scores, np.array([0, 0, 0]), np.array([0, 1, 2])).tolist() == [3, 1, 2]


def test_metrics_of_one_right_item_follow_their_formulas() -> None:
    scores = np.array([[5.0, 4.0, 3.0, 2.0], [5.0, 4.0, 3.0, 2.0]])
    found = ranking_metrics(scores, [[1], [3]], cuts=(2,))
    assert found["hr@2"] == found["recall@2"] == 0.5
    assert found["precision@2"] == 0.25
    assert found["ndcg@2"] == pytest.approx(0.5 / np.log2(3))
    assert found["mrr"] == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_a_perfect_ranking_of_more_right_items_than_the_cut_has_ndcg_one() -> None:
    scores = np.array([[4.0, 3.0, 2.0, 1.0]])
    found = ranking_metrics(scores, [[0, 1, 2]], cuts=(2, 3))
    assert found["ndcg@2"] == found["ndcg@3"] == found["mrr"] == 1
    assert found["recall@2"] == pytest.approx(2 / 3)


def test_items_left_out_do_not_push_others_down() -> None:
    scores = np.array([[-np.inf, 1.0, -np.inf]])
    assert ranks(scores, np.array([0]), np.array([1])).tolist() == [1]


@pytest.mark.parametrize("relevant", [[[]], [], [[0], [1]]])
def test_a_request_without_a_right_item_is_refused(relevant: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="right item"):
        ranking_metrics(np.zeros((1, 3)), relevant)


def test_a_model_is_asked_with_each_targets_past_and_ranked_over_all_items() -> None:
    items = ["x", "y", "z"]
    histories = build_histories(["a"] * 3, items, [1] * 3, [1, 2, 3], item_ids=items)

    def likes_the_newest(requests: Requests) -> np.ndarray:
        return np.eye(4)[requests.rows[:, -1]][:, 1:]

    found = next_item_ranks(likes_the_newest, histories, np.array([0, 1, 2]))
    assert found.tolist() == [3, 3, 3]  # a tie of all; then the item before stands first


def test_no_targets_give_no_ranks() -> None:
    histories = build_histories(["a"], ["x"], [1], [1], item_ids=["x"])
    none = np.empty(0, np.int64)
    assert next_item_ranks(lambda _: np.zeros((0, 1)), histories, none).tolist() == []
