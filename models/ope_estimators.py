"""Estimators of what a policy would have earned, from another policy's log.

Reads   `Evidence`: weights, rewards, and what a reward model expects.
Emits   `models.ope_interval.Ratios`, which have a value and an interval.
Owns    the formulas, and the rule that chooses the settings of those that have one.

With weight w of the chosen arm, reward r, the model's q of that arm and v, the model's value of the
policy in that context (mean of q by the policy's probabilities):

    dm           mean of v                            biased as the model is
    ips          mean of w r                          no bias, most variance
    clipped_ips  mean of min(w, s) r
    snips        sum of w r / sum of w                little bias, far less variance
    dr           mean of v + w (r - q)                no bias, little variance if the model is good
    sndr         mean of v, + sum of w (r - q) / sum of w
    switch_dr    dr, without the correction where w > s
    dros         dr, with the weight s w / (w^2 + s)

**The setting s** is the one with the least estimated squared error (Su et al. 2020, section 5):
the squared standard error, and the squared bias, which is how far the estimate is from the one
that holds no weight down. That difference has noise of its own, so its square is too large by the
noise's variance in the mean: the bound leans to holding down less. Candidates are quantiles of the
weights.

**Bias.** An interval of an estimate that is biased holds the bias's value, not the policy's: in
`python -m bench.ope` those of `dros` hold it in two runs of three. So for `dm` and for those with a
setting no interval is given, but the root of the estimated squared error.

References
----------
Swaminathan & Joachims, "The self-normalized estimator for counterfactual learning", 2015 (snips).
Dudik et al., "Doubly robust policy evaluation and optimization", 2014 (dr).
Wang et al., "Optimal and adaptive off-policy evaluation in contextual bandits", 2017 (switch).
Su et al., "Doubly robust off-policy evaluation with shrinkage", 2020 (dros).
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from models.ope_interval import Ratios, mean_of, point, ratio_of
from models.ope_log import BanditLog, Codes, Floats, by_decision, weights

_QUANTILES: Final = (1.0, 0.999, 0.99, 0.97, 0.95, 0.9, 0.8, 0.7, 0.5)  # of weights: where to clip
_FAINT: Final = 10.0  # times the largest weight: `dros` shrinks even that by 1% only
_Z95: Final = 1.96


class Evidence(NamedTuple):
    """What estimators look at; each array has shape (N,)."""

    weights: Floats
    rewards: Floats
    groups: Codes
    chosen_values: Floats  # q: the model's, of the chosen arms
    policy_values: Floats  # v: the model's, of the policy


def evidence(log: BanditLog, target: Floats, expected: Floats) -> Evidence:
    """Return what a policy's probabilities, (M,), and a reward model's values, (M,), come to.

    Where a decision's probabilities are not all known, v is taken as q: then `dr` of the logging
    policy itself is the plain mean.
    """
    values = by_decision(log, target * expected)
    is_unknown = np.isnan(values)
    chosen = expected[log.chosen]
    return Evidence(
        weights=weights(log, target),
        rewards=log.rewards,
        groups=log.groups,
        chosen_values=chosen,
        policy_values=np.where(is_unknown, chosen, values),
    )


def dm(of: Evidence) -> Ratios:
    """Direct method: the reward model alone."""
    return mean_of(of.policy_values)


def ips(of: Evidence) -> Ratios:
    """Inverse propensity score."""
    return mean_of(of.weights * of.rewards)


def clipped_ips(of: Evidence, most: float) -> Ratios:
    """IPS with no weight above `most`."""
    return mean_of(np.minimum(of.weights, most) * of.rewards)


def snips(of: Evidence) -> Ratios:
    """IPS over the weights' own sum, so that it moves with the rewards' zero."""
    return ratio_of(of.weights * of.rewards, of.weights)


def dr(of: Evidence) -> Ratios:
    """Doubly robust: the model, corrected by the weighted mean of its errors."""
    return mean_of(of.policy_values + of.weights * (of.rewards - of.chosen_values))


def sndr(of: Evidence) -> Ratios:
    """Doubly robust, the correction over the weights' own sum."""
    errors = of.weights * (of.rewards - of.chosen_values)
    return Ratios(
        np.column_stack([of.policy_values, errors]),
        np.column_stack([np.ones(len(errors)), of.weights]),
        np.ones(2),
    )


