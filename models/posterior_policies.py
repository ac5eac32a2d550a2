"""Policies beside SquareCB: softmax, popularity, upper bounds, and Thompson sampling.

Reads   rows of `models.arms.design` and a posterior, linear or logistic.
Emits   values and probabilities, as `models.policy` has it.
Owns    their formulas, and how a sampling policy's probabilities are estimated.

Upper bounds and Thompson sampling take their belief as a `Gaussian`: values of the arms, and how
unsure they are together. So both serve the linear and the logistic learner, and neural-linear
columns, alike.
"""

from functools import cache
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.arms import DESIGN
from models.policy import (
    VALUE_DECIMALS,
    Distribution,
    Judged,
    Knobs,
    best_alone,
    floored,
    linear_values,
)
from models.posterior import Posterior

DRAWS: Final = 256  # the estimate's standard error is at most 0.03, and 0.006 for a share of 1%
_DRAWS_SEED: Final = 0x74686F6D70  # apart from the seed of the draw of the arm
# Rounding a covariance may cost it being positive definite: its eigenvalues move by 5e-10 an arm
# at most. This on the diagonal makes up for it for 100 arms; as a deviation it is 0.0003.
_JITTER: Final = 1e-7
_RELATIVE_JITTER: Final = 1e-13  # for what a double itself rounds, where values are huge


