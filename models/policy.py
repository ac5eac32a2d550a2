"""Policies: from the arms' columns to a probability for each arm, "none" among them.

Reads   rows of `models.arms.design` and the learner's posterior.
Emits   an estimated value and an exact probability for each arm; the draw is the caller's, by
        `sample`, seeded with the decision's id.
Owns    the formulas and the floor of the propensities.

The last arm is always "none", whose value is 0 by definition: rewards count from doing nothing,
so a push that nobody answers earns a little less than 0 (`no_response`).

A policy is immutable and its result depends on `x` and the posterior alone, so that an audit can
compute every logged propensity again. Another policy is another class with the same two members.
"""

import hashlib
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.arms import DESIGN
from models.posterior import Posterior

NONE_VALUE: Final = 0.0
# Values are rounded to this many decimals: the last bits of a dot product differ between
# processors, and must not decide which of two arms is best.
VALUE_DECIMALS: Final = 9
GAMMA_REWARDS: Final = 1_000  # `gamma` is stated for this many learned rewards
_DRAW_SEED: Final = 0x706F6C696379  # apart from other hashes of the same id (the holdout's)

Distribution = tuple[NDArray[np.float64], NDArray[np.float64]]


class Policy(Protocol):
    """What `decide` asks of a policy."""

    policy_id: str

    def distribution(self, x: NDArray[np.float64]) -> Distribution:
        """Return values and probabilities of K arms and "none", from rows of shape (K, D).

        Both float64, shape (K + 1,), "none" last; K = 0 leaves "none" with probability 1.
        """
        ...


class SquareCB:
    """Explore an arm in inverse proportion to how much worse it looks than the best.

    An arm other than the best has probability 1 / (A + gamma (best value - its value)) among A
    arms, the best has the rest. Then every arm is given `floor` and the rest is shared as before,
    so that no importance weight exceeds 1 / floor.

    Parameters
    ----------
    posterior
        Belief about the weights, from `models.learner.merge`.
    gamma
        Reward units^-1, > 0, at `GAMMA_REWARDS` learned rewards. Larger exploits more.
    growth
        gamma grows as (n / GAMMA_REWARDS) ** growth with the n rewards learned, as the error of
        the values shrinks; 0.5 is the theory's rate, 0 turns growth off.
    floor
        Least probability of an arm, >= 0; above 1 / A it acts as 1 / A, which is uniform.

    Notes
    -----
    About 20 us for 20 arms of 47 columns. Before anything is learned all values are 0 and the
    distribution is uniform: it sends with probability K / (K + 1).

    Examples
    --------
    >>> belief = Posterior(np.array([1.0]), np.eye(1), n=1_000)
    >>> policy = SquareCB(belief, gamma=10.0, floor=0.0)
    >>> values, probabilities = policy.distribution(np.array([[0.2], [-0.1]]))
    >>> values.tolist(), probabilities.round(4).tolist()
    ([0.2, -0.1, 0.0], [0.6333, 0.1667, 0.2])

    References
    ----------
    Foster & Rakhlin, "Beyond UCB", ICML 2020, algorithm 1 (there with costs).
    """

    policy_id = "squarecb"

    def __init__(
        self, posterior: Posterior, *, gamma: float, growth: float = 0.5, floor: float = 0.002
    ) -> None:
        if gamma <= 0 or floor < 0:
            raise ValueError(f"gamma must be > 0 and floor >= 0, got {gamma} and {floor}")
        self._mean = posterior.mean
        self._floor = floor
        self.gamma = gamma * (max(posterior.n, 1) / GAMMA_REWARDS) ** growth

    def distribution(self, x: NDArray[np.float64]) -> Distribution:
        """See `Policy.distribution`."""
        values = _values(x, self._mean)
        n_arms = len(values)
        best = int(values.argmax())
        shares = 1.0 / (n_arms + self.gamma * (values[best] - values))
        shares[best] = 0.0
        shares[best] = 1.0 - shares.sum()
        return values, _floored(shares, self._floor)


