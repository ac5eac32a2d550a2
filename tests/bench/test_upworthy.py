"""Headline tests as arms: what is read, and what is earned."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from bench.upworthy import Story, beta_of, luck, ours, read, uniform

COLUMNS = "clickability_test_id,headline,eyecatcher_id,impressions,clicks,test_week"
PLAIN = Story("a", "201301", np.array([0.05, 0.6, 0.1]), ["x", "y", "x"], ["p", "p", "q"])


def test_what_is_doubted_has_one_arm_or_no_click_is_left_out(tmp_path: Path) -> None:
    rows = [
        *("later,x,p,100,5,201403", "later,y,p,200,2,201403"),
        *("first,x,p,100,1,201324", 'first,"y, quoted",p,50,1,201324'),
        *("gap,x,p,100,5,201325", "gap,y,p,100,5,201325"),
        *("gap_ends,x,p,100,5,201402", "gap_ends,y,p,100,5,201402"),
        "alone,x,p,100,5,201301",
        *("unclicked,x,p,100,0,201301", "unclicked,y,p,100,0,201301"),
    ]
    path = tmp_path / "packages.csv.gz"
    path.write_bytes(gzip.compress("\n".join([COLUMNS, *rows]).encode()))
    stories = read(path)
    assert [(s.test_id, s.week, s.rates.tolist()) for s in stories] == [
        ("first", "201324", [0.01, 0.02]),
        ("later", "201403", [0.05, 0.01]),
    ]


def test_the_real_file_is_read_whole(shared_data: Path) -> None:
    stories = read(shared_data / "upworthy" / "packages.csv.gz")
    assert len(stories) == 3_113
    assert sum(len(story.rates) for story in stories) == 14_920


def test_arms_share_the_columns_of_their_headline_and_picture() -> None:
    assert PLAIN.rows().tolist() == [
        [4.0, 0.3, 0.0, 0.2, 0.0, 0.17, 0.0, 0.0],
        [4.0, 0.0, 0.3, 0.2, 0.0, 0.0, 0.17, 0.0],
        [4.0, 0.3, 0.0, 0.0, 0.2, 0.0, 0.0, 0.17],
    ]


def test_any_arm_alike_earns_the_mean() -> None:
    assert uniform(PLAIN, 100) == pytest.approx((25.0, 0.25))


def test_an_evident_best_arm_is_found_and_mostly_shown() -> None:
    earned, after = ours(PLAIN, 500, "logistic_ucb", 1.0)
    assert after == 0.6
    assert earned > 0.8 * 500 * 0.6
    assert (earned, after) == ours(PLAIN, 500, "logistic_ucb", 1.0)


def test_luck_is_of_the_test_and_not_of_who_plays() -> None:
    other = PLAIN._replace(test_id="b")
    assert luck(PLAIN, 50).tolist() == luck(PLAIN, 50).tolist()
    assert luck(PLAIN, 50).tolist() != luck(other, 50).tolist()


def test_the_beta_of_rates_has_their_mean_and_variance() -> None:
    clicks, others = beta_of([PLAIN])
    size = clicks + others
    assert clicks / size == pytest.approx(0.25)
    assert clicks * others / (size * size * (size + 1)) == pytest.approx(PLAIN.rates.var())
