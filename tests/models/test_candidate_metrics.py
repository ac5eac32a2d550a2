"""Measures of candidates: by hand, on ties, empty lists and cold items."""

import numpy as np
import pytest

from models.candidate_metrics import (
    Resampling,
    coverage,
    is_found,
    novelty,
    pairs_of,
    share_by_case,
)

LISTS = np.array([[5, 3, 9], [3, 0, 0], [0, 0, 0]])


def test_recall_counts_what_is_among_the_first_k() -> None:
    wanted = pairs_of([[3, 9], [3, 5], [1]])
    at_2 = share_by_case(is_found(LISTS, wanted, 2), wanted, 3)
    at_3 = share_by_case(is_found(LISTS, wanted, 3), wanted, 3)
    assert at_2.tolist() == [0.5, 0.5, 0.0]
    assert at_3.tolist() == [1.0, 0.5, 0.0]


def test_padding_is_never_found_even_where_row_0_is_wanted() -> None:
    wanted = pairs_of([[0], [0], [0]])
    assert is_found(LISTS, wanted, 3).tolist() == [False, False, False]


def test_a_case_without_wanted_items_says_nothing_of_a_method() -> None:
    wanted = pairs_of([[5], [], []])
    shares = share_by_case(is_found(LISTS, wanted, 3), wanted, 3)
    assert shares[0] == 1.0
    assert np.isnan(shares[1:]).all()
    assert Resampling(np.array([0, 1, 2]), seed=0).mean(shares).value == 1.0


def test_cold_and_warm_items_are_counted_apart() -> None:
    wanted = pairs_of([[5, 9, 7], [3]])
    is_cold = np.array([False, True, True, False])
    found = is_found(LISTS, wanted, 3)
    assert share_by_case(found, wanted, 2, ~is_cold).tolist() == [1.0, 1.0]
    cold = share_by_case(found, wanted, 2, is_cold)
    assert cold[0] == 0.5
    assert np.isnan(cold[1])


def test_coverage_counts_each_item_once_and_the_padding_never() -> None:
    assert coverage(LISTS, 3, n_items=6) == 0.5
    assert coverage(LISTS, 1, n_items=4) == 0.5
    assert coverage(LISTS, 3, n_items=0) == 0.0


def test_what_everybody_knows_says_nothing_and_what_nobody_knows_most() -> None:
    users_of = np.array([0, 15, 3, 0])
    known_to_all = novelty(np.array([[1, 0]]), 2, users_of, n_users=15)
    known_to_few = novelty(np.array([[2, 0]]), 2, users_of, n_users=15)
    unknown = novelty(np.array([[3, 0]]), 2, users_of, n_users=15)
    assert (known_to_all, known_to_few, unknown) == (0.0, 2.0, 4.0)


def test_novelty_of_no_candidates_is_not_a_number() -> None:
    assert np.isnan(novelty(np.zeros((2, 3), np.int64), 3, np.array([0]), n_users=1))


def test_the_interval_resamples_users_and_not_cases() -> None:
    values = np.repeat([0.0, 1.0], 50)
    few = Resampling(np.repeat([0, 1], 50), seed=0).mean(values)
    many = Resampling(np.arange(100), seed=0).mean(values)
    assert few == (0.5, 0.0, 1.0)
    assert (many.value, 0.35 < many.low < 0.45, 0.55 < many.high < 0.65) == (0.5, True, True)


def test_a_difference_in_pairs_is_surer_than_the_means() -> None:
    rng = np.random.default_rng(0)
    one = rng.random(200)
    resampling = Resampling(np.arange(200), seed=0)
    better = resampling.mean(one + 0.01 - one)
    assert better.low == pytest.approx(0.01)
    assert resampling.mean(one).high - resampling.mean(one).low > 0.05


def test_no_value_at_all_gives_no_mean() -> None:
    assert np.isnan(Resampling(np.array([0, 1]), seed=0).mean(np.full(2, np.nan))).all()
