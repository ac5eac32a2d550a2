"""Sequential tests: intervals and error rates that hold however often one looks.

Reads   estimates with their standard errors, as they grew with the number of users.
Emits   confidence sequences, always-valid p-values, and the evidence against a split of users.
Owns    the formulas, and when the sequences are narrowest.

A fixed interval of 95% holds at one look that was planned. Who looks each day and stops when it
leaves 0 is wrong far more often. A confidence sequence holds at all looks at once: with 95%
probability no look ever leaves the truth out. It costs width, about a half more at its best.

The sequence of a mean is the asymptotic one of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas
("Time-uniform central limit theory and asymptotic confidence sequences", Annals of Statistics
2024, equation 7): the mixture of Robbins (1970) that the mixture sequential probability ratio test
(mSPRT; Johari et al. 2022) inverts as well, with the variance estimated. It needs no bound on what
is measured, and like any use of the central limit it needs some users before it holds.
"""

import math
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# How sure the prior is that users are split as they should be, in users: evidence grows fastest
# for mismatches that some thousands of users show.
SPLIT_CONCENTRATION: Final = 1_000.0


class Boundary(NamedTuple):
    """Half-widths of a confidence sequence, in standard errors.

    >>> boundary = tuned(1_000, alpha=0.05)
    >>> boundary.errors(np.array([100.0, 1_000.0, 10_000.0])).round(2).tolist()
    [3.76, 3.04, 3.26]
    """

    rho2: float  # variance of the mixture, a standard deviation of what is measured as unit
    alpha: float

    def errors(self, n: NDArray[np.number]) -> Floats:
        """Return the half-widths after `n` users, > 0; shape (T,)."""
        t = np.asarray(n, np.float64) * self.rho2
        half: Floats = np.sqrt(2 * (1 + 1 / t) * np.log(np.sqrt(t + 1) / self.alpha))
        return half

    def p_values(self, z: Floats, n: NDArray[np.number]) -> Floats:
        """Return always-valid p-values of estimates of `z` standard errors, looked at in order.

        The p-value of a look is below `alpha` from the first look on whose interval of this
        boundary leaves out 0. Shape (T,), never rising.

        >>> tuned(1_000, 0.05).p_values(np.array([1.0, 4.5, 1.0]), np.array([500, 1_000, 1_500])
        ...     ).round(4).tolist()
        [1.0, 0.0004, 0.0004]
        """
        t = np.asarray(n, np.float64) * self.rho2
        log_evidence = z * z * t / (2 * (t + 1)) - 0.5 * np.log1p(t)
        evidence = np.maximum.accumulate(np.maximum(log_evidence, 0.0))
        p: Floats = np.exp(-evidence)
        return p


def tuned(n: float, alpha: float) -> Boundary:
    """Return the boundary that is narrowest after `n` users, > 0.

    Whichever is chosen, it holds at every look. It must be chosen before the data are seen.
    """
    # Waudby-Smith et al., appendix B.2, for the two sides together.
    wide = -2 * math.log(alpha)
    return Boundary((wide + math.log(wide) + 1) / n, alpha)


def users_needed(effect: float, spread: float, alpha: float, power: float) -> float:
    """Return the users after which a tuned sequence leaves 0 out with a probability of `power`.

    Parameters
    ----------
    effect
        The difference to be found, > 0.
    spread
        The standard error of the difference times the root of the users: with a variance v each
        and shares a and b of the users, sqrt(v / a + v / b).
    power
        Of a look at that number, from 0.5 to below 1; earlier looks add to it.

    Examples
    --------
    >>> round(users_needed(0.02, 0.6, alpha=0.05, power=0.8))
    13528
    """
    # At the number it is tuned to the half-width does not depend on that number.
    half = float(tuned(1.0, alpha).errors(np.ones(1))[0])
    return ((half + normal_quantile(power)) * spread / effect) ** 2


def split_evidence(
    counts: NDArray[np.number], shares: Floats, concentration: float = SPLIT_CONCENTRATION
) -> Floats:
    """Return the logarithm of the evidence that users are not split by their shares.

    Parameters
    ----------
    counts
        Users of each arm at each look, shape (T, A).
    shares
        The ones that were set, > 0, summing to 1, shape (A,).
    concentration
        Of the Dirichlet prior around `shares`, in users.

    Returns
    -------
    Shape (T,). Users split as they should be push it above -log(a) at any look with a probability
    of at most a: Lindon and Malek, "Anytime-valid inference for multinomial count data", 2022.

    Examples
    --------
    >>> even = np.array([0.5, 0.5])
    >>> split_evidence(np.array([[510, 490], [5_300, 4_700]]), even).round(2).tolist()
    [-0.25, 15.17]
    """
    prior = concentration * shares
    totals = counts.sum(axis=1)
    of_arms = _lgamma(prior + counts) - _lgamma(prior)  # (T, A)
    of_all = _lgamma(concentration + totals) - _lgamma(np.array(concentration))
    evidence: Floats = of_arms.sum(axis=1) - of_all - counts @ np.log(shares)
    return evidence


_lgamma = np.vectorize(math.lgamma, otypes=[np.float64])


def normal_quantile(p: float) -> float:
    """Return the standard normal's quantile.

    >>> round(normal_quantile(0.975), 4)
    1.96
    """
    return NormalDist().inv_cdf(p)
