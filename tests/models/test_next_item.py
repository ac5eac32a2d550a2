"""Metrics of next-item models against numbers worked out by hand."""

import numpy as np
import pytest

from models.baselines import ItemCF, Popularity
from models.dataset import Histories, Requests, build_histories
from models.next_item import (
    Answers,
    Judge,
    answers,
    calibration_error,
    exam,
    fit,
    of_baseline,
    of_requests,
    values,
)

ITEMS = ["a", "b", "c", "d"]


def histories() -> Histories:
    return build_histories(
        ["u", "u", "u", "v", "v", "v"],
        ["a", "b", "c", "b", "a", "b"],
        [1] * 6,
        [0, 10, 100, 1, 11, 101],
        item_ids=ITEMS,
    )


def liking(*scores: float) -> Answers:
    """Return the answers of a model that gives a, b, c, d these scores, whoever asks."""
    asked = exam(histories(), 10, None, repeats=True, limit=100)
    given = np.array([scores], np.float32)
    return answers(lambda events: np.repeat(given, len(events), axis=0), asked)


def test_ranks_and_lists_of_fixed_scores() -> None:
    # What came from second 10 on: b, c of u; a, b of v.
    found = liking(0.4, 0.3, 0.2, 0.1)
    assert found.rank.tolist() == [2, 3, 1, 2]
    assert found.lists[0].tolist() == [1, 2, 3, 4]


def test_ties_count_against_the_model() -> None:
    assert liking(0.0, 0.0, 0.0, 0.0).rank.tolist() == [4, 4, 4, 4]
    assert liking(1.0, 1.0, 0.0, 0.0).rank.tolist() == [2, 4, 2, 2]


def test_metrics_by_hand() -> None:
    found = values(np.array([1, 2, 6, 11, 40]))
    assert found["hr@5"].mean() == pytest.approx(2 / 5)
    assert found["hr@10"].mean() == found["recall@10"].mean() == pytest.approx(3 / 5)
    assert found["ndcg@10"].mean() == pytest.approx((1 + 1 / np.log2(3) + 1 / np.log2(7)) / 5)
    assert found["mrr@10"].mean() == pytest.approx((1 + 1 / 2 + 1 / 6) / 5)
    assert found["mrr@20"].mean() == pytest.approx((1 + 1 / 2 + 1 / 6 + 1 / 11) / 5)


def test_auc_precision_f1_and_mrr_by_hand() -> None:
    found = liking(0.4, 0.3, 0.2, 0.1)  # ranks 2, 3, 1, 2 of four
    assert found.auc.tolist() == pytest.approx([2 / 3, 1 / 3, 1.0, 2 / 3])
    by_hand = values(np.array([1, 7]))
    assert by_hand["precision@5"].tolist() == [1 / 5, 0.0]
    assert by_hand["f1@5"].tolist() == pytest.approx([2 * (1 / 5) * 1 / (1 / 5 + 1), 0.0])
    assert by_hand["mrr"].tolist() == [1.0, 1 / 7]


def test_confidence_is_a_softmax_of_logits_and_the_share_of_counts() -> None:
    asked = exam(histories(), 10, None, repeats=False, limit=100)
    scores = np.log(np.array([[4.0, 3.0, 2.0, 1.0]], np.float32))

    def logits(events: np.ndarray) -> np.ndarray:
        return np.repeat(scores, len(events), axis=0)

    # u had a, then a and b; v had b.
    sure = [3 / 6, 2 / 3, 4 / 7]
    assert answers(logits, asked).confidence.tolist() == pytest.approx(sure)
    counts = answers(lambda events: np.exp(logits(events)), asked, is_logit=False)
    assert counts.confidence.tolist() == pytest.approx(sure)
    # Each was right at its first item, of which it was 3/6, 2/3 and 4/7 sure.
    targets = asked.histories.rows[asked.events]
    assert calibration_error(counts, targets) == pytest.approx(1 - np.mean(sure))