class Greedy:
    """The best arm with probability 1 - epsilon, else any arm alike.

    Examples
    --------
    >>> policy = Greedy(Posterior(np.array([1.0]), np.eye(1), n=1), epsilon=0.3)
    >>> policy.distribution(np.array([[0.2], [-0.1]]))[1].round(4).tolist()
    [0.8, 0.1, 0.1]
    """

    policy_id = "greedy"

    def __init__(self, posterior: Posterior, *, epsilon: float = 0.1) -> None:
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon must be within 0 and 1, got {epsilon}")
        self._mean = posterior.mean
        self._epsilon = epsilon

    def distribution(self, x: NDArray[np.float64]) -> Distribution:
        """See `Policy.distribution`."""
        values = _values(x, self._mean)
        shares = np.zeros(len(values))
        shares[values.argmax()] = 1.0
        return values, _floored(shares, self._epsilon / len(values))


class Uniform:
    """Every arm alike, "none" too; its values are all 0. The baseline of experiments.

    Examples
    --------
    >>> Uniform().distribution(np.zeros((3, 5)))[1].tolist()
    [0.25, 0.25, 0.25, 0.25]
    """

    policy_id = "uniform"

    def distribution(self, x: NDArray[np.float64]) -> Distribution:
        """See `Policy.distribution`."""
        n_arms = len(x) + 1
        return np.zeros(n_arms), np.full(n_arms, 1.0 / n_arms)


def sample(probabilities: NDArray[np.float64], seed: bytes) -> int:
    """Draw an arm's index, the same for the same seed on every machine.

    Parameters
    ----------
    probabilities
        Shape (A,), summing to 1. An arm of probability 0 is never drawn.
    seed
        The decision's id; its hash is the uniform number that is looked up in the running sum.

    >>> sample(np.array([0.0, 1.0, 0.0]), b"any")
    1
    """
    uniform = (xxhash.xxh3_64_intdigest(seed, _DRAW_SEED) >> 11) * 2.0**-53  # [0, 1)
    ends = probabilities.cumsum()
    arm = int(ends.searchsorted(uniform, side="right"))
    if arm == len(ends):  # the sum fell short of 1 by rounding
        arm = int(probabilities.nonzero()[0][-1])
    return arm


def explain(
    row: NDArray[np.float64],
    mean: NDArray[np.float64],
    top: int,
    names: Sequence[str] = DESIGN,
) -> list[tuple[str, float, float]]:
    """Return the `top` columns that moved an arm's value most: (name, value, contribution).

    `row` is the arm's row of `design`, `mean` the posterior's, both (D,). Contributions are
    value x weight, in reward units; over all columns they add up to the arm's value.

    >>> explain(np.array([1.0, 2.0, 0.0]), np.array([0.1, -0.2, 9.0]), 2, ("bias", "a", "b"))
    [('a', 2.0, -0.4), ('bias', 1.0, 0.1)]
    """
    shares = row * mean
    order = np.argsort(-np.abs(shares), kind="stable")[:top]
    return [(names[i], float(row[i]), float(shares[i])) for i in order.tolist() if shares[i]]


def policy_version(posterior: Posterior) -> str:
    """Return "n-hash": rewards learned, and 8 hex digits of the mean and covariance.

    >>> policy_version(Posterior(np.zeros(2), np.eye(2), 7))[:2]
    '7-'
    """
    content = posterior.mean.tobytes() + posterior.covariance.tobytes()
    return f"{posterior.n}-{hashlib.blake2b(content, digest_size=4).hexdigest()}"


def _values(x: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.empty(len(x) + 1)
    values[:-1] = x @ mean
    values[-1] = NONE_VALUE
    return values.round(VALUE_DECIMALS, out=values)


def _floored(shares: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """Give every arm `floor`, and share the rest as `shares` does; the sum stays 1."""
    n_arms = len(shares)
    floor = min(floor, 1.0 / n_arms)
    return floor + (1.0 - n_arms * floor) * shares