def switch_dr(of: Evidence, most: float) -> Ratios:
    """Doubly robust where the weight is at most `most`, else the model alone."""
    return dr(of._replace(weights=np.where(of.weights <= most, of.weights, 0.0)))


def dros(of: Evidence, strength: float) -> Ratios:
    """Doubly robust with weights shrunk so as to err least in the squared mean, "optimistic"."""
    shrunk = strength * of.weights / (np.square(of.weights) + strength)
    return dr(of._replace(weights=shrunk))


PLAIN: Final[dict[str, Callable[[Evidence], Ratios]]] = {
    "dm": dm,
    "ips": ips,
    "snips": snips,
    "dr": dr,
    "sndr": sndr,
}
TUNED: Final[dict[str, Callable[[Evidence, float], Ratios]]] = {
    "clipped_ips": clipped_ips,
    "switch_dr": switch_dr,
    "dros": dros,
}


class Formed(NamedTuple):
    """An estimator at work."""

    ratios: Ratios
    unbiased: Ratios | None = None  # what its bias is measured by; None: it has none to speak of
    setting: float | None = None


def form(of: Evidence) -> dict[str, Formed]:
    """Return every estimator by name, settings chosen."""
    found = {name: Formed(make(of)) for name, make in PLAIN.items()}
    found["dm"] = Formed(dm(of), dr(of))
    for name, make in TUNED.items():
        candidates = settings(of.weights, is_squared=name == "dros")
        formed = [make(of, candidate) for candidate in candidates]
        taken = least_error(formed, of.groups)
        found[name] = Formed(formed[taken], formed[0], candidates[taken])
    return found


def settings(ratios: Floats, *, is_squared: bool = False) -> list[float]:
    """Return candidates for clipping, the largest first: quantiles of the weights.

    Squared they are those of `dros`, which shrinks a weight to half where it is s's root.

    >>> settings(np.array([0.5, 1.0, 2.0]))
    [2.0, 1.998, 1.98, 1.94, 1.9, 1.8, 1.6, 1.4, 1.0]
    """
    cuts = np.unique(np.quantile(ratios, _QUANTILES).round(6))[::-1]
    cuts = cuts[cuts > 0] if (cuts > 0).any() else np.ones(1)
    if is_squared:
        cuts = np.concatenate([[_FAINT * cuts[0]], cuts]) ** 2
    found: list[float] = cuts.tolist()
    return found


def least_error(candidates: Sequence[Ratios], groups: Codes) -> int:
    """Return which candidate to take; the first is the one without bias.

    >>> groups, noise = np.arange(4), np.array([3.0, -3.0, 3.0, -3.0])
    >>> least_error([mean_of(1 + noise), mean_of(0.9 + noise / 9), mean_of(-9 + 0 * noise)], groups)
    1
    """
    return int(np.argmin([root_error(one, candidates[0], groups) for one in candidates]))


def root_error(of: Ratios, unbiased: Ratios, groups: Codes) -> float:
    """Return the root of an estimate's squared error, by how far it is from an unbiased one."""
    value, error = point(of, groups)
    return float(np.hypot(error, value - point(unbiased, groups)[0]))


def bounds(
    name: str, most_weight: float, rewards: tuple[float, float]
) -> tuple[float, float] | None:
    """Return what a decision's part in an estimate cannot leave; None where there is no bound.

    `most_weight` is that of any arm that could have been chosen, NaN where it is not known;
    `rewards` is the range of the rewards, and of the model.
    """
    low, high = rewards
    if not np.isfinite(most_weight):
        return None
    if name == "ips":
        return most_weight * min(low, 0.0), most_weight * max(high, 0.0)
    if name == "dr":
        reach = most_weight * (high - low)
        return low - reach, high + reach
    return None
