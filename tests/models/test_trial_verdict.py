"""The guard lets a good model on, takes a bad one off, and waits where it cannot know."""

from typing import Any

import numpy as np
import pytest

from models.trial_verdict import (
    Check,
    Pushes,
    Shadowed,
    State,
    judge_canary,
    judge_shadow,
    outcome,
    softmax_weight,
)

BOUNDS: dict[str, Any] = {"min_pushes": 500, "calibration_loss": 0.02, "reward_loss": 0.02}
N_ARMS = 10


def states(checks: list[Check]) -> dict[str, State]:
    return {check.name: check.state for check in checks}


def canary(rate: float, n: int = 20_000, seed: int = 0, slope: float = 0.1) -> Pushes:
    """Pushes of which so many are opened, the more the higher their score."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=n)
    is_opened = rng.random(n) < np.clip(rate + slope * scores, 0, 1)
    rewards = np.where(is_opened, 1.0, -0.05)
    return Pushes(rng.integers(0, n // 4, n), rewards, is_opened, scores)


def shadow(quality: float, n: int = 20_000, seed: int = 0) -> Shadowed:
    """Pushes chosen uniformly; the served model's scores tell half of what is liked, the trial's
    the share `quality` of it, of the wrong sign where negative.
    """
    rng = np.random.default_rng(seed)
    liked = rng.normal(size=(n, N_ARMS))
    scores = liked + rng.normal(size=(n, N_ARMS))
    others = quality * liked + (1 - abs(quality)) * rng.normal(size=(n, N_ARMS))
    chosen = rng.integers(0, N_ARMS, n)
    at = np.arange(n), chosen
    is_opened = rng.random(n) < np.clip(0.3 + 0.15 * liked[at], 0, 1)
    rewards = np.where(is_opened, 1.0, -0.05)
    uniform = np.full(N_ARMS, 1 / N_ARMS)

    def weights(of: np.ndarray) -> np.ndarray:
        return np.array([softmax_weight(of[i], uniform, chosen[i]) for i in range(n)])

    return Shadowed(
        Pushes(rng.integers(0, n // 4, n), rewards, is_opened, scores[at]),
        others[at],
        weights(scores),
        weights(others),
        np.full(n, np.corrcoef(scores.ravel(), others.ravel())[0, 1]),
    )


def judged(found: Shadowed, **changes: Any) -> list[Check]:
    return judge_shadow(found, **{"min_correlation": 0.0, **BOUNDS, **changes})


def test_a_canary_that_does_as_well_goes_on() -> None:
    checks = judge_canary(canary(0.2), canary(0.21, seed=1), **BOUNDS)

    assert states(checks) == {"pushes": "pass", "calibration": "pass", "reward": "pass"}
    assert outcome(checks) == "promote"


def test_a_canary_that_earns_less_is_taken_off() -> None:
    checks = judge_canary(canary(0.25), canary(0.15, seed=1), **BOUNDS)

    assert states(checks)["reward"] == "fail"
    assert outcome(checks) == "rollback"


def test_a_canary_whose_scores_tell_nothing_any_more_is_taken_off() -> None:
    steep = canary(0.5, slope=0.4)
    other = canary(0.5, slope=0.4, seed=1)
    shuffled = other._replace(scores=np.random.default_rng(2).permutation(other.scores))

    checks = judge_canary(steep, shuffled, **BOUNDS)
    assert states(checks)["calibration"] == "fail"
    assert outcome(checks) == "rollback"


def test_too_few_pushes_wait() -> None:
    checks = judge_canary(canary(0.2), canary(0.2, n=400, seed=1), **BOUNDS)

    assert states(checks) == {"pushes": "wait"}
    assert outcome(checks) == "wait"


def test_a_difference_that_could_be_chance_waits() -> None:
    checks = judge_canary(canary(0.2, n=600), canary(0.19, n=600, seed=1), **BOUNDS)

    assert states(checks)["reward"] == "wait"


def test_sending_nothing_is_worth_nothing_and_says_nothing_of_calibration() -> None:
    quiet = canary(0.2)
    is_none = np.arange(len(quiet.users)) % 2 == 0
    quiet = quiet._replace(
        scores=np.where(is_none, np.nan, quiet.scores), rewards=np.where(is_none, 0, quiet.rewards)
    )

    checks = judge_canary(quiet, canary(0.2, seed=1), **BOUNDS)
    assert states(checks) == {"pushes": "pass", "calibration": "pass", "reward": "pass"}


def test_a_model_that_ranks_better_in_the_shadow_goes_on() -> None:
    checks = judged(shadow(0.9))

    assert set(states(checks).values()) == {"pass"}


def test_a_model_that_ranks_upside_down_is_taken_off_by_each_check_but_calibration() -> None:
    # A line through its scores turns them round, so they are as well calibrated as before.
    checks = judged(shadow(-0.6))

    assert states(checks) == {
        "pushes": "pass",
        "drift": "fail",
        "calibration": "pass",
        "reward": "fail",
    }


def test_weights_that_leave_few_pushes_give_no_verdict() -> None:
    found = shadow(0.9)
    weights = np.where(np.arange(len(found.weights)) < 5, 50.0, 1e-3)

    [reward] = [c for c in judged(found._replace(weights=weights)) if c.name == "reward"]
    assert reward.state == "wait"
    assert "effective pushes" in reward.detail


def test_users_are_what_was_drawn() -> None:
    """Ten copies of each push of a user are no more evidence than one."""
    one = canary(0.2, n=1_000)
    users = np.arange(1_000)
    one = one._replace(users=users)
    ten = Pushes(*(np.repeat(column, 10) for column in one))

    other = canary(0.2, n=1_000, seed=1)._replace(users=users)
    checks = [judge_canary(group, other, **BOUNDS)[2].detail for group in (one, ten)]
    assert checks[0] == checks[1]


@pytest.mark.parametrize(
    ("found", "expected"),
    [(["pass", "fail", "wait"], "rollback"), (["pass", "wait"], "wait"), (["pass"], "promote")],
)
def test_one_failure_ends_it_and_one_open_question_holds_it(
    found: list[State], expected: str
) -> None:
    assert outcome([Check(str(n), state, "") for n, state in enumerate(found)]) == expected
