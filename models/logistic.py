"""The logistic reward learner: online Laplace, its natural parameters open for merging.

Reads   rows of `models.arms.design` and rewards.
Owns    how a reward becomes a step of Newton's method, and when the curvature is taken anew.

A reward r counts as y = (r - low) / (high - low): 0 for a push that nobody answered, 1 for an
opened one. Its expectation is modelled as sigmoid(x w). Around the mean m that the learner has,
with p = sigmoid(x m) and c = p (1 - p), the log-likelihood of one reward is to second order that
of a Gaussian, and adds to the natural parameters

    precision += c x x^T        moment += (c x m + y - p) x

They have the form of the linear learner's sums, merge by the same `models.posterior.merge`, and
travel in the same rows.

What is approximate: each term was taken around the mean of its time and of its shard, and is not
taken again when the mean moves. N shards know nearly, not exactly, what one learner of all would:
the early terms of each are taken around less knowledge. The covariance is that of the Laplace
approximation. What is exact: adding the terms up, forgetting, and corrections, for y enters the
terms linearly.

y is not cut to [0, 1]. An opt-out is worth several opened pushes less, and the score (y - p) x is
the right one for any reward whose expectation the sigmoid can reach (quasi-likelihood).
"""

import math
import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.arms import DESIGN, policy_spec_hash
from models.learner import SnapshotError
from models.log_odds import Scale
from models.posterior import FLOAT, Statistics, symmetric

FORMAT: Final = 0x10  # apart from the linear learner's
# format, dim, spec hash, rewards, version, half-life ms, newest ms, sum of weights, since refresh
_HEADER = struct.Struct("<BI16sQQQQdQ")
# Where p is near 0 or 1 a surprise has no curvature to hold it: the step would fly off.
_LEAST_CURVATURE: Final = 0.02
# The mean is taken anew each time the rewards have grown by this share: solving costs D^3.
_REFRESH_SHARE: Final = 1 / 32
_REFRESH_AT_MOST: Final = 32  # rewards between two refreshes, however many there were

Floats = NDArray[np.float64]


