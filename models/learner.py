"""The reward learner: River's Bayesian linear regression, its sums open for merging.

Reads   rows of `models.arms.design` and rewards.
Owns    sufficient statistics: their form, their bytes, and how shards of them add up.

A linear model's knowledge is two sums over what was learned: `precision`, sum(x x^T), and
`moment`, sum(x y). Sums from shards add, so N learners that share the rewards among them know
exactly what one learner of all would: `merge` gives its posterior. The prior is added in `merge`
and travels with no shard.

Noise is taken as 1: a reward's real variance only rescales the prior and the covariance.
"""

import math
import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from river.linear_model import BayesianLinearRegression

from models.arms import DESIGN, policy_spec_hash
from models.posterior import FLOAT, Statistics, symmetric

_VERSION: Final = 1
_HEADER = struct.Struct("<BI16sQQ")  # format, dim, spec hash, rewards, version


class SnapshotError(ValueError):
    """A snapshot of another format or feature spec."""


class RewardLearner:
    """One shard's learner, updated by every reward as it comes.

    Parameters
    ----------
    names
        Column names, D of them; River keeps them as its features' names.
    spec_hash
        Of the columns; `restore` refuses a snapshot with another one.

    Notes
    -----
    `learn` is O(D^2) and 14 us at D = 47, nearly all of it River's (`python -m bench.bandit`).
    Memory: 2 D^2 float64, 54 KB at D = 58, whatever the number of rewards.

    River adds to `_ss_arr` (precision, with River's prior of 1 on the diagonal) and `_eta_arr`
    (moment) alone, with no decay, so both stay exact sums; they are read here in place.

    Examples
    --------
    >>> learner = RewardLearner(names=("a", "b"))
    >>> learner.learn(np.array([1.0, 0.0]), 1.0)
    >>> learner.learn(np.array([1.0, 2.0]), -1.0)
    >>> learner.moment.tolist(), learner.n_rewards
    ([0.0, -2.0], 2)
    >>> learner.correct(np.array([1.0, 2.0]), 2.0)  # the -1 should have been 1
    >>> learner.moment.tolist(), learner.n_rewards, learner.version
    ([2.0, 2.0], 2, 3)
    >>> again = RewardLearner.restore(learner.snapshot(), names=("a", "b"))
    >>> again.snapshot() == learner.snapshot()
    True
    """

    def __init__(self, names: Sequence[str] = DESIGN, *, spec_hash: str | None = None) -> None:
        self._names = tuple(names)
        self._spec_hash = policy_spec_hash() if spec_hash is None else spec_hash
        self.dim = len(self._names)
        # alpha = 1: River 0.26 puts 1 / alpha on the diagonal of both the precision and its
        # inverse, which is consistent at 1 only. Our own prior comes in `merge`.
        self._model = BayesianLinearRegression(alpha=1, beta=1)
        # All names at once: River then sizes its arrays to D and never doubles them.
        self._model.learn_one(dict.fromkeys(self._names, 0.0), 0.0)
        self.n_rewards = 0
        self.version = 0  # rewards and corrections

    @property
    def model(self) -> BayesianLinearRegression:
        """River's model itself, for its `predict_one` and whatever River offers with it."""
        return self._model

    @property
    def moment(self) -> NDArray[np.float64]:
        """Sum of x y, shape (D,); a copy."""
        moment: NDArray[np.float64] = self._model._eta_arr[: self.dim].copy()
        return moment

    @property
    def precision(self) -> NDArray[np.float64]:
        """Sum of x x^T without any prior, shape (D, D); a copy."""
        return self._raw_precision() - np.eye(self.dim)

    def learn(self, x: NDArray[np.float64], reward: float) -> None:
        """Learn one reward for the row `x`, shape (D,).

        Raises
        ------
        ValueError
            If the row has another length, or row or reward are not finite: one such reward
            would spoil the sums for good.
        """
        values = self._checked(x, reward).tolist()
        # River takes absent columns as 0, and its loops cost by column: zeros are left out.
        row = {name: v for name, v in zip(self._names, values, strict=True) if v}
        self._model.learn_one(row, reward)
        self.n_rewards += 1
        self.version += 1

    def correct(self, x: NDArray[np.float64], delta: float) -> None:
        """Make it as if the reward of `x`, learned before, had been larger by `delta`."""
        self._model._eta_arr[: self.dim] += self._checked(x, delta) * delta
        self._model._m_dirty = True
        self.version += 1

    def statistics(self) -> Statistics:
        """Return the sums so far, as copies."""
        return Statistics(self.precision, self.moment, self.n_rewards)

    def snapshot(self) -> bytes:
        """Return the state as bytes: 14.2 KB at D = 58."""
        header = _HEADER.pack(
            _VERSION, self.dim, self._spec_hash.encode(), self.n_rewards, self.version
        )
        lower = self._raw_precision()[np.tril_indices(self.dim)]
        return header + np.concatenate([lower, self.moment]).astype(FLOAT).tobytes()

    @classmethod
    def restore(
        cls, state: bytes, names: Sequence[str] = DESIGN, *, spec_hash: str | None = None
    ) -> "RewardLearner":
        """Return a learner that goes on where `snapshot` was taken.

        The sums are the same bits. River's covariance, which nothing here publishes, is
        inverted afresh and so rid of the rounding its running updates had gathered.
        """
        learner = cls(names, spec_hash=spec_hash)
        version, dim, spec, n_rewards, n_updates = _HEADER.unpack_from(state)
        if version != _VERSION:
            raise SnapshotError(f"learner snapshot of format {version}, this is {_VERSION}")
        if dim != learner.dim or spec != _HEADER.unpack(_padded(learner._spec_hash))[2]:
            raise SnapshotError(f"learner snapshot of feature spec {spec.decode()!r}")
        sums = np.frombuffer(state, FLOAT, offset=_HEADER.size).astype(np.float64)
        precision = symmetric(sums[:-dim], dim)
        model = learner._model
        model._ss_arr[:dim, :dim] = precision
        model._ss_inv_arr[:dim, :dim] = np.linalg.inv(precision)
        model._eta_arr[:dim] = sums[-dim:]
        model._m_dirty = True
        learner.n_rewards, learner.version = n_rewards, n_updates
        return learner

    def _raw_precision(self) -> NDArray[np.float64]:
        # River keeps at least 8 rows: those beyond D are never touched.
        raw: NDArray[np.float64] = self._model._ss_arr[: self.dim, : self.dim]
        return raw

    def _checked(self, x: NDArray[np.float64], y: float) -> NDArray[np.float64]:
        # One dot product asks all entries at once: it is finite only if each of them is.
        if x.shape != (self.dim,) or not (math.isfinite(x.dot(x)) and math.isfinite(y)):
            raise ValueError(f"not a finite row of {self.dim} columns and a reward: {x}, {y}")
        return x


def _padded(spec_hash: str) -> bytes:
    return _HEADER.pack(0, 0, spec_hash.encode(), 0, 0)
