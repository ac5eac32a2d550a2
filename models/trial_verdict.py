"""The guard of a rollout: may a model on trial go on, by what became of pushes.

Reads   answered pushes, as arrays; how the models' scores of their action sets lie.
Emits   checks, each passed, failed or waiting for more, and what follows from all.
Owns    the estimates and their intervals.

**Reward.** In canary users were split at random, so the difference of the mean rewards is what the
model does. In shadow it decided nothing: of each model a policy is made that picks an item with a
probability by the softmax of its scores, and both are valued on the same pushes by self-normalised
importance weights (Swaminathan and Joachims 2015). Where the weights leave too few pushes that
count, there is no verdict.

**Calibration.** A student's scores are no probabilities, and the policy learns a line through them;
so a line is fitted here too, on one half of the users, and judged on the other by its squared error
against what was opened (Brier 1950).

Intervals are of 95%, normal, with users and not pushes as what was drawn. A loss is let pass up to
a stated bound: passed where the whole interval is within it, failed where none of it is.
"""

from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
State = Literal["pass", "fail", "wait"]

_Z95: Final = 1.96
LEAST_ESS: Final = 100.0  # effective pushes below which importance weights say nothing
# Weights above it are cut, for both models alike: one push must not own the estimate.
MOST_WEIGHT: Final = 50.0


class Pushes(NamedTuple):
    """Answered decisions; each array has shape (N,).

    `rewards` counts a decision to send nothing as 0. `scores` are the chosen item's, z-scored
    within its action set; NaN where nothing was sent.
    """

    users: Codes  # a number for each user
    rewards: Floats
    is_positive: NDArray[np.bool_]  # opened or converted
    scores: Floats


class Shadowed(NamedTuple):
    """What the model on trial made of pushes that the served one decided; shape (N,)."""

    pushes: Pushes
    scores: Floats  # the trial's, of the chosen items, z-scored
    served_weights: Floats  # see `softmax_weight`
    weights: Floats
    correlations: Floats  # of ranks, of each action set


class Check(NamedTuple):
    """One thing that was looked at: an estimate, and the bound that it is held to."""

    name: str
    state: State
    detail: str


class Interval(NamedTuple):
    """An estimate and half the width of its interval."""

    value: float
    half: float

    def __str__(self) -> str:
        """Return it as people write it."""
        return f"{self.value:+.4f} ± {self.half:.4f}"


def softmax_weight(scores: Floats, probabilities: Floats, chosen: int) -> float:
    """Return how much likelier a model's own policy picks what was chosen.

    Parameters
    ----------
    scores
        The model's, of the action set without "none", shape (K,).
    probabilities
        Of the policy that chose, shape (K,); they need not sum to 1.

    >>> round(softmax_weight(np.array([1.0, -1.0]), np.array([0.5, 0.5]), 0), 3)
    1.762
    """
    worth = np.exp(standardised(scores))
    own = worth[chosen] / worth.sum()
    return min(float(own * probabilities.sum() / probabilities[chosen]), MOST_WEIGHT)


def standardised(scores: Floats) -> Floats:
    """Return z-scores within a set, zeros where all are equal.

    >>> standardised(np.array([3.0, 1.0])).tolist(), standardised(np.array([2.0])).tolist()
    ([1.0, -1.0], [0.0])
    """
    spread = float(scores.std())
    z: Floats = (scores - scores.mean()) / spread if spread > 0 else np.zeros(len(scores))
    return z


def judge_shadow(
    found: Shadowed,
    *,
    min_pushes: int,
    min_correlation: float,
    calibration_loss: float,
    reward_loss: float,
) -> list[Check]:
    """Hold a model that scored in the shadow to the guard; bounds as in `flows.settings.Models`."""
    n = len(found.pushes.users)
    if n < min_pushes:
        return [Check("pushes", "wait", f"{n} answered of {min_pushes}")]
    mean = float(found.correlations.mean())
    state: State = "pass" if mean >= min_correlation else "fail"
    drift = Check("drift", state, f"rank correlation {mean:.3f}, at least {min_correlation:g}")
    errors = (
        _squared_errors(found.pushes),
        _squared_errors(found.pushes._replace(scores=found.scores)),
    )
    calibration = _paired(errors[1] - errors[0], found.pushes.users)
    return [
        Check("pushes", "pass", f"{n} answered"),
        drift,
        _held("calibration", calibration, most=calibration_loss),
        _judge_weighted(found, reward_loss),
    ]


