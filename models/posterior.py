"""What learners know, as sums: how shards of them add up, and how they travel.

Reads   statistics of learner shards.
Emits   the posterior that policies act on.
Owns    the prior, and the bytes of matrices and vectors in messages.

`decide` needs this and not the learner, whose library takes a second and a half to load.
"""

import base64
import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.arms import DESIGN

FLOAT: Final = np.dtype("<f8")  # the same bytes on every machine


class Statistics(NamedTuple):
    """What a learner has seen: precision float64 (D, D) and moment (D,), no prior; n rewards.

    The sums are as of `newest_ms`, the event time of the newest reward, by a half-life. Where
    that is 0 the sums do not age.
    """

    precision: NDArray[np.float64]
    moment: NDArray[np.float64]
    n: int
    forgotten: float = 0.0  # of the n: what is missing of the sum of their weights
    newest_ms: int = 0
    half_life_ms: int = 0


class Posterior(NamedTuple):
    """Belief about the weights: mean float64 (D,), covariance (D, D) for noise 1, n rewards.

    Rewards that are partly forgotten count in part: n is the sum of weights, to a whole number.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    n: int


def merge(shards: Sequence[Statistics], prior: float | NDArray[np.float64]) -> Posterior:
    """Return the posterior of one learner that had seen all the shards' rewards.

    Shards that forget are aligned to the newest reward of all: each one's sums age by its own
    half-life for as long as it is behind. Nothing ages by a clock, so a merge can be repeated.

    Parameters
    ----------
    shards
        At least one. Give them in a fixed order (by name): the last bits of a sum depend on it.
    prior
        Precision of the prior around zero, > 0: one number, or one for each column, (D,).

    Examples
    --------
    >>> from models.learner import RewardLearner
    >>> one, two = RewardLearner(("a",)), RewardLearner(("a",))
    >>> one.learn(np.array([1.0]), 3.0)
    >>> two.learn(np.array([1.0]), 1.0)
    >>> posterior = merge([one.statistics(), two.statistics()], prior=2.0)
    >>> posterior.mean.tolist(), posterior.covariance.tolist(), posterior.n
    ([1.0], [[0.25]], 2)
    """
    newest_ms = max(s.newest_ms for s in shards)
    shares = [_share_at(s, newest_ms) for s in shards]
    pairs = list(zip(shares, shards, strict=True))
    precision = np.sum([share * s.precision for share, s in pairs], axis=0)  # (D, D)
    moment = np.sum([share * s.moment for share, s in pairs], axis=0)  # (D,)
    n = round(sum(share * (s.n - s.forgotten) for share, s in pairs))
    precision[np.diag_indices(len(moment))] += prior
    # Bishop equations 3.50 and 3.51 with a zero prior mean.
    inverse = np.linalg.inv(precision)
    mean = np.linalg.solve(precision, moment)
    return Posterior(mean, (inverse + inverse.T) / 2, n)


def _share_at(shard: Statistics, time_ms: int) -> float:
    """Return what is left at `time_ms` of the weight that a shard's sums had at their newest."""
    if not shard.half_life_ms:
        return 1.0
    return math.exp2((shard.newest_ms - time_ms) / shard.half_life_ms)


def no_knowledge(prior: float, dim: int = len(DESIGN)) -> Posterior:
    """Return the posterior before any reward.

    >>> no_knowledge(2.0, dim=1)
    Posterior(mean=array([0.]), covariance=array([[0.5]]), n=0)
    """
    return Posterior(np.zeros(dim), np.eye(dim) / prior, 0)


def pack_lower(matrix: NDArray[np.float64]) -> str:
    """Return base64 of the lower triangle by rows, float64 little-endian, of a (D, D) matrix.

    >>> unpack_lower(pack_lower(np.array([[1.0, 2.0], [2.0, 5.0]])), 2).tolist()
    [[1.0, 2.0], [2.0, 5.0]]
    """
    return pack_vector(matrix[np.tril_indices(len(matrix))])


def unpack_lower(text: str, dim: int) -> NDArray[np.float64]:
    """Return the symmetric (dim, dim) matrix of `pack_lower`; ValueError if it is none."""
    return symmetric(unpack_vector(text, dim * (dim + 1) // 2), dim)


def pack_vector(vector: NDArray[np.float64]) -> str:
    """Return base64 of a vector, float64 little-endian."""
    return base64.b64encode(vector.astype(FLOAT).tobytes()).decode("ascii")


def unpack_vector(text: str, length: int) -> NDArray[np.float64]:
    """Return the vector of `pack_vector`; ValueError if it has another length or a NaN.

    >>> unpack_vector(pack_vector(np.array([1.0, -2.5])), 2).tolist()
    [1.0, -2.5]
    """
    raw = base64.b64decode(text, validate=True)
    if len(raw) != length * FLOAT.itemsize:
        raise ValueError(f"{len(raw)} bytes where {length} float64 are due")
    vector = np.frombuffer(raw, FLOAT).astype(np.float64)
    if not np.isfinite(vector).all():
        raise ValueError("statistics that are not finite")
    return vector


def symmetric(lower: NDArray[np.float64], dim: int) -> NDArray[np.float64]:
    """Return the (dim, dim) matrix of a lower triangle by rows."""
    out = np.zeros((dim, dim))
    rows, columns = np.tril_indices(dim)
    out[rows, columns] = lower
    out[columns, rows] = lower
    return out