class Softmax:
    """Probabilities in proportion to exp(value / temperature), then the floor.

    Parameters
    ----------
    temperature
        Reward units, > 0; smaller exploits more.

    Examples
    --------
    >>> policy = Softmax(Posterior(np.array([1.0]), np.eye(1), n=1), temperature=0.1, floor=0.0)
    >>> policy.distribution(np.array([[0.2], [-0.1]]))[1].round(4).tolist()
    [0.8438, 0.042, 0.1142]
    """

    policy_id = "softmax"

    def __init__(
        self, posterior: Posterior, *, temperature: float = 0.02, floor: float = 0.002
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self._mean = posterior.mean
        self.knobs: Knobs = {"temperature": temperature, "floor": floor}

    def judge(self, x: NDArray[np.float64]) -> Judged:
        """See `models.policy.AuditedPolicy`."""
        return Judged(linear_values(x, self._mean))

    @staticmethod
    def shares(judged: Judged, knobs: Knobs, seed: bytes = b"") -> NDArray[np.float64]:
        """See `models.policy.AuditedPolicy`."""
        # From the best one's value: no exponential overflows.
        weights = np.exp((judged.values - judged.values.max()) / knobs["temperature"])
        return floored(weights / weights.sum(), knobs["floor"])

    def distribution(self, x: NDArray[np.float64], seed: bytes = b"") -> Distribution:
        """See `models.policy.Policy.distribution`."""
        judged = self.judge(x)
        return judged.values, self.shares(judged, self.knobs)


class Popularity:
    """The most popular arm, whatever was learned: a baseline that always wants to send.

    Its values are one column, z-scored within the set: the most popular arm has 0 or more, and
    comes before "none" where it has 0.

    Examples
    --------
    >>> policy = Popularity(column=1, floor=0.1)
    >>> policy.distribution(np.array([[1.0, -1.0], [1.0, 1.0]]))[1].round(4).tolist()
    [0.1, 0.8, 0.1]
    """

    policy_id = "popularity"

    def __init__(self, *, column: int = DESIGN.index("popularity"), floor: float = 0.002) -> None:
        self._column = column
        self.knobs: Knobs = {"floor": floor}

    def judge(self, x: NDArray[np.float64]) -> Judged:
        """See `models.policy.AuditedPolicy`."""
        values = np.zeros(len(x) + 1)
        values[:-1] = x[:, self._column]
        return Judged(values)

    @staticmethod
    def shares(judged: Judged, knobs: Knobs, seed: bytes = b"") -> NDArray[np.float64]:
        """See `models.policy.AuditedPolicy`."""
        return floored(best_alone(judged.values), knobs["floor"])

    def distribution(self, x: NDArray[np.float64], seed: bytes = b"") -> Distribution:
        """See `models.policy.Policy.distribution`."""
        judged = self.judge(x)
        return judged.values, self.shares(judged, self.knobs)


class UpperBound:
    """The arm whose value may be highest: value + width standard deviations of its belief.

    With the linear learner this is LinUCB with one model of all arms (hybrid columns), with the
    logistic one UCB-GLM. "None" is known: its bound is its value.

    Parameters
    ----------
    posterior
        Of noise 1, or in log-odds.
    width
        Standard deviations of the value's mean, >= 0: LinUCB's alpha.
    threshold
        The value that "none" has, in the posterior's unit: 0 in reward units; for log-odds see
        `models.log_odds.Scale`.

    Examples
    --------
    >>> belief = Posterior(np.array([0.2, 0.0]), np.diag([0.0, 0.04]), n=1)
    >>> policy = UpperBound(belief, width=1.0, floor=0.0)
    >>> values, probabilities = policy.distribution(np.array([[1.0, 0.0], [0.5, 1.0]]))
    >>> values.tolist(), probabilities.tolist()  # 0.1 + 0.2 > 0.2 + 0
    ([0.2, 0.1, 0.0], [0.0, 1.0, 0.0])

    References
    ----------
    Li et al., "A contextual-bandit approach to personalized news article recommendation", WWW
    2010, eq. 5; Li et al., "Provably optimal algorithms for generalized linear contextual
    bandits", ICML 2017.
    """

    def __init__(
        self,
        posterior: Posterior,
        *,
        width: float = 0.3,
        floor: float = 0.002,
        threshold: float = 0.0,
        policy_id: str = "linucb",
    ) -> None:
        if width < 0:
            raise ValueError(f"width must be >= 0, got {width}")
        self.policy_id = policy_id
        self._belief = posterior
        self._threshold = threshold
        self.knobs: Knobs = {"width": width, "floor": floor} | _told(threshold)

    def judge(self, x: NDArray[np.float64]) -> Judged:
        """See `models.policy.AuditedPolicy`; the spread is each value's deviation, (K,)."""
        variance = np.einsum("kd,kd->k", x @ self._belief.covariance, x)
        spread = np.sqrt(variance.clip(0)).round(VALUE_DECIMALS)
        return Judged(_values_over(x, self._belief.mean, self._threshold), spread)

    @staticmethod
    def shares(judged: Judged, knobs: Knobs, seed: bytes = b"") -> NDArray[np.float64]:
        """See `models.policy.AuditedPolicy`."""
        bounds = judged.values.copy()
        bounds[:-1] += knobs["width"] * judged.spread
        return floored(best_alone(bounds.round(VALUE_DECIMALS)), knobs["floor"])

    def distribution(self, x: NDArray[np.float64], seed: bytes = b"") -> Distribution:
        """See `models.policy.Policy.distribution`."""
        judged = self.judge(x)
        return judged.values, self.shares(judged, self.knobs)


class Thompson:
    """The arm that is best in one draw from the belief; its probability is that of being best.

    The probability has no closed form from three arms on. It is estimated by `draws` joint draws
    of all arms' values, made from the decision's id, in one matrix product: an unbiased estimate.
    The arm is then drawn from this very estimate, so the logged propensity is exact for what was
    done; what is estimated is Thompson sampling itself.

    Parameters
    ----------
    width
        Standard deviations, >= 0, that a draw is made with for one of the belief: the reward's
        noise, where the posterior is of noise 1.
    draws
        Joint draws, even, >= 2: one half mirrors the other, which steadies the estimate.
    floor
        Least probability of an arm; one that no draw found best has it alone.

    Notes
    -----
    The draws are of the K values, not of the D weights: no matter which columns they came from,
    the values' covariance says all. So its K (K + 1) / 2 numbers, logged, are enough for an
    audit. `RandomState` makes them, for its algorithms are frozen (NEP 19).

    About 0.15 ms for 20 arms and 256 draws.

    Examples
    --------
    >>> belief = Posterior(np.array([0.0]), np.eye(1), n=1)
    >>> policy = Thompson(belief, floor=0.0)  # one arm around 0: best in one draw of two
    >>> policy.distribution(np.array([[1.0]]), b"any")[1].tolist()
    [0.5, 0.5]

    References
    ----------
    Agrawal & Goyal, "Thompson sampling for contextual bandits with linear payoffs", ICML 2013.
    """

    def __init__(
        self,
        posterior: Posterior,
        *,
        width: float = 0.3,
        draws: int = DRAWS,
        floor: float = 0.002,
        threshold: float = 0.0,
        policy_id: str = "thompson",
    ) -> None:
        if width < 0 or draws < 2 or draws % 2:
            raise ValueError(f"width >= 0 and an even number of draws, got {width} and {draws}")
        self.policy_id = policy_id
        self._belief = posterior
        self._threshold = threshold
        own = {"width": width, "draws": float(draws), "floor": floor}
        self.knobs: Knobs = own | _told(threshold)

    def judge(self, x: NDArray[np.float64]) -> Judged:
        """See `models.policy.AuditedPolicy`; the spread is the covariance's lower triangle."""
        covariance = x @ self._belief.covariance @ x.T  # (K, K)
        spread = covariance[_lower(len(x))].round(VALUE_DECIMALS)
        return Judged(_values_over(x, self._belief.mean, self._threshold), spread)

    @staticmethod
    def shares(judged: Judged, knobs: Knobs, seed: bytes = b"") -> NDArray[np.float64]:
        """See `models.policy.AuditedPolicy`."""
        n_arms, n_draws = len(judged.values), int(knobs["draws"])
        noise = _normals(seed, n_draws // 2, n_arms - 1) @ _root(judged.spread, n_arms - 1).T
        drawn = np.zeros((n_draws, n_arms))  # "none", the last, is known
        drawn[: n_draws // 2, :-1] = noise
        drawn[n_draws // 2 :, :-1] = -noise
        drawn *= knobs["width"]
        drawn += judged.values
        wins = np.bincount(drawn.round(VALUE_DECIMALS, out=drawn).argmax(axis=1), minlength=n_arms)
        return floored(wins / n_draws, knobs["floor"])

    def distribution(self, x: NDArray[np.float64], seed: bytes = b"") -> Distribution:
        """See `models.policy.Policy.distribution`."""
        judged = self.judge(x)
        return judged.values, self.shares(judged, self.knobs, seed)


def _told(threshold: float) -> dict[str, float]:
    return {"threshold": threshold} if threshold else {}


def _values_over(
    x: NDArray[np.float64], mean: NDArray[np.float64], threshold: float
) -> NDArray[np.float64]:
    values = linear_values(x, mean)
    if threshold:
        values[:-1] -= threshold
        values.round(VALUE_DECIMALS, out=values)
    return values


def _normals(seed: bytes, rows: int, columns: int) -> NDArray[np.float64]:
    # By its key Philox starts at once; to seed a Mersenne twister takes 80 us.
    bits = np.random.Philox(key=xxhash.xxh3_64_intdigest(seed, _DRAWS_SEED))
    return np.random.RandomState(bits).standard_normal((rows, columns))


@cache
def _lower(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of a lower triangle by rows; one is kept for each size, at most 101."""
    rows, columns = np.tril_indices(size)
    return rows, columns


def _root(lower: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return a lower triangular (size, size) matrix whose square is the covariance."""
    covariance = np.zeros((size, size))
    covariance[_lower(size)] = lower
    # The upper triangle is not read.
    covariance[np.diag_indices(size)] += _JITTER + _RELATIVE_JITTER * np.trace(covariance)
    return np.asarray(np.linalg.cholesky(covariance), np.float64)