def judge_canary(
    served: Pushes,
    trial: Pushes,
    *,
    min_pushes: int,
    calibration_loss: float,
    reward_loss: float,
) -> list[Check]:
    """Hold a model that decided for a share of users to the guard, beside the others."""
    least = min(len(served.users), len(trial.users))
    if least < min_pushes:
        detail = f"{len(trial.users)} and {len(served.users)} answered of {min_pushes} each"
        return [Check("pushes", "wait", detail)]
    errors = [_of_sent(group, _squared_errors(group)) for group in (served, trial)]
    calibration = _apart(*errors)
    reward = _apart((served.rewards, served.users), (trial.rewards, trial.users))
    return [
        Check("pushes", "pass", f"{len(trial.users)} and {len(served.users)} answered"),
        _held("calibration", calibration, most=calibration_loss),
        _held("reward", reward, least=-reward_loss),
    ]


def outcome(checks: list[Check]) -> Literal["promote", "rollback", "wait"]:
    """Return what follows: one failure takes a model off trial, all passed lets it go on.

    >>> outcome([Check("a", "pass", ""), Check("b", "wait", "")])
    'wait'
    """
    states = {check.state for check in checks}
    if "fail" in states:
        return "rollback"
    return "wait" if "wait" in states else "promote"


def _judge_weighted(found: Shadowed, reward_loss: float) -> Check:
    influences, values = [], []
    for weights in (found.served_weights, found.weights):
        total = weights.sum()
        ess = total * total / (weights @ weights)
        if ess < LEAST_ESS:
            return Check("reward", "wait", f"{ess:.0f} effective pushes of {LEAST_ESS:.0f}")
        value = float(weights @ found.pushes.rewards / total)
        values.append(value)
        influences.append(weights * (found.pushes.rewards - value) / total)
    half = _Z95 * _spread(influences[1] - influences[0], found.pushes.users)
    return _held("reward", Interval(values[1] - values[0], half), least=-reward_loss)


def _held(name: str, found: Interval, *, least: float = -np.inf, most: float = np.inf) -> Check:
    low, high = found.value - found.half, found.value + found.half
    state: State = "wait"
    if low >= least and high <= most:
        state = "pass"
    elif high < least or low > most:
        state = "fail"
    bound = f"at least {least:g}" if np.isfinite(least) else f"at most {most:g}"
    return Check(name, state, f"trial less served {found}, {bound}")


def _squared_errors(pushes: Pushes) -> Floats:
    """Return the squared error of each push by a line fitted to the other half of the users."""
    y = pushes.is_positive.astype(np.float64)
    errors = np.full(len(y), np.nan)
    is_sent = ~np.isnan(pushes.scores)
    for half in (0, 1):
        judged = is_sent & (pushes.users % 2 == half)
        fitted = is_sent & (pushes.users % 2 != half)
        if not fitted.any():
            continue
        x, mean = pushes.scores[fitted], float(y[fitted].mean())
        centred = x - x.mean()
        spread = float(centred @ centred)
        slope = float(centred @ y[fitted]) / spread if spread > 0 else 0.0
        guess = mean + slope * (pushes.scores[judged] - x.mean())
        errors[judged] = (np.clip(guess, 0, 1) - y[judged]) ** 2
    return errors


def _of_sent(pushes: Pushes, errors: Floats) -> tuple[Floats, Codes]:
    is_there = ~np.isnan(errors)
    return errors[is_there], pushes.users[is_there]


def _paired(differences: Floats, users: Codes) -> Interval:
    """Return the mean of differences on the same pushes."""
    is_there = ~np.isnan(differences)
    own, users = differences[is_there], users[is_there]
    if not len(own):
        return Interval(0.0, np.inf)
    mean = float(own.mean())
    return Interval(mean, _Z95 * _spread((own - mean) / len(own), users))


def _apart(served: tuple[Floats, Codes], trial: tuple[Floats, Codes]) -> Interval:
    """Return the difference of the means of two groups of users."""
    (mean, spread), (other, other_spread) = (
        (float(values.mean()), _spread((values - values.mean()) / len(values), users))
        if len(values)
        else (0.0, np.inf)
        for values, users in (served, trial)
    )
    return Interval(other - mean, _Z95 * float(np.hypot(spread, other_spread)))


def _spread(influences: Floats, users: Codes) -> float:
    """Return the standard error of a sum of influences, users drawn independently."""
    by_user = np.bincount(np.unique(users, return_inverse=True)[1], weights=influences)
    return float(np.sqrt(by_user @ by_user))
