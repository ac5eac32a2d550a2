"""Headline tests as arms: what is read, what text lets expect, and what is earned."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.headlines import Story, explained, read, scores
from bench.upworthy import beta, beta_of, luck, main, ours, reach, uniform

COLUMNS = "clickability_test_id,headline,eyecatcher_id,impressions,clicks,test_week"
PLAIN = Story(
    "a",
    "201301",
    np.array([0.05, 0.6, 0.1]),
    ["x", "y", "x"],
    ["p", "p", "q"],
    np.full(3, 1_000.0),
)
NOTHING = np.zeros(8)  # expected of PLAIN's weights: log-odds of 0


def write(path: Path, rows: list[str]) -> Path:
    path.write_bytes(gzip.compress("\n".join([COLUMNS, *rows]).encode()))
    return path


def made_up(week: str, n: int, rng: np.random.Generator) -> tuple[Story, dict[str, np.ndarray]]:
    """Return a story of 4 headlines whose log rates are half the first of their 5 numbers."""
    vectors = {f"{week}-{n}-{arm}": rng.standard_normal(5) for arm in range(4)}
    rates = np.exp(-4 + 0.5 * np.array([vector[0] for vector in vectors.values()]))
    return Story(f"{week}-{n}", week, rates, list(vectors), ["p"] * 4, np.full(4, 1e5)), vectors


def made_up_weeks() -> tuple[list[Story], dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    weeks = ["201401", "201402", "201403"]
    stories, vectors = zip(
        *(made_up(week, n, rng) for week in weeks for n in range(30)), strict=True
    )
    return list(stories), {name: vector for each in vectors for name, vector in each.items()}


def test_what_is_doubted_has_one_arm_or_no_click_is_left_out(tmp_path: Path) -> None:
    rows = [
        *("later,x,p,100,5,201403", "later,y,p,200,2,201403"),
        *("first,x,p,100,1,201324", 'first,"y, quoted",p,50,1,201324'),
        *("gap,x,p,100,5,201325", "gap,y,p,100,5,201325"),
        *("gap_ends,x,p,100,5,201402", "gap_ends,y,p,100,5,201402"),
        "alone,x,p,100,5,201301",
        *("unclicked,x,p,100,0,201301", "unclicked,y,p,100,0,201301"),
    ]
    stories = read(write(tmp_path / "packages.csv.gz", rows))
    assert [(s.test_id, s.week, s.rates.tolist(), s.shown.tolist()) for s in stories] == [
        ("first", "201324", [0.01, 0.02], [100.0, 50.0]),
        ("later", "201403", [0.05, 0.01], [100.0, 200.0]),
    ]


def test_the_real_file_is_read_whole(shared_data: Path) -> None:
    stories = read(shared_data / "upworthy" / "packages.csv.gz")
    assert len(stories) == 3_113
    assert sum(len(story.rates) for story in stories) == 14_920


def test_arms_share_the_columns_of_their_headline_and_picture() -> None:
    assert PLAIN.rows().tolist() == [
        [0.6, 0.3, 0.0, 0.2, 0.0, 0.17, 0.0, 0.0],
        [0.6, 0.0, 0.3, 0.2, 0.0, 0.0, 0.17, 0.0],
        [0.6, 0.3, 0.0, 0.0, 0.2, 0.0, 0.0, 0.17],
    ]


def test_headlines_foretell_what_like_ones_did_in_weeks_before() -> None:
    stories, vectors = made_up_weeks()
    texts = scores(stories, vectors)
    assert not np.concatenate(texts[:30]).any()  # nothing is known in the first week
    assert explained(stories[:30], texts[:30]) == 0.0
    assert explained(stories[60:], texts[60:]) > 0.9


def test_a_week_tells_of_later_ones_alone() -> None:
    stories, vectors = made_up_weeks()
    texts = scores(stories, vectors)
    turned = [s._replace(rates=s.rates[::-1]) if s.week == "201402" else s for s in stories]
    others = scores(turned, vectors)
    for text, other, story in list(zip(texts, others, stories, strict=True))[:60]:
        assert text.tolist() == other.tolist(), story.test_id
    later, moved = np.concatenate(texts[60:]), np.concatenate(others[60:])
    assert np.abs(later - moved).max() > 0.1


def test_any_arm_alike_earns_the_mean() -> None:
    assert uniform(PLAIN, 100) == pytest.approx((25.0, 0.25))


def test_an_evident_best_arm_is_found_and_mostly_shown() -> None:
    earned, after = ours(PLAIN, 500, "logistic_ucb", 1.0, NOTHING)
    assert after == 0.6
    assert earned > 0.8 * 500 * 0.6
    assert (earned, after) == ours(PLAIN, 500, "logistic_ucb", 1.0, NOTHING)
    paid, found = beta(PLAIN, 500, 1.0, 1.0)
    assert found == 0.6
    assert 0.8 * 500 * 0.6 < paid < 500 * 0.6


def test_text_that_knows_the_best_arm_has_it_shown_from_the_start() -> None:
    alike = np.array([0.02, 0.03, 0.02])
    test = PLAIN._replace(rates=alike)
    level = -3.9
    without = ours(test, 200, "logistic_ucb", 1.0, test.expected(level, np.zeros(3)))
    told = ours(test, 200, "logistic_ucb", 1.0, test.expected(level, np.array([-1.0, 1.0, -1.0])))
    misled = ours(test, 200, "logistic_ucb", 1.0, test.expected(level, np.array([1.0, -1.0, 1.0])))
    assert told == pytest.approx((200 * 0.03, 0.03))
    assert misled[0] < without[0] < told[0]


def test_reach_is_paid_for_what_it_knows_and_not_for_what_it_shows() -> None:
    paid, held = reach(PLAIN, 500, np.zeros(3))
    assert held == 0.6
    # The first belief knows nothing and is paid the mean; the best arm is soon known.
    assert 0.25 * 20 + 0.9 * 480 * 0.6 < paid <= 0.25 * 20 + 480 * 0.6
    assert paid > ours(PLAIN, 500, "logistic_ucb", 1.0, NOTHING)[0]


def test_without_the_encoder_what_has_text_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"{week}{n},{headline},p,1000,{clicks + n},{week}"
        for week in ("201301", "201410")
        for n in range(2)
        for headline, clicks in (("x", 20), ("y", 40))
    ]
    path = write(tmp_path / "packages.csv.gz", rows)
    command = ["upworthy", "--data", str(path), "--impressions", "40", "--processes", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--encoder", "nowhere"])
    main()
    out = capsys.readouterr().out
    assert "SKIPPED what has text: no encoder 'nowhere'" in out
    result = json.loads(out.splitlines()[-1])
    assert result["text_explains"] is None
    assert {"reach", "uniform"} < set(result)
    assert not any("with text" in name for name in result)
    monkeypatch.setattr(sys, "argv", [*command, "--encoder", "hash"])
    main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["tests"] == 2
    assert 0 < result["ours, with text"]["while_learning"] <= 1


def test_luck_is_of_the_test_and_not_of_who_plays() -> None:
    other = PLAIN._replace(test_id="b")
    assert luck(PLAIN, 50).tolist() == luck(PLAIN, 50).tolist()
    assert luck(PLAIN, 50).tolist() != luck(other, 50).tolist()


def test_the_beta_of_rates_has_their_mean_and_variance() -> None:
    clicks, others = beta_of([PLAIN])
    size = clicks + others
    assert clicks / size == pytest.approx(0.25)
    assert clicks * others / (size * size * (size + 1)) == pytest.approx(PLAIN.rates.var())
