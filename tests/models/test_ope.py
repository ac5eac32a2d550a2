"""Off-policy evaluation finds what policies are worth, and says so when it cannot."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.ope import WORLDS, World, run
from models.ope import LOGGED, evaluate
from models.ope_estimators import PLAIN, TUNED, evidence, form
from models.ope_interval import Resampling, intervals, mean_of, point
from models.ope_log import BanditLog, check, select, weights
from models.ope_reward import cross_fitted, deal
from models.ope_support import pareto_k, refusals, support
from tests.models import obp_figures

FEW_DRAWS = Resampling(draws=300)


@cache
def world(name: str) -> World:
    return World(WORLDS[name])


def value(name: str, log: BanditLog, target: np.ndarray, expected: np.ndarray) -> float:
    return point(form(evidence(log, target, expected))[name].ratios, log.groups)[0]


def padded(own: obp_figures.Case) -> BanditLog:
    """The case of obp's figures as a log of ours."""
    offsets = obp_figures.K * np.arange(obp_figures.N + 1)
    return BanditLog(
        offsets=offsets,
        probabilities=own.logging.ravel(),
        chosen=offsets[:-1] + own.actions,
        rewards=own.rewards,
        groups=np.arange(obp_figures.N),
        reward_range=(0.0, 1.0),
        rows=lambda _n: np.ones((obp_figures.K, 1)),
        segments=[""] * obp_figures.N,
    )


# The estimators.


def ours(own: obp_figures.Case) -> dict[str, float]:
    of = evidence(padded(own), own.target.ravel(), own.expected.ravel())
    ratios = {name: make(of) for name, make in PLAIN.items()}
    ratios["switch_dr"] = TUNED["switch_dr"](of, obp_figures.TAU)
    ratios["dros"] = TUNED["dros"](of, obp_figures.STRENGTH)
    return {name: point(one, of.groups)[0] for name, one in ratios.items()}


def test_the_estimators_are_those_of_obp() -> None:
    kept = json.loads((Path(__file__).parents[1] / "data" / "obp.json").read_text("utf-8"))

    assert kept["obp"] == obp_figures.VERSION
    assert len(kept["figures"]) == 7
    assert ours(obp_figures.case()) == pytest.approx(kept["figures"], abs=1e-9)


@pytest.mark.parametrize("name", ["ips", "clipped_ips", "snips", "dr", "sndr", "switch_dr"])
def test_of_the_logging_policy_every_estimator_is_the_mean_of_its_rewards(name: str) -> None:
    log, _ = world("near").log(500, seed=1)
    expected = np.where(
        log.probabilities > 0, 0.3, 0.0
    )  # a model that is of no use, the same for all

    assert value(name, log, log.probabilities, expected) == pytest.approx(log.rewards.mean())


@pytest.mark.parametrize("name", ["dm", "dr", "sndr", "switch_dr", "dros"])
def test_with_a_perfect_model_and_no_noise_the_value_is_the_true_one(name: str) -> None:
    log, target = world("far").log(400, seed=2)
    truth = np.random.default_rng(3).random(len(target))
    log = log._replace(rewards=truth[log.chosen])
    exact = float((target * truth).sum() / log.n)

    assert value(name, log, target, truth) == pytest.approx(exact)


def test_dr_is_right_where_the_model_is_wrong_and_where_the_weights_do_not_matter() -> None:
    log, target = world("near").log(40_000, seed=4)
    wrong = np.full(len(target), 0.9)

    assert value("dm", log, target, wrong) == pytest.approx(0.9)
    assert value("dr", log, target, wrong) == pytest.approx(world("near").value, abs=0.01)


@settings(max_examples=25, deadline=None)
@given(shift=st.floats(-5, 5), seed=st.integers(0, 1_000))
def test_snips_moves_with_the_zero_of_the_rewards_and_ips_does_not(shift: float, seed: int) -> None:
    log, target = world("far").log(50, seed)
    moved = log._replace(rewards=log.rewards + shift, reward_range=(shift, 1 + shift))
    nothing = np.zeros(len(target))
    by = {
        name: value(name, moved, target, nothing) - value(name, log, target, nothing)
        for name in ("snips", "ips")
    }

    assert by["snips"] == pytest.approx(shift, abs=1e-9)
    assert by["ips"] == pytest.approx(shift * weights(log, target).mean(), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1_000))