def test_what_the_user_had_is_neither_asked_for_nor_ranked() -> None:
    asked = exam(histories(), 10, None, repeats=False, limit=100)
    assert [ITEMS[row - 1] for row in asked.histories.rows[asked.events]] == ["b", "c", "a"]
    scores = np.array([[0.4, 0.3, 0.2, 0.1]], np.float32)
    found = answers(lambda events: np.repeat(scores, len(events), axis=0), asked)
    # u had a, then a and b; v had b.
    assert found.rank.tolist() == [1, 1, 1]
    assert found.lists[:, :4].tolist() == [[2, 3, 4, 0], [3, 4, 0, 0], [1, 3, 4, 0]]


def test_a_basket_is_asked_for_before_its_first_item() -> None:
    # u had a, then b, c and d in one second; v came with a basket and has nothing before.
    bought = build_histories(
        ["u", "u", "u", "u", "v", "v"],
        ["a", "b", "c", "d", "a", "b"],
        [1] * 6,
        [0, 10, 10, 10, 10, 10],
        item_ids=ITEMS,
    )
    asked = exam(bought, 10, None, repeats=False, limit=100, baskets=True)
    assert [ITEMS[row - 1] for row in bought.rows[asked.events]] == ["b", "c", "d"]
    assert asked.asked.tolist() == [1, 1, 1]
    scores = np.array([[0.4, 0.3, 0.2, 0.1]], np.float32)
    seen: list[list[int]] = []

    def score(events: np.ndarray) -> np.ndarray:
        seen.append(events.tolist())
        return np.repeat(scores, len(events), axis=0)

    # Only a is left out: nothing of the basket is known yet.
    assert answers(score, asked).rank.tolist() == [1, 2, 3]
    assert seen == [[1, 1, 1]]


def test_means_differences_and_spread_over_two_runs() -> None:
    asked = exam(histories(), 10, None, repeats=True, limit=100)
    judge = Judge(asked, known_s=10, vectors=np.eye(4), seed=0)
    good, poor = liking(0.4, 0.3, 0.2, 0.1), liking(0.1, 0.2, 0.3, 0.4)
    assert judge.means([good])["mrr@5"].value == pytest.approx((1 / 2 + 1 / 3 + 1 + 1 / 2) / 4)
    both = judge.means([good, poor])["mrr@5"].value
    alone = [judge.means([run])["mrr@5"].value for run in (good, poor)]
    assert both == pytest.approx(np.mean(alone))
    assert judge.gain([good], [poor], "mrr@5").value == pytest.approx(alone[0] - alone[1])
    assert judge.gain([good], [good], "mrr@5")[1:] == (0.0, 0.0)
    # a and b are known to one of two users each, c and d to none.
    spread = judge.spread([good], 5)
    assert spread["coverage@5"] == 1.0
    assert spread["diversity@5"] == pytest.approx(1.0)  # unlike in all their columns
    assert spread["novelty@5"] == pytest.approx((2 * np.log2(3 / 2) + 2 * np.log2(3)) / 4)


def test_popularity_counts_what_was_before_the_cut_only() -> None:
    model = Popularity(half_life=float("inf"))
    fit(model, histories(), 4, until_s=12)
    score = of_baseline(model, histories(), 4)
    assert score(np.array([2])).tolist() == [[2.0, 2.0, 0.0, 0.0]]


def test_a_baseline_reads_the_whole_past_of_the_request_and_no_more() -> None:
    model = ItemCF(half_life=float("inf"), shrink=0.0, neighbours=10)
    fit(model, histories(), 4, until_s=200)
    found = of_baseline(model, histories(), 4)(np.array([1, 2]))
    # Before b, u had a: c goes with a by 1 / sqrt(2); before c, a and b, each by as much.
    assert found[0, 2] == pytest.approx(2**-0.5, abs=1e-6)
    assert found[1, 2] == pytest.approx(2 * 2**-0.5, abs=1e-6)


def test_a_model_of_requests_is_asked_at_the_moment_of_the_event() -> None:
    seen: list[list[int]] = []

    def score(asked: Requests) -> np.ndarray:
        seen.append([int(n) for n in (asked.rows > 0).sum(axis=1)])
        return np.zeros((len(asked.rows), 4), np.float32)

    asked = exam(histories(), 10, None, repeats=True, limit=100)
    answers(of_requests(score, asked.histories), asked)
    assert seen == [[1, 2, 1, 2]]
