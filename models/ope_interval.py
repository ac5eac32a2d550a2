"""Estimates as sums of ratios of sums, and how sure one can be of them.

Reads   `Ratios`: what each decision adds to numerators and denominators.
Emits   `Estimate`: value, standard error, interval.
Owns    the standard error, the bootstrap, the empirical Bernstein bound, and sample sizes.

Every estimator of `models.ope_estimators`, and every difference of two of them, is a sum of
ratios of sums over decisions. So one piece of code serves all. The unit that is drawn is the
group: what a user's decisions add is one number.

**Standard error.** The delta method: an estimate is linear in its sums, near enough.

**Bootstrap.** Groups are drawn again with Poisson weights, and of each draw it is asked by how many
of *its own* standard errors it misses the estimate (the bootstrap-t). Importance weights make for
long tails to one side; the plain percentile interval is too short there.

**Empirical Bernstein.** Holds for any number of decisions and any distribution within stated
bounds, and is wide: an estimate that is a plain mean of bounded numbers has one, no other.

References
----------
Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 12 (bootstrap-t).
Maurer & Pontil, "Empirical Bernstein bounds and sample variance penalization", 2009, theorem 4.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np

from models.ope_log import Codes, Floats

DRAWS: Final = 1_000
_AT_ONCE: Final = 1 << 22  # bootstrap weights made in one call: bounds the memory to 64 MB
_LEAST_DRAWS: Final = 100  # with a standard error, below which the tails of draws say nothing


class Ratios(NamedTuple):
    """N decisions' part in the sum over j of signs[j] x sum(tops[:, j]) / sum(bottoms[:, j])."""

    tops: Floats  # shape (N, J)
    bottoms: Floats  # shape (N, J)
    signs: Floats  # shape (J,)

    def minus(self, other: "Ratios") -> "Ratios":
        """Return the difference of two estimates on the same decisions."""
        return Ratios(
            np.hstack([self.tops, other.tops]),
            np.hstack([self.bottoms, other.bottoms]),
            np.concatenate([self.signs, -other.signs]),
        )


class Estimate(NamedTuple):
    """A value, its standard error, and an interval; NaN where nothing can be said."""

    value: float
    error: float
    low: float
    high: float


class Resampling(NamedTuple):
    """How the bootstrap draws; (1 - confidence) / 2 of the draws should be 10 or more."""

    confidence: float = 0.95
    draws: int = DRAWS
    seed: int = 1


AS_USUAL: Final = Resampling()


def mean_of(values: Floats) -> Ratios:
    """Return the ratios of a plain mean."""
    return Ratios(values[:, None], np.ones((len(values), 1)), np.ones(1))


def ratio_of(tops: Floats, bottoms: Floats) -> Ratios:
    """Return the ratios of one quotient."""
    return Ratios(tops[:, None], bottoms[:, None], np.ones(1))


def point(ratios: Ratios, groups: Codes) -> tuple[float, float]:
    """Return an estimate and its standard error.

    >>> value, error = point(mean_of(np.array([1.0, 0.0, 1.0, 0.0])), np.arange(4))
    >>> value, error
    (0.5, 0.25)
    """
    columns = _Columns.of(ratios, groups)
    value, error = columns.judge(columns.sums()[None])
    return float(value[0]), float(error[0])


def intervals(
    estimates: Sequence[Ratios], groups: Codes, how: Resampling = AS_USUAL
) -> list[Estimate]:
    """Return the estimates with bootstrap-t intervals, all from the same draws of groups.

    Parameters
    ----------
    estimates
        On the same N decisions.
    groups
        Shape (N,).
    how
        Its confidence is that of each interval by itself.

    Notes
    -----
    O(draws G C) time for G groups and C columns: 2 J and their products.

    Examples
    --------
    >>> x = np.random.default_rng(1).normal(3.0, 1.0, 400)
    >>> [found] = intervals([mean_of(x)], np.arange(400))
    >>> found.low < 3.0 < found.high, round(found.high - found.low, 1)
    (True, 0.2)
    """
    columns = [_Columns.of(ratios, groups) for ratios in estimates]
    if not columns:
        return []
    stacked = np.hstack([own.values for own in columns])  # (G, C)
    drawn = _draw(stacked, how.draws, how.seed)  # (draws, C)
    found, start = [], 0
    for own in columns:
        stop = start + own.values.shape[1]
        found.append(own.studentised(drawn[:, start:stop], how.confidence))
        start = stop
    return found