def test_self_normalised_and_clipped_values_stay_among_the_rewards(seed: int) -> None:
    log, target = world("far").log(60, seed)
    nothing = np.zeros(len(target))

    assert 0 <= value("snips", log, target, nothing) <= 1
    assert 0 <= value("clipped_ips", log, target, nothing) <= value("ips", log, target, nothing)


def test_the_reward_model_never_saw_the_rewards_of_the_group_that_it_judges() -> None:
    log, _ = world("users").log(300, seed=5)
    fold_of = deal(log.groups, 5, seed=1)
    changed = log._replace(rewards=np.where(fold_of == 2, 1 - log.rewards, log.rewards))
    before, after = cross_fitted(log, seed=1), cross_fitted(changed, seed=1)
    is_own = np.repeat(fold_of == 2, np.diff(log.offsets))

    assert all(len(set(fold_of[log.groups == group])) == 1 for group in range(60))
    assert before[is_own] == pytest.approx(after[is_own])
    assert np.abs(before[~is_own] - after[~is_own]).max() > 0.01


def test_sending_nothing_is_worth_nothing_to_the_reward_model() -> None:
    log, _ = world("near").log(300, seed=6)

    assert (cross_fitted(log)[log.offsets[1:] - 1] == 0).all()


# Intervals.


@pytest.mark.parametrize("name", ["rare", "users"])
def test_intervals_hold_the_true_value_as_often_as_they_say(name: str) -> None:
    """100 runs: with 95% in truth, fewer than 88 come once in 300 times; `bench.ope` has 500."""
    tally = run(world(name), 100, n=300, draws=250)

    assert tally.covered["snips"] >= 0.88
    assert tally.covered["dr"] >= 0.88


def test_an_interval_that_takes_decisions_of_a_user_for_independent_ones_is_too_short() -> None:
    log, target = world("users").log(4_000, seed=8)
    ratios = form(evidence(log, target, cross_fitted(log)))["snips"].ratios

    by_user, by_decision = point(ratios, log.groups)[1], point(ratios, np.arange(log.n))[1]

    assert by_user > 1.2 * by_decision


def test_the_bernstein_interval_is_wider_and_holds_the_value() -> None:
    log, target = world("near").log(4_000, seed=9)
    judged = evaluate(log, {"new": target}, how=FEW_DRAWS).policies[1]
    sure, own = judged.estimates["dr"].bernstein, judged.estimates["dr"].estimate

    assert sure is not None
    assert sure[0] < own.low < world("near").value < own.high < sure[1]
    assert judged.estimates["snips"].bernstein is None


def test_a_long_tail_makes_the_interval_longer_to_its_side() -> None:
    x = np.random.default_rng(1).pareto(2.5, 300)
    [found] = intervals([mean_of(x)], np.arange(300))

    assert found.high - found.value > 1.5 * (found.value - found.low)


# Verdicts.


def test_a_better_and_a_worse_policy_are_told_apart_in_pairs() -> None:
    log, target = world("near").log(6_000, seed=10)
    lengths = np.diff(log.offsets)
    timid = 0.9 * (np.arange(len(target)) == np.repeat(log.offsets[1:] - 1, lengths))
    timid += 0.1 / np.repeat(lengths, lengths)  # mostly sends nothing
    report = evaluate(log, {"timid": timid, "new": target}, how=FEW_DRAWS)
    verdicts = {(pair.first, pair.second): pair.verdict for pair in report.pairs}

    assert verdicts["timid", LOGGED] == "worse"
    assert verdicts["new", "timid"] == "better"


def test_the_difference_of_alike_policies_is_surer_than_their_values() -> None:
    log, target = world("near").log(2_000, seed=11)
    alike = 0.95 * target + 0.05 * log.probabilities
    report = evaluate(log, {"one": target, "other": alike}, how=FEW_DRAWS)
    pair = next(p for p in report.pairs if (p.first, p.second) == ("other", "one"))

    assert pair.dr.error < 0.2 * report.policies[1].estimates["dr"].estimate.error


def test_a_policy_against_itself_is_even() -> None:
    log, _ = world("near").log(1_000, seed=12)
    report = evaluate(log, {"same": log.probabilities}, how=FEW_DRAWS)

    assert [(pair.verdict, pair.dr.value) for pair in report.pairs] == [("even", 0.0)]


