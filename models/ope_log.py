"""Logged decisions as arrays: what off-policy evaluation reads.

Owns    the shape of the log, its checks, importance weights, and parts of a log.

A decision chose one of its own arms, as many as there were, with probabilities that were logged.
Arms lie one after another: those of decision n are `offsets[n]:offsets[n + 1]`. A policy that is
to be judged is one more probability for each arm, of the same arms: it is asked what it would have
done with exactly what the logging policy had before it.

Where a log kept only the chosen arm's propensity, the other probabilities are NaN.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

_SUM_SLACK: Final = 1e-6


class BanditLog(NamedTuple):
    """N decisions with M arms in all.

    Contexts and arms' features come as rows of a design, a decision at a time: all at once they
    would take 8 D M bytes.
    """

    offsets: Codes  # shape (N + 1,)
    probabilities: Floats  # shape (M,), of the policy that decided; NaN where it was not logged
    chosen: Codes  # shape (N,), row of the arm that was chosen, of the M
    rewards: Floats  # shape (N,)
    groups: Codes  # shape (N,), decisions of one group (a user) depend on each other
    reward_range: tuple[float, float]  # no reward can be outside
    rows: Callable[[int], Floats]  # n -> (K_n, D), features of context and arm; zeros: worth 0
    segments: list[str]  # N names; one and the same where there are none

    @property
    def n(self) -> int:
        """How many decisions."""
        return len(self.chosen)

    @property
    def propensities(self) -> Floats:
        """Probability of the chosen arms, shape (N,)."""
        propensities: Floats = self.probabilities[self.chosen]
        return propensities


class Part(NamedTuple):
    """Some decisions of a log, and the rows of their arms in the whole log, shape (M',)."""

    log: BanditLog
    arms: Codes


def check(log: BanditLog) -> None:
    """Raise ValueError where a log cannot be evaluated.

    >>> check(alike(2, [1.0, 0.0]))
    >>> check(alike(2, [1.0, 3.0]))
    Traceback (most recent call last):
    ValueError: rewards from 1.0 to 3.0, which should be from 0.0 to 1.0
    """
    if not log.n:
        raise ValueError("no decisions")
    propensities = log.propensities
    if not ((propensities > 0) & (propensities <= 1 + _SUM_SLACK)).all():
        raise ValueError("a propensity that is not above 0 and at most 1")
    inside = (log.offsets[:-1] <= log.chosen) & (log.chosen < log.offsets[1:])
    if not inside.all():
        raise ValueError("a chosen arm that is none of its decision's")
    totals = by_decision(log, log.probabilities)
    if (np.abs(totals[~np.isnan(totals)] - 1) > _SUM_SLACK).any():
        raise ValueError("probabilities of a decision that do not sum to 1")
    low, high = log.rewards.min(), log.rewards.max()
    if not log.reward_range[0] <= low <= high <= log.reward_range[1]:
        least, most = log.reward_range
        raise ValueError(f"rewards from {low} to {high}, which should be from {least} to {most}")


def by_decision(log: BanditLog, values: Floats) -> Floats:
    """Return the sum over each decision's arms, of values of shape (M,)."""
    sums: Floats = np.add.reduceat(values, log.offsets[:-1])
    return sums


def decision_of_arm(log: BanditLog) -> Codes:
    """Return the decision of each arm, shape (M,)."""
    return np.repeat(np.arange(log.n), np.diff(log.offsets))


def weights(log: BanditLog, target: Floats) -> Floats:
    """Return how much likelier each chosen arm is under a policy, shape (N,).

    `target` holds the policy's probabilities, (M,).

    >>> weights(alike(2, [1.0, 0.0]), np.array([0.9, 0.1, 0.9, 0.1])).tolist()
    [1.8, 1.8]
    """
    ratios: Floats = target[log.chosen] / log.propensities
    return ratios


def most_weight(log: BanditLog, target: Floats) -> float:
    """Return the largest weight that any arm could have had, chosen or not; NaN: not known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = target / log.probabilities
    return float(ratios[target > 0].max(initial=0.0))


def select(log: BanditLog, decisions: Codes) -> Part:
    """Return some decisions, by their places in the log, at least one.

    >>> part = select(alike(2, [1.0, 0.0, 0.5]), np.array([0, 2]))
    >>> part.log.rewards.tolist(), part.log.chosen.tolist(), part.arms.tolist()
    ([1.0, 0.5], [0, 2], [0, 1, 4, 5])
    """
    lengths = np.diff(log.offsets)[decisions]
    offsets = np.concatenate([[0], lengths.cumsum()])
    moved = log.offsets[decisions] - offsets[:-1]  # from a place in the part to one in the whole
    arms = np.arange(offsets[-1]) + np.repeat(moved, lengths)
    part = BanditLog(
        offsets=offsets,
        probabilities=log.probabilities[arms],
        chosen=log.chosen[decisions] - moved,
        rewards=log.rewards[decisions],
        groups=log.groups[decisions],
        reward_range=log.reward_range,
        rows=lambda n: log.rows(int(decisions[n])),
        segments=[log.segments[n] for n in decisions.tolist()],
    )
    return Part(part, arms)


def alike(n_arms: int, rewards: list[float]) -> BanditLog:
    """Return a small log for examples: uniform over arms without features, the first chosen."""
    n = len(rewards)
    offsets = n_arms * np.arange(n + 1)
    return BanditLog(
        offsets=offsets,
        probabilities=np.full(n * n_arms, 1 / n_arms),
        chosen=offsets[:-1],
        rewards=np.array(rewards),
        groups=np.arange(n),
        reward_range=(0.0, 1.0),
        rows=lambda _n: np.ones((n_arms, 1)),
        segments=[""] * n,
    )
