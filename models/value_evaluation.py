"""Fitted-Q evaluation: what a policy of send and hold would earn, from the log of another one.

Reads   `models.value_data.Steps`, the policy's chance of sending at each, and features of states.
Emits   the policy's value with its interval.
Owns    the estimator and its bootstrap.

With phi(s, a) = features(s) in the block of action a, one round of the fit is

    theta' = argmin sum w (phi(s, a) theta' - r - g sum_b pi(b | s') phi(s', b) theta)^2 + ridge

where w is 1, or how much likelier the policy was to send the very item that was sent. The value is
the mean over users of sum_a pi(a | s) phi(s, a) theta at their first step. With
linear features all rounds need two matrices alone, and what they settle at is the solution of
linear equations. They settle where the rounds' matrix has a spectral radius below 1; else the log
does not carry the policy. A bootstrap adds up the matrices of the users it has drawn. Users are
drawn, not steps, for a user's steps hang together; in `BLOCKS` random groups where there are more,
which the interval hardly notices.

References
----------
Le, Voloshin & Yue, "Batch Policy Learning under Constraints", ICML 2019, algorithm 3.
Hao et al., "Bootstrapping Fitted Q-Evaluation for Off-Policy Inference", ICML 2021.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.value_data import Steps

BLOCKS: Final = 200
_RIDGE: Final = 1e-6  # of the mean square of a feature: no column of zeros stops the fit


class Estimate(NamedTuple):
    """A value with its 95% interval, reward units, of one user from their first step on."""

    value: float
    low: float
    high: float


class Sums(NamedTuple):
    """What the fit needs, one for each of G groups of users; F features of state and action."""

    squares: NDArray[np.float64]  # shape (G, F, F), sum of phi phi^T
    following: NDArray[np.float64]  # shape (G, F, F), sum of g phi phi_pi(s')^T
    rewards: NDArray[np.float64]  # shape (G, F), sum of r phi
    starts: NDArray[np.float64]  # shape (G, F), sum of phi_pi at first steps
    n_users: NDArray[np.float64]  # shape (G,)


def evaluate(
    steps: Steps,
    sends: NDArray[np.float64],
    features: NDArray[np.float64],
    *,
    weights: NDArray[np.float64] | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Estimate:
    """Return what the policy earns a user, discounted, with the interval of a bootstrap over users.

    Parameters
    ----------
    steps
        The log. Only known steps are fitted.
    sends
        Shape (N,), the policy's probability of sending at each step.
    features
        Shape (N, H), of each step's state; with a constant among them.
    weights
        Shape (N,), of pushes pi(item | send, s) / b(item | send, s) for the logging policy b, of
        holds 1. None: both send the same items.
    draws
        Of the bootstrap.
    seed
        Of groups and draws.

    Raises
    ------
    ValueError
        If no step is known, or the fit does not settle: the log does not carry the policy.

    Notes
    -----
    Time: N (2 H)^2, and a draw (2 H)^3. Memory: 2 `BLOCKS` (2 H)^2 float64, 14 MB at H = 33.
    """
    if not steps.is_known.any():
        raise ValueError("no decision is old enough to know what came of it")
    rng = np.random.default_rng(seed)
    weights = np.ones(len(steps.users)) if weights is None else weights
    sums = _sums(steps, sends, features, weights, rng)
    n_groups = len(sums.n_users)
    once = np.ones(n_groups)
    squares, following, _ = _totals(sums, once)
    radius = float(np.abs(np.linalg.eigvals(np.linalg.solve(squares, following))).max())
    if not radius < 1:
        raise ValueError(
            f"the fit does not settle ({radius:.3f}): the log does not carry the policy"
        )
    value = _value(sums, once)
    times = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), draws).astype(np.float64)
    drawn = np.array([_value(sums, own) for own in times])
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def _sums(
    steps: Steps,
    sends: NDArray[np.float64],
    features: NDArray[np.float64],
    weights: NDArray[np.float64],
    rng: np.random.Generator,
) -> Sums:
    users, group_of_step = np.unique(steps.users, return_inverse=True)
    n_groups = min(len(users), BLOCKS)
    group_of_user = rng.permutation(np.arange(len(users)) % n_groups)
    group = group_of_user[group_of_step]
    is_sent = (steps.actions == 1)[:, None]
    taken = np.hstack([features * ~is_sent, features * is_sent])  # (N, F)
    expected = np.hstack([features * (1 - sends)[:, None], features * sends[:, None]])  # (N, F)
    is_first = np.ones(len(steps.users), np.bool_)
    is_first[1:] = steps.users[1:] != steps.users[:-1]
    width = taken.shape[1]
    squares, following = np.zeros((2, n_groups, width, width))
    rewards, starts = np.zeros((2, n_groups, width))
    for g in range(n_groups):
        rows = np.flatnonzero((group == g) & steps.is_known)
        own = taken[rows] * weights[rows, None]
        squares[g] = own.T @ taken[rows]
        following[g] = own.T @ (steps.discounts[rows, None] * expected[steps.nexts[rows]])
        rewards[g] = own.T @ steps.rewards[rows]
        starts[g] = expected[(group == g) & is_first].sum(axis=0)
    return Sums(squares, following, rewards, starts, np.bincount(group_of_user).astype(np.float64))


def _totals(
    sums: Sums, times: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return squares and following, (F, F), and rewards, (F,), group g counted times[g] times."""
    squares = np.tensordot(times, sums.squares, 1)  # (F, F)
    squares[np.diag_indices(len(squares))] += _RIDGE * max(float(np.trace(squares)), 1.0)
    return squares, np.tensordot(times, sums.following, 1), times @ sums.rewards


def _value(sums: Sums, times: NDArray[np.float64]) -> float:
    squares, following, rewards = _totals(sums, times)
    theta = np.linalg.solve(squares - following, rewards)
    return float((times @ sums.starts) @ theta / (times @ sums.n_users))