def steep(log: BanditLog) -> np.ndarray:
    """A policy that nearly always does what the logging policy does least."""
    least = np.repeat(
        np.minimum.reduceat(log.probabilities, log.offsets[:-1]), np.diff(log.offsets)
    )
    target = np.where(log.probabilities == least, 1.0, 0.001)
    return target / np.repeat(np.add.reduceat(target, log.offsets[:-1]), np.diff(log.offsets))


def test_few_effective_decisions_get_no_verdict() -> None:
    log, _ = world("near").log(1_000, seed=13)
    report = evaluate(log, {"steep": steep(log)}, how=FEW_DRAWS)

    assert report.policies[1].support.ess < 100
    assert any("effective decisions" in reason for reason in report.policies[1].refusals)
    assert [pair.verdict for pair in report.pairs] == ["refused"]
    assert report.pairs[0].reasons[0].startswith("steep: ")


def test_wrong_propensities_get_no_verdict() -> None:
    log, target = world("near").log(3_000, seed=14)
    halved = log.probabilities.copy()
    halved[log.chosen] /= 2  # what was logged is not what was drawn by

    found = refusals(support(log._replace(probabilities=halved), target))

    assert refusals(support(log, target)) == []
    assert len(found) == 1
    assert found[0].startswith("mean weight 1.9")


def test_choices_that_were_never_made_get_no_verdict() -> None:
    log, _ = world("near").log(3_000, seed=15)
    never = log.offsets[:-1]  # each decision's first arm
    logged = log.probabilities.copy()
    kept = log.chosen != never
    logged[never] = 0.0
    lengths = np.diff(log.offsets)
    logged /= np.repeat(np.add.reduceat(logged, never), lengths)
    own, arms = select(log._replace(probabilities=logged), np.flatnonzero(kept))

    seen = support(own, 1 / np.repeat(lengths, lengths)[arms])

    assert seen.unsupported == pytest.approx((1 / lengths[kept]).mean())
    assert any("never made" in reason for reason in refusals(seen))


def test_hardly_any_answer_gets_no_verdict() -> None:
    log, target = world("near").log(1_000, seed=16)
    rewards = np.zeros(1_000)
    rewards[:19] = 1.0

    found = refusals(support(log._replace(rewards=rewards), target))

    assert [reason.split()[0:2] for reason in found] == [["19", "answered"]]


def test_a_tail_without_a_mean_is_seen() -> None:
    rng = np.random.default_rng(1)

    assert pareto_k(rng.pareto(1.0, 20_000)) > 0.85
    assert pareto_k(rng.pareto(4.0, 20_000)) < 0.5
    assert np.isnan(pareto_k(np.ones(20_000)))


def test_segments_are_judged_apart() -> None:
    log, target = world("near").log(2_000, seed=17)
    names = ["rewarded" if reward else "not" for reward in log.rewards]
    report = evaluate(log._replace(segments=names), {"new": target}, how=FEW_DRAWS)
    means = {one.name: one.policies[0].estimates["snips"].estimate.value for one in report.segments}

    assert means == {"rewarded": 1.0, "not": 0.0}
    assert sum(one.n for one in report.segments) == 2_000


# Logs that are none.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": np.array([0.0, 1.0, 0.5, 0.5])}, "propensity"),
        ({"probabilities": np.array([0.5, 0.4, 0.5, 0.5])}, "sum to 1"),
        ({"chosen": np.array([0, 1])}, "chosen arm"),
        ({"rewards": np.array([0.0, 7.0])}, "rewards from 0.0 to 7.0"),
    ],
)
def test_a_log_that_cannot_be_is_refused(change: dict[str, np.ndarray], message: str) -> None:
    log = BanditLog(
        offsets=np.array([0, 2, 4]),
        probabilities=np.full(4, 0.5),
        chosen=np.array([0, 2]),
        rewards=np.zeros(2),
        groups=np.arange(2),
        reward_range=(0.0, 1.0),
        rows=lambda _n: np.ones((2, 1)),
        segments=["", ""],
    )
    check(log)

    with pytest.raises(ValueError, match=message):
        check(log._replace(**change))


def test_probabilities_of_other_arms_are_refused() -> None:
    log, target = world("near").log(200, seed=18)

    with pytest.raises(ValueError, match="new: probabilities of other arms"):
        evaluate(log, {"new": target[1:]})
    with pytest.raises(ValueError, match="new: probabilities that do not sum to 1"):
        evaluate(log, {"new": target / 2})