def bernstein(
    values: Floats, groups: Codes, bounds: tuple[float, float], *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the empirical Bernstein interval of a mean of numbers within `bounds`.

    >>> low, high = bernstein(np.tile([0.0, 1.0], 500), np.arange(1_000), (0.0, 1.0))
    >>> round(low, 3), round(high, 3)
    (0.443, 0.557)
    """
    per_group = _by_group(np.column_stack([values, np.ones(len(values))]), groups)
    n_groups, n = len(per_group), len(values)
    if n_groups < 2:
        return -np.inf, np.inf
    own = per_group[:, 0] * n_groups / n  # their mean is the estimate
    spread = (bounds[1] - bounds[0]) * float(per_group[:, 1].max()) * n_groups / n
    log_term = np.log(4 / (1 - confidence))
    half = np.sqrt(2 * own.var(ddof=1) * log_term / n_groups)
    half += 7 * spread * log_term / (3 * (n_groups - 1))
    mean = float(own.mean())
    return mean - float(half), mean + float(half)


def decisions_needed(
    error: float,
    n: int,
    detect: float,
    *,
    confidence: float = 0.95,
    power: float = 0.8,
    share: float = 1.0,
) -> int:
    """Return how many decisions of a log like this one show a difference of `detect`.

    Parameters
    ----------
    error
        Standard error that the difference has now.
    n
        Decisions that it comes from.
    detect
        The difference to be found, reward units, > 0.
    power
        Probability that it is found.
    share
        Of the wanted decisions that count, such as ESS / n of another policy.

    >>> decisions_needed(0.01, 10_000, 0.02)
    19623
    """
    if detect <= 0:
        raise ValueError(f"a difference to detect must be > 0, got {detect}")
    normal = NormalDist()
    reach = normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(power)
    return int(np.ceil(n * (reach * error / detect) ** 2 / share))


class _Columns(NamedTuple):
    """What groups add to an estimate's sums, and to the sums of their products."""

    values: Floats  # shape (G, 2 J + (2 J)^2): tops, bottoms, and all products of two of them
    signs: Floats

    @classmethod
    def of(cls, ratios: Ratios, groups: Codes) -> "_Columns":
        added = _by_group(np.hstack([ratios.tops, ratios.bottoms]), groups)  # (G, 2 J)
        products = (added[:, :, None] * added[:, None, :]).reshape(len(added), -1)
        return cls(np.hstack([added, products]), ratios.signs)

    def sums(self) -> Floats:
        total: Floats = self.values.sum(axis=0)
        return total

    def judge(self, sums: Floats) -> tuple[Floats, Floats]:
        """Return estimates and standard errors of several sums, (B, C) -> (B,), (B,)."""
        n_ratios = len(self.signs)
        tops, bottoms = sums[:, :n_ratios], sums[:, n_ratios : 2 * n_ratios]
        products = sums[:, 2 * n_ratios :].reshape(len(sums), 2 * n_ratios, 2 * n_ratios)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = tops / bottoms  # (B, J)
            slope = self.signs / bottoms
            gradient = np.hstack([slope, -slope * ratios])  # (B, 2 J), of the estimate by its sums
            # The gradient is at right angles to the sums, so this is centred already.
            variance = np.einsum("bi,bij,bj->b", gradient, products, gradient)
        return ratios @ self.signs, np.sqrt(np.maximum(variance, 0.0))

    def studentised(self, drawn: Floats, confidence: float) -> Estimate:
        (value,), (error,) = self.judge(self.sums()[None])
        values, errors = self.judge(drawn)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (values - value) / errors
        t = t[np.isfinite(t)]
        if not np.isfinite(value) or error == 0 or len(t) < _LEAST_DRAWS:
            return Estimate(float(value), float(error), float("nan"), float("nan"))
        tail = (1 - confidence) / 2
        most, least = np.quantile(t, [1 - tail, tail])
        return Estimate(
            float(value), float(error), float(value - most * error), float(value - least * error)
        )


def _by_group(columns: Floats, groups: Codes) -> Floats:
    """Add up rows of one group, (N, C) -> (G, C)."""
    names, place = np.unique(groups, return_inverse=True)
    if len(names) == len(groups):
        return columns
    added = np.zeros((len(names), columns.shape[1]))
    np.add.at(added, place, columns)
    return added


def _draw(stacked: Floats, draws: int, seed: int) -> Floats:
    """Return the columns' sums over groups drawn again, (G, C) -> (draws, C)."""
    rng = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // len(stacked))
    parts = [
        rng.poisson(1.0, (min(step, draws - start), len(stacked))) @ stacked
        for start in range(0, draws, step)
    ]
    return np.concatenate(parts)