class LogisticLearner:
    """One shard's logistic learner, used as `models.learner.RewardLearner` is.

    Parameters
    ----------
    names, spec_hash
        As for `models.learner.RewardLearner`.
    scale
        Of rewards.
    prior
        Precision of the prior around zero by which terms are taken, > 0: that of `merge`.
    half_life_ms
        As for `models.learner.RewardLearner`; 0: nothing is forgotten.

    Notes
    -----
    `learn` is O(D^2), and O(D^3) at every refresh: 20 us in the mean at D = 58. Memory: as the
    linear learner's.

    Examples
    --------
    >>> learner = LogisticLearner(("bias",), spec_hash="doc")
    >>> for reward in [1.0, 0.0, 0.0, 0.0] * 100:
    ...     learner.learn(np.array([1.0]), reward)
    >>> round(1 / (1 + math.exp(-float(learner.mean[0]))), 2)
    0.25
    >>> again = LogisticLearner.restore(learner.snapshot(), ("bias",), spec_hash="doc")
    >>> again.snapshot() == learner.snapshot()
    True
    """

    def __init__(
        self,
        names: Sequence[str] = DESIGN,
        *,
        spec_hash: str | None = None,
        scale: Scale = Scale(),  # noqa: B008 - immutable
        prior: float = 1.0,
        half_life_ms: int = 0,
    ) -> None:
        if scale.low >= scale.high or prior <= 0 or half_life_ms < 0:
            raise ValueError(f"low < high, prior > 0, half-life >= 0: {scale}, {prior}")
        self._spec_hash = policy_spec_hash() if spec_hash is None else spec_hash
        self.dim = len(names)
        self._scale, self._prior, self._half_life_ms = scale, prior, half_life_ms
        self._precision: Floats = np.zeros((self.dim, self.dim))
        self._moment: Floats = np.zeros(self.dim)
        self.mean: Floats = np.zeros(self.dim)  # around which terms are taken
        self._since = 0  # rewards since it was taken anew
        self.n_rewards = self.version = 0
        self._weight = 0.0  # of the rewards, as of the newest
        self._newest_ms = 0

    @property
    def precision(self) -> NDArray[np.float64]:
        """Sum of the terms' precisions, without a prior, shape (D, D); a copy."""
        return self._precision.copy()

    @property
    def moment(self) -> NDArray[np.float64]:
        """Sum of the terms' moments, shape (D,); a copy."""
        return self._moment.copy()

    @property
    def weight(self) -> float:
        """Sum of the weights as of the newest reward: how many rewards the sums count for."""
        return self._weight

    def predict(self, x: NDArray[np.float64]) -> float:
        """Return the reward that is expected for the row `x`, shape (D,)."""
        logit = min(max(float(x @ self.mean), -30.0), 30.0)
        low, high = self._scale
        return low + (high - low) / (1.0 + math.exp(-logit))

    def learn(self, x: NDArray[np.float64], reward: float, time_ms: int = 0) -> None:
        """Learn one reward for the row `x`, shape (D,), as of its event time.

        Raises
        ------
        ValueError
            If the row has another length, or row or reward are not finite.
        """
        weight = self._weight_of(time_ms)
        y = self._scale.share(self._checked(x, reward))
        logit = float(x @ self.mean)
        p = 1.0 / (1.0 + math.exp(-min(max(logit, -30.0), 30.0)))
        curvature = max(p * (1.0 - p), _LEAST_CURVATURE)
        self._precision += np.outer(weight * curvature * x, x)
        self._moment += weight * (curvature * logit + y - p) * x
        self._weight += weight
        self.n_rewards += 1
        self.version += 1
        self._since += 1
        if self._since >= min(1 + self.n_rewards * _REFRESH_SHARE, _REFRESH_AT_MOST):
            self._refresh()

    def correct(self, x: NDArray[np.float64], delta: float, time_ms: int = 0) -> None:
        """Make it as if the reward of `x`, learned before, had been larger by `delta`."""
        change = self._checked(x, delta) / (self._scale.high - self._scale.low)
        self._moment += self._weight_of(time_ms) * change * x
        self.version += 1

    def discount(self, share: float) -> None:
        """See `models.learner.RewardLearner.discount`."""
        if not 0 < share <= 1:
            raise ValueError(f"a share must be above 0 and at most 1, got {share}")
        self._age(share)
        self._refresh()
        self.version += 1

    def statistics(self) -> Statistics:
        """Return the natural parameters as of the newest reward, as copies."""
        return Statistics(
            self.precision,
            self.moment,
            self.n_rewards,
            forgotten=self.n_rewards - self._weight,
            newest_ms=self._newest_ms if self._half_life_ms else 0,
            half_life_ms=self._half_life_ms,
        )

    def snapshot(self) -> bytes:
        """Return the state as bytes: 14.7 KB at D = 58."""
        header = _HEADER.pack(
            FORMAT,
            self.dim,
            self._spec_hash.encode(),
            self.n_rewards,
            self.version,
            self._half_life_ms,
            self._newest_ms,
            self._weight,
            self._since,
        )
        lower: Floats = self._precision[np.tril_indices(self.dim)]
        sums = np.concatenate([lower, self._moment, self.mean])
        return header + sums.astype(FLOAT).tobytes()

    @classmethod
    def restore(
        cls,
        state: bytes,
        names: Sequence[str] = DESIGN,
        *,
        spec_hash: str | None = None,
        scale: Scale = Scale(),  # noqa: B008
        prior: float = 1.0,
        half_life_ms: int = 0,
    ) -> "LogisticLearner":
        """Return a learner that goes on, to the last bit, where `snapshot` was taken.

        Another half-life than the snapshot's holds from its newest reward on.

        Raises
        ------
        SnapshotError
            If the snapshot is of another format or of other columns.
        """
        learner = cls(
            names, spec_hash=spec_hash, scale=scale, prior=prior, half_life_ms=half_life_ms
        )
        version, dim, spec, *counts = _HEADER.unpack_from(state)
        if version != FORMAT:
            raise SnapshotError(f"logistic snapshot of format {version}, this is {FORMAT}")
        if dim != learner.dim or spec.rstrip(b"\0") != learner._spec_hash.encode():
            raise SnapshotError(f"logistic snapshot of feature spec {spec.decode()!r}")
        learner.n_rewards, learner.version, _, learner._newest_ms = counts[:4]
        learner._weight, learner._since = counts[4:]
        sums = np.frombuffer(state, FLOAT, offset=_HEADER.size).astype(np.float64)
        learner._precision = symmetric(sums[: -2 * dim], dim)
        learner._moment, learner.mean = sums[-2 * dim : -dim].copy(), sums[-dim:].copy()
        return learner

    def _weight_of(self, time_ms: int) -> float:
        """Return what a reward of a moment counts; a newer one first ages those before it."""
        if not self._half_life_ms:
            return 1.0
        if time_ms > self._newest_ms > 0:
            self._age(2.0 ** ((self._newest_ms - time_ms) / self._half_life_ms))
        self._newest_ms = max(self._newest_ms, time_ms)
        return float(2.0 ** ((time_ms - self._newest_ms) / self._half_life_ms))

    def _age(self, share: float) -> None:
        self._precision *= share
        self._moment *= share
        self._weight *= share

    def _refresh(self) -> None:
        self._since = 0
        precision: Floats = self._precision + self._prior * np.eye(self.dim)
        self.mean = np.asarray(np.linalg.solve(precision, self._moment), np.float64)

    def _checked(self, x: NDArray[np.float64], y: float) -> float:
        if x.shape != (self.dim,) or not (math.isfinite(x.dot(x)) and math.isfinite(y)):
            raise ValueError(f"not a finite row of {self.dim} columns and a reward: {x}, {y}")
        return y
