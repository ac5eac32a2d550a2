"""The reward learner: River's Bayesian linear regression, its sums open for merging.

Reads   rows of `models.arms.design` and rewards.
Owns    sufficient statistics: their form, their bytes, and how shards of them add up.

A linear model's knowledge is two sums over what was learned: `precision`, sum(x x^T), and
`moment`, sum(x y). Sums from shards add, so N learners that share the rewards among them know
exactly what one learner of all would: `merge` gives its posterior. The prior is added in `merge`
and travels with no shard.

With a half-life h, a reward of time t counts 2^((t - r) / h) times in the sums, by a reference r
that is one for all of a shard. The weight follows from the reward's own time, so the order of
arrival changes nothing, and sums of two shards are brought to one reference by one factor each.
As r stays behind, new weights grow; before they are large the sums are scaled and r moves on.

Noise is taken as 1: a reward's real variance only rescales the prior and the covariance.
"""

import math
import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from river.linear_model import BayesianLinearRegression
from river.utils.math import sherman_morrison

from models.arms import DESIGN, policy_spec_hash
from models.posterior import FLOAT, Statistics, symmetric

# A learner that never weighed a reward writes format 1, as releases without forgetting did.
_PLAIN, _WEIGHED = FORMATS = (1, 2)
_HEADER = struct.Struct("<BI16sQQ")  # format, dim, spec hash, rewards, version
_WEIGHTS = struct.Struct("<QQQd")  # half-life, reference, newest, all ms; sum of weights
# Half-lives that the reference trails the newest reward: weights stay below 2^10, so that the sums
# and River's prior of 1 lose no more than 3 of their 15 digits to each other.
_MAX_AHEAD: Final = 10.0


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
    half_life_ms
        A reward counts half as much as one that is so much newer, event time; 0: all alike.

    Notes
    -----
    `learn` is O(D^2) (`python -m bench.bandit`).
    Memory: 2 D^2 float64, 54 KB at D = 58, whatever the number of rewards.

    River adds to `_ss_arr` (precision, with River's prior of 1 on the diagonal) and `_eta_arr`
    (moment) alone, with no decay, so both stay exact sums; they are read here in place. A weight w
    is learned as the row and the reward times sqrt(w). River's own `smoothing` decays by count and
    inverts a matrix a reward.

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

    def __init__(
        self,
        names: Sequence[str] = DESIGN,
        *,
        spec_hash: str | None = None,
        half_life_ms: int = 0,
    ) -> None:
        if half_life_ms < 0:
            raise ValueError(f"a half-life must be >= 0, got {half_life_ms} ms")
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
        self._half_life_ms = half_life_ms
        self._reference_ms = 0  # 0: no reward was weighed by its time
        self._newest_ms = 0
        self._weight = 0.0  # sum of the weights

    @property
    def model(self) -> BayesianLinearRegression:
        """River's model itself, for its `predict_one` and whatever River offers with it."""
        return self._model

    @property
    def moment(self) -> NDArray[np.float64]:
        """Sum of x y as of the newest reward, shape (D,); a copy."""
        moment: NDArray[np.float64] = self._model._eta_arr[: self.dim] * self._share()
        return moment

    @property
    def precision(self) -> NDArray[np.float64]:
        """Sum of x x^T as of the newest reward, without any prior, shape (D, D); a copy."""
        precision: NDArray[np.float64] = self._raw_precision() - np.eye(self.dim)
        precision *= self._share()
        return precision

    @property
    def weight(self) -> float:
        """Sum of the weights as of the newest reward: how many rewards the sums count for."""
        return self._weight * self._share()

    def predict(self, x: NDArray[np.float64]) -> float:
        """Return the reward that is expected for the row `x`, shape (D,), with a prior of 1."""
        self._model._ensure_m()
        return float(x @ self._model._m_arr[: self.dim])

    def learn(self, x: NDArray[np.float64], reward: float, time_ms: int = 0) -> None:
        """Learn one reward for the row `x`, shape (D,).

        `time_ms` is the event time that weighs it; nothing, where there is no half-life.

        Raises
        ------
        ValueError
            If the row has another length, or row or reward are not finite: one such reward
            would spoil the sums for good.
        """
        x = self._checked(x, reward)
        if self._half_life_ms:
            weight = self._weight_of(time_ms)
            root = math.sqrt(weight)
            x, reward = x * root, reward * root
        else:
            weight = 1.0
        self._add(x, reward)
        self._weight += weight
        self.n_rewards += 1
        self.version += 1

    def _add(self, x: NDArray[np.float64], reward: float) -> None:
        """Do what River's `learn_one` does, to the bit, without a dict of names for each row."""
        model, row = self._model, np.asarray(x, np.float64)
        if model._cap > self.dim:  # River keeps 8 rows at least
            row = np.zeros(model._cap)
            row[: self.dim] = x
        model._ss_arr += row[:, None] * row
        sherman_morrison(A=model._ss_inv_arr, u=row, v=row)
        model._eta_arr += row * reward
        model._m_dirty = True

    def correct(self, x: NDArray[np.float64], delta: float, time_ms: int = 0) -> None:
        """Make it as if the reward of `x`, learned before, had been larger by `delta`.

        `time_ms` is the one that the reward was learned with.
        """
        x = self._checked(x, delta)
        if self._half_life_ms:
            delta *= self._weight_of(time_ms)
        self._model._eta_arr[: self.dim] += x * delta
        self._model._m_dirty = True
        self.version += 1

    def discount(self, share: float) -> None:
        """Let all that was learned count `share` of what it does, 0 < share <= 1.

        It is as if the rewards so far had come log2(1 / share) half-lives earlier.
        """
        if not 0 < share <= 1:
            raise ValueError(f"a share must be above 0 and at most 1, got {share}")
        self._scale(share)
        self.version += 1

    def statistics(self) -> Statistics:
        """Return the sums as of the newest reward, as copies."""
        is_timed = self._reference_ms > 0
        return Statistics(
            self.precision,
            self.moment,
            self.n_rewards,
            forgotten=self.n_rewards - self.weight,
            newest_ms=self._newest_ms if is_timed else 0,
            half_life_ms=self._half_life_ms if is_timed else 0,
        )

    def snapshot(self) -> bytes:
        """Return the state as bytes: 14.2 KB at D = 58."""
        is_plain = not self._reference_ms and self._weight == self.n_rewards
        header = _HEADER.pack(
            _PLAIN if is_plain else _WEIGHED,
            self.dim,
            self._spec_hash.encode(),
            self.n_rewards,
            self.version,
        )
        if not is_plain:
            header += _WEIGHTS.pack(
                self._half_life_ms, self._reference_ms, self._newest_ms, self._weight
            )
        lower = self._raw_precision()[np.tril_indices(self.dim)]
        moment = self._model._eta_arr[: self.dim]
        return header + np.concatenate([lower, moment]).astype(FLOAT).tobytes()

    @classmethod
    def restore(
        cls,
        state: bytes,
        names: Sequence[str] = DESIGN,
        *,
        spec_hash: str | None = None,
        half_life_ms: int = 0,
    ) -> "RewardLearner":
        """Return a learner that goes on where `snapshot` was taken.

        The sums are the same bits. River's covariance, which nothing here publishes, is
        inverted afresh and so rid of the rounding its running updates had gathered.

        Another half-life than the snapshot's holds from its newest reward on. Sums that were not
        weighed by time count as of the first reward that is.
        """
        learner = cls(names, spec_hash=spec_hash, half_life_ms=half_life_ms)
        version, dim, spec, n_rewards, n_updates = _HEADER.unpack_from(state)
        if version not in FORMATS:
            raise SnapshotError(f"learner snapshot of format {version}, this is {_WEIGHED}")
        if dim != learner.dim or spec != _HEADER.unpack(_padded(learner._spec_hash))[2]:
            raise SnapshotError(f"learner snapshot of feature spec {spec.decode()!r}")
        start = _HEADER.size + (_WEIGHTS.size if version == _WEIGHED else 0)
        sums = np.frombuffer(state, FLOAT, offset=start).astype(np.float64)
        learner._take(symmetric(sums[:-dim], dim), sums[-dim:])
        learner.n_rewards, learner.version = n_rewards, n_updates
        learner._weight = float(n_rewards)
        if version == _WEIGHED:
            learner._weigh_as_before(*_WEIGHTS.unpack_from(state, _HEADER.size))
        return learner

    def _weigh_as_before(
        self, half_life_ms: int, reference_ms: int, newest_ms: int, weight: float
    ) -> None:
        wanted_ms, self._half_life_ms = self._half_life_ms, half_life_ms
        self._reference_ms, self._newest_ms, self._weight = reference_ms, newest_ms, weight
        if wanted_ms != half_life_ms and reference_ms:
            self._move_reference()
        self._half_life_ms = wanted_ms
        if not wanted_ms:
            self._reference_ms = 0

    def _weight_of(self, time_ms: int) -> float:
        """Return what a reward of `time_ms` counts by the reference, which may move on."""
        if not self._reference_ms:
            self._reference_ms = self._newest_ms = time_ms
        self._newest_ms = max(self._newest_ms, time_ms)
        ahead = (time_ms - self._reference_ms) / self._half_life_ms
        if ahead > _MAX_AHEAD:
            self._move_reference()
            ahead = 0.0
        return math.exp2(ahead)

    def _share(self) -> float:
        """Return what a weight of 1 by the reference is as of the newest reward."""
        if not self._reference_ms:
            return 1.0
        behind = (self._newest_ms - self._reference_ms) / self._half_life_ms
        return math.exp2(-behind)

    def _move_reference(self) -> None:
        """Move the reference to the newest reward."""
        self._scale(self._share())
        self._reference_ms = self._newest_ms

    def _scale(self, factor: float) -> None:
        """Multiply the sums by a factor; River's prior stays."""
        moment = self._model._eta_arr[: self.dim] * factor
        self._take((self._raw_precision() - np.eye(self.dim)) * factor + np.eye(self.dim), moment)
        self._weight *= factor

    def _take(self, precision: NDArray[np.float64], moment: NDArray[np.float64]) -> None:
        """Set River's sums, (D, D) with its prior and (D,), and what it derives from them."""
        dim, model = self.dim, self._model
        model._ss_arr[:dim, :dim] = precision
        model._ss_inv_arr[:dim, :dim] = np.linalg.inv(precision)
        model._eta_arr[:dim] = moment
        model._m_dirty = True

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
