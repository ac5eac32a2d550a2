"""The policy in use: every learner shard's statistics, merged, read as a global table.

Reads   `push.policy.v1`, one row a learner shard.
Emits   the policy for an experiment arm, with its version.
Owns    when the merge is made anew: once between batches, and only if a row has changed.

Statistics of another feature spec or policy are left out and counted: a release that changes the
columns starts from what it learns itself, and the old shards stay unread.
"""

from typing import Final

import numpy as np

from models.arms import DESIGN, policy_spec_hash
from models.policy import Policy, SquareCB, Uniform, policy_version
from models.posterior import Statistics, merge, no_knowledge, unpack_lower, unpack_vector
from operators import metrics
from operators.messages import PolicyShard

RANDOM_ARM: Final = "random"  # experiment arm served by the uniform policy


class PolicyTable:
    """Learner shards by name, and the policy that they add up to.

    Parameters
    ----------
    gamma, floor
        Of `models.policy.SquareCB`.
    prior_precision
        Precision of the prior around zero, > 0.

    Notes
    -----
    Memory: 2 D^2 float64 a shard, 54 KB at D = 58, for as many shards as `learn` has partitions.
    A merge takes about 0.5 ms; nothing is merged while nothing changes.

    Examples
    --------
    >>> table = PolicyTable(gamma=60.0, floor=0.002, prior_precision=1.0)
    >>> table.version.startswith("0-"), table.policy("random").policy_id
    (True, 'uniform')
    """

    def __init__(self, *, gamma: float, floor: float, prior_precision: float) -> None:
        self._gamma, self._floor, self._prior = gamma, floor, prior_precision
        self._spec = policy_spec_hash()
        self._shards: dict[str, tuple[Statistics, int]] = {}
        self._uniform = Uniform()
        self._is_stale = False
        self.newest_ms = 0  # event time of the newest reward learned
        self._merge()

    def apply(self, shard: str, row: PolicyShard | None) -> None:
        """Take a shard's newest statistics; None takes the shard out."""
        if row is None:
            self._is_stale = self._shards.pop(shard, None) is not None or self._is_stale
            return
        if row.feature_spec != self._spec or row.dim != len(DESIGN):
            metrics.FALLBACKS.labels("policy_spec").inc()
            return
        try:
            precision = unpack_lower(row.precision, row.dim)
            moment = unpack_vector(row.moment, row.dim)
        except ValueError:
            metrics.FALLBACKS.labels("policy_bytes").inc()
            return
        self._shards[shard] = (Statistics(precision, moment, row.n_rewards), row.time_ms)
        self._is_stale = True

    def refresh(self) -> bool:
        """Merge what has changed; called between batches, so that a batch has one policy.

        Returns whether anything had.
        """
        is_stale = self._is_stale
        if is_stale:
            self._merge()
        return is_stale

    def _merge(self) -> None:
        self._is_stale = False
        rows = [self._shards[shard] for shard in sorted(self._shards)]
        self.newest_ms = max((time_ms for _, time_ms in rows), default=0)
        try:
            posterior = (
                merge([statistics for statistics, _ in rows], self._prior)
                if rows
                else no_knowledge(self._prior)
            )
        except np.linalg.LinAlgError:
            metrics.FALLBACKS.labels("policy_merge").inc()
            return  # the policy before stays in use
        self.mean = posterior.mean
        self.n_rewards = posterior.n
        self.version = policy_version(posterior)
        self._learned = SquareCB(posterior, gamma=self._gamma, floor=self._floor)

    def policy(self, arm: str) -> Policy:
        """Return the policy that serves an experiment arm."""
        return self._uniform if arm == RANDOM_ARM else self._learned
