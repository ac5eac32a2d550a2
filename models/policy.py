"""Policies: from the arms' columns to a probability for each arm, "none" among them.

Reads   rows of `models.arms.design` and the learner's posterior.
Emits   an estimated value and an exact probability for each arm; the draw is the caller's, by
        `sample`, seeded with the decision's id.
Owns    the interface, the formulas of the policies that look at values alone, and the floor of
        the propensities. Those that look at how sure a value is: `models.posterior_policies`.

The last arm is always "none", whose value is 0: rewards count from doing nothing, so a push that
nobody answers earns a little less than 0 (`no_response`). Where `models.value` is on, "none" is
worth what it says in place of 0: see `Judged.with_none`.

A policy has two steps. `judge` makes numbers of the arms by the posterior; `shares` makes
probabilities of these numbers, of settings, and of nothing else. A decision logs both numbers and
settings, so an audit computes every logged propensity again, long after the posterior is gone.
A policy is immutable.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.arms import DESIGN
from models.posterior import Posterior

NONE_VALUE: Final = 0.0
# Values are rounded to this many decimals: the last bits of a dot product differ between
# processors, and must not decide which of two arms is best. So are spreads, to be logged short.
VALUE_DECIMALS: Final = 9
GAMMA_REWARDS: Final = 1_000  # `gamma` is stated for this many learned rewards
_DRAW_SEED: Final = 0x706F6C696379  # apart from other hashes of the same id (the holdout's)
NO_SPREAD: Final = np.empty(0)

Distribution = tuple[NDArray[np.float64], NDArray[np.float64]]
Knobs = Mapping[str, float]


class Judged(NamedTuple):
    """What a policy makes of K arms and "none", all that its probabilities depend on.

    `values`, float64, shape (K + 1,), "none" last with 0: what an arm earns more than doing
    nothing, in reward units; log-odds of it for logistic policies. `spread` is how unsure they
    are, as the policy's rule reads it: nothing, K numbers, or the lower triangle by rows of the
    values' covariance, shape (K (K + 1) / 2,).
    """

    values: NDArray[np.float64]
    spread: NDArray[np.float64] = NO_SPREAD

    def with_none(self, value: float) -> "Judged":
        """Return the same with another value of "none", in the unit of `values`.

        >>> Judged(np.array([0.2, 0.0])).with_none(0.3).values.tolist()
        [0.2, 0.3]
        """
        values = self.values.copy()
        values[-1] = value
        return self._replace(values=values)


class Policy(Protocol):
    """Whatever maps arms to a distribution."""

    policy_id: str

    def distribution(self, x: NDArray[np.float64], seed: bytes = b"") -> Distribution:
        """Return values and probabilities of K arms and "none", from rows of shape (K, D).

        Both float64, shape (K + 1,), "none" last; K = 0 leaves "none" with probability 1. `seed`
        is the decision's id: a policy that estimates its probabilities from posterior draws draws
        from it, every other one leaves it unread.
        """
        ...


class AuditedPolicy(Policy, Protocol):
    """What `decide` asks of a policy: the two steps of `distribution` apart, to be logged."""

    @property
    def knobs(self) -> Knobs:
        """Settings as they act now, by name: what `shares` is given."""
        ...

    def judge(self, x: NDArray[np.float64]) -> Judged:
        """Return what `shares` is to go by."""
        ...

    @staticmethod
    def shares(judged: Judged, knobs: Knobs, seed: bytes) -> NDArray[np.float64]:
        """Return the probabilities, float64, shape (K + 1,)."""
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
        self.gamma = gamma * (max(posterior.n, 1) / GAMMA_REWARDS) ** growth
        self.knobs: Knobs = {"gamma": self.gamma, "floor": floor}

    def judge(self, x: NDArray[np.float64]) -> Judged:
        """See `AuditedPolicy`."""
        return Judged(linear_values(x, self._mean))

    @staticmethod
    def shares(judged: Judged, knobs: Knobs, seed: bytes = b"") -> NDArray[np.float64]:
        """See `AuditedPolicy`."""
        values = judged.values
        n_arms = len(values)
        best = int(values.argmax())
        shares = 1.0 / (n_arms + knobs["gamma"] * (values[best] - values))
        shares[best] = 0.0
        shares[best] = 1.0 - shares.sum()
        return floored(shares, knobs["floor"])

    def distribution(self, x: NDArray[np.float64], seed: bytes = b"") -> Distribution:
        """See `Policy.distribution`."""
        judged = self.judge(x)
        return judged.values, self.shares(judged, self.knobs)


class Greedy:
    """The best arm with probability 1 - epsilon, else any arm alike; epsilon-greedy above 0.

    Examples
    --------
    >>> policy = Greedy(Posterior(np.array([1.0]), np.eye(1), n=1), epsilon=0.3)
    >>> policy.distribution(np.array([[0.2], [-0.1]]))[1].round(4).tolist()
    [0.8, 0.1, 0.1]
    """

    def __init__(self, posterior: Posterior, *, epsilon: float = 0.1, floor: float = 0.0) -> None:
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon must be within 0 and 1, got {epsilon}")
        self.policy_id = "epsilon_greedy" if epsilon else "greedy"
        self._mean = posterior.mean
        self.knobs: Knobs = {"epsilon": epsilon, "floor": floor}

    def judge(self, x: NDArray[np.float64]) -> Judged:
        """See `AuditedPolicy`."""
        return Judged(linear_values(x, self._mean))

    @staticmethod
    def shares(judged: Judged, knobs: Knobs, seed: bytes = b"") -> NDArray[np.float64]:
        """See `AuditedPolicy`."""
        values = judged.values
        return floored(best_alone(values), max(knobs["floor"], knobs["epsilon"] / len(values)))

    def distribution(self, x: NDArray[np.float64], seed: bytes = b"") -> Distribution:
        """See `Policy.distribution`."""
        judged = self.judge(x)
        return judged.values, self.shares(judged, self.knobs)


class Uniform:
    """Every arm alike, "none" too; its values are all 0. The baseline of experiments.

    Examples
    --------
    >>> Uniform().distribution(np.zeros((3, 5)))[1].tolist()
    [0.25, 0.25, 0.25, 0.25]
    """

    policy_id = "uniform"

    def __init__(self) -> None:
        self.knobs: Knobs = {}

    def judge(self, x: NDArray[np.float64]) -> Judged:
        """See `AuditedPolicy`."""
        return Judged(np.zeros(len(x) + 1))

    @staticmethod
    def shares(judged: Judged, knobs: Knobs, seed: bytes = b"") -> NDArray[np.float64]:
        """See `AuditedPolicy`."""
        n_arms = len(judged.values)
        return np.full(n_arms, 1.0 / n_arms)

    def distribution(self, x: NDArray[np.float64], seed: bytes = b"") -> Distribution:
        """See `Policy.distribution`."""
        judged = self.judge(x)
        return judged.values, self.shares(judged, self.knobs)


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


def linear_values(x: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the values of K arms and "none", shape (K + 1,), from rows (K, D)."""
    values = np.empty(len(x) + 1)
    values[:-1] = x @ mean
    values[-1] = NONE_VALUE
    return values.round(VALUE_DECIMALS, out=values)


def best_alone(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 for the best arm, the first of equals, and 0 for the others."""
    shares = np.zeros(len(values))
    shares[values.argmax()] = 1.0
    return shares


def floored(shares: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """Give every arm `floor`, and share the rest as `shares` does; the sum stays 1."""
    n_arms = len(shares)
    floor = min(floor, 1.0 / n_arms)
    shares = (1.0 - n_arms * floor) * shares
    shares += floor
    return shares
