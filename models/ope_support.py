"""Whether a log can say anything about a policy: what its importance weights look like.

Reads   importance weights, and the probabilities of both policies.
Emits   `Support`, and the reasons to refuse a verdict.
Owns    the rule for that. An estimate always comes out; this says if it is one.

**The rule.** No verdict where any of these holds:

    ess < 100               fewer effective decisions than that
    largest > 5%            one decision has more than that of all weight
    pareto_k > limit        the weights' tail is so long that their mean does not settle: more
                            than 0.7, or than 1 - 1 / log10(n) in a short log
    unsupported > 1%        of the policy's choices the logging policy never makes
    mean weight off 1       by more than 4 of its standard errors: the propensities are wrong, or
                            choices that matter are not in the log at all
    answered < 20           decisions with another reward than most: nothing to tell policies by

References
----------
Kong, "A note on importance sampling using standardized weights", 1992 (ESS).
Vehtari et al., "Pareto smoothed importance sampling", JMLR 2024 (k and its limit).
Zhang & Stephens, "A new and efficient estimation method for the generalized Pareto", 2009.
"""

import math
from typing import Final, NamedTuple

import numpy as np

from models.ope_interval import mean_of, point
from models.ope_log import BanditLog, Floats, by_decision, weights

LEAST_ESS: Final = 100.0
MOST_OF_ONE: Final = 0.05
MOST_UNSUPPORTED: Final = 0.01
MOST_ERRORS: Final = 4.0
LEAST_ANSWERED: Final = 20
MOST_K: Final = 0.7
_LEAST_TAIL: Final = 5  # different weights, below which no tail can be fitted
_TINY: Final = 1e-9


class Support(NamedTuple):
    """What the weights of one policy on a log look like."""

    n: int
    ess: float  # effective decisions, (sum w)^2 / sum w^2
    most_weight: float
    largest: float  # share of all weight that the largest one has
    top_percent: float  # share of all weight that the largest 1% of decisions have
    pareto_k: float  # shape of the weights' tail; NaN: too few different weights to have one
    mean_weight: float  # 1 is expected
    mean_error: float  # its standard error
    unsupported: float  # mean probability of arms that were never chosen; NaN: not known
    answered: int  # decisions with weight whose reward is not the most frequent one


def support(log: BanditLog, target: Floats) -> Support:
    """Return what a policy's probabilities, (M,), come to on a log.

    >>> from models.ope_log import alike
    >>> found = support(alike(2, [1.0, 0.0]), np.array([0.9, 0.1, 0.9, 0.1]))
    >>> round(found.ess, 3), round(found.mean_weight, 3), found.unsupported
    (2.0, 1.8, 0.0)
    """
    own = weights(log, target)
    ordered = np.sort(own)[::-1]
    total = max(float(own.sum()), _TINY)
    mean, error = point(mean_of(own), log.groups)
    lost = by_decision(log, np.where(log.probabilities <= 0, target, 0.0))
    is_known = not np.isnan(log.probabilities).any()
    rewards, counts = np.unique(log.rewards, return_counts=True)
    usual = rewards[counts.argmax()]
    return Support(
        n=log.n,
        ess=total * total / max(float(own @ own), _TINY),
        most_weight=float(ordered[0]),
        largest=float(ordered[0]) / total,
        top_percent=float(ordered[: max(1, log.n // 100)].sum()) / total,
        pareto_k=pareto_k(own),
        mean_weight=mean,
        mean_error=error,
        unsupported=float(lost.mean()) if is_known else float("nan"),
        answered=int(((log.rewards != usual) & (own > _TINY)).sum()),
    )


def refusals(of: Support) -> list[str]:
    """Return why there can be no verdict; none: there can.

    >>> from models.ope_log import alike
    >>> log = alike(2, [1.0] * 50 + [0.0] * 150)
    >>> refusals(support(log, log.probabilities))
    []
    >>> refusals(support(log, np.array([1.0, 0.0] * 200)))
    ['mean weight 2.00 where 1 is due: wrong propensities, or choices that the log lacks']
    """
    found = []
    if of.ess < LEAST_ESS:
        found.append(f"{of.ess:.0f} effective decisions of {LEAST_ESS:.0f} at least")
    if of.largest > MOST_OF_ONE:
        found.append(f"one decision has {of.largest:.0%} of all weight, {MOST_OF_ONE:.0%} at most")
    limit = most_k(of.n)
    if of.pareto_k > limit:
        found.append(f"the weights' tail is too long: Pareto k {of.pareto_k:.2f} above {limit:.2f}")
    if of.unsupported > MOST_UNSUPPORTED:
        found.append(f"{of.unsupported:.0%} of its choices were never made by the logging policy")
    if abs(of.mean_weight - 1) > MOST_ERRORS * of.mean_error + _TINY:
        found.append(
            f"mean weight {of.mean_weight:.2f} where 1 is due: wrong propensities, or choices "
            "that the log lacks"
        )
    if of.answered < LEAST_ANSWERED:
        found.append(f"{of.answered} answered decisions of {LEAST_ANSWERED} at least")
    return found


def most_k(n: int) -> float:
    """Return the largest Pareto k that n decisions can bear.

    >>> round(most_k(100), 2), most_k(100_000)
    (0.5, 0.7)
    """
    return min(MOST_K, 1 - 1 / math.log10(max(n, 11)))


def pareto_k(ratios: Floats) -> float:
    """Return the shape of the weights' tail: above 1/k moments there are none.

    A generalized Pareto distribution is fitted to the largest 3 sqrt(n) weights, at most a fifth.

    >>> tail = np.random.default_rng(1).pareto(2.0, 100_000)  # k = 1 / 2
    >>> round(pareto_k(tail), 1)
    0.5
    """
    n_tail = int(min(0.2 * len(ratios), 3 * np.sqrt(len(ratios))))
    if n_tail < _LEAST_TAIL:
        return float("nan")
    ordered = np.sort(ratios)
    above = ordered[-n_tail:] - ordered[-n_tail - 1]
    above = above[above > _TINY * ordered[-1]]
    if len(np.unique(above)) < _LEAST_TAIL:
        return float("nan")
    return _shape_of(above)


def _shape_of(x: Floats) -> float:
    """Fit the shape to ordered exceedances, by Zhang & Stephens' posterior mean."""
    n = len(x)
    n_grid = 30 + int(np.sqrt(n))
    theta = 1 - np.sqrt(n_grid / (np.arange(1, n_grid + 1) - 0.5))
    theta = theta / (3 * x[int(n / 4 + 0.5) - 1]) + 1 / x[-1]
    k = np.log1p(-theta[:, None] * x).mean(axis=1)
    likelihood = n * (np.log(-theta / k) - k - 1)
    with np.errstate(over="ignore"):  # a share of 1 / infinity is 0
        shares = 1 / np.exp(likelihood - likelihood[:, None]).sum(axis=1)
    shape = float(np.log1p(-(theta @ shares) * x).mean())
    return (n * shape + 10 * 0.5) / (n + 10)  # a weak prior at 1/2, as Vehtari et al. have it
