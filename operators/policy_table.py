"""The policy in use: every learner shard's statistics, merged, read as a global table.

Reads   `push.policy.v1`, one row a learner shard.
Emits   the policy for an experiment arm, with its version.
Owns    when the merge is made anew: once between batches, and only if a row has changed.

Statistics of another feature spec or learner are left out and counted: a release that changes the
columns starts from what it learns itself, and the old shards stay unread.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.arms import design_names, policy_spec_hash
from models.log_odds import Scale
from models.policies import KINDS, LOGISTIC, NEURAL, make
from models.policy import NONE_VALUE, VALUE_DECIMALS, AuditedPolicy, Uniform, policy_version
from models.posterior import (
    Posterior,
    Statistics,
    merge,
    no_knowledge,
    unpack_lower,
    unpack_vector,
)
from models.value import ValueFunction
from operators import metrics
from operators.hops import arm_of
from operators.messages import PolicyShard

_SCALE: Final = Scale()
_MAIN_ARM: Final = "policy"  # `operators.campaigns.POLICY`: of users in no named arm
_ANY_ARM: Final = ""  # what learned from the pushes of every arm
_NOT_OF_REWARDS: Final = ("uniform", "popularity")  # policies whose values are none
RANDOM_ARM: Final = "random"  # experiment arm served by the uniform policy


class PolicyError(ValueError):
    """Policies that cannot be had beside each other."""


class Known(NamedTuple):
    """What is known of the rewards of an arm's pushes, and the policies that go by it."""

    posterior: Posterior
    learned: dict[str, int]  # learner shard -> `PolicyShard.version`
    version: str
    policy: AuditedPolicy
    apprentice: AuditedPolicy | None
    others: dict[str, AuditedPolicy]  # by name, those that arms have asked for so far


class PolicyTable:
    """Learner shards by name, and the policy that they add up to.

    Parameters
    ----------
    prior_precision
        Precision of the prior around zero, > 0.
    policy
        One of `models.policies.KINDS`.
    apprentice
        Another of the same learner, that says what it would do; "": none.
    separate_arms
        Whether an arm goes by what was learned from its own pushes alone, beside what was learned
        before arms were kept apart. Else every arm goes by all there is.
    value
        What holding is worth; its version becomes part of the policy's. None: "none" is worth 0.
    scale
        Of rewards, where the policy's values are log-odds.
    settings
        Of `models.policies.PolicySettings`.

    Raises
    ------
    PolicyError
        If policy and apprentice need different learners.

    Notes
    -----
    Memory: 2 D^2 float64 a shard, 54 KB at D = 58, for as many shards as `learn` has partitions.
    A merge takes about 0.5 ms; nothing is merged while nothing changes.

    Examples
    --------
    >>> table = PolicyTable(prior_precision=1.0, gamma=60.0, floor=0.002)
    >>> table.version.startswith("0-"), table.policy("random").policy_id
    (True, 'uniform')
    """

    def __init__(
        self,
        *,
        prior_precision: float,
        policy: str = "squarecb",
        apprentice: str = "",
        separate_arms: bool = False,
        value: ValueFunction | None = None,
        scale: Scale = _SCALE,
        **settings: float,
    ) -> None:
        self._value, self._scale = value, scale
        self._prior, self._name, self._settings = prior_precision, policy, settings
        self._learner = KINDS[policy].learner
        if apprentice and KINDS[apprentice].learner != self._learner:
            learner = KINDS[apprentice].learner
            raise PolicyError(
                f"an apprentice {apprentice} goes by the {learner} learner, a policy {policy} by "
                f"the {self._learner} one: they cannot be had beside each other"
            )
        self._apprentice, self._separate_arms = apprentice, separate_arms
        self._known: dict[str, Known] = {}
        is_neural = self._learner == NEURAL
        self.spec = policy_spec_hash(is_neural=is_neural)  # of the columns it takes
        self.columns = design_names(is_neural=is_neural)
        self._shards: dict[str, tuple[Statistics, PolicyShard]] = {}
        self._uniform = Uniform()
        self._is_stale = False
        self.newest_ms = 0  # event time of the newest reward learned
        self._merge()

    def apply(self, shard: str, row: PolicyShard | None) -> None:
        """Take a shard's newest statistics; None takes the shard out."""
        if row is None:
            self._is_stale = self._shards.pop(shard, None) is not None or self._is_stale
            return
        if row.policy_id != self._learner:
            metrics.FALLBACKS.labels("policy_learner").inc()
            return
        if row.feature_spec != self.spec or row.dim != len(self.columns):
            metrics.FALLBACKS.labels("policy_spec").inc()
            return
        try:
            precision = unpack_lower(row.precision, row.dim)
            moment = unpack_vector(row.moment, row.dim)
        except ValueError:
            metrics.FALLBACKS.labels("policy_bytes").inc()
            return
        weights = (row.forgotten, row.newest_ms, row.half_life_ms)
        statistics = Statistics(precision, moment, row.n_rewards, *weights)
        self._shards[shard] = (statistics, row)
        self._is_stale = True

    def refresh(self) -> bool:
        """Merge what has changed; called between batches, so that a batch has one policy.

        Returns whether anything had.
        """
        is_stale = self._is_stale
        if is_stale:
            self._merge()
        return is_stale

    @property
    def is_in_rewards(self) -> bool:
        """Whether `mean` is in reward units a unit of a column; in log-odds otherwise."""
        return self._learner != LOGISTIC

    def _merge(self) -> None:
        self._is_stale = False
        self.newest_ms = max((row.time_ms for _, row in self._shards.values()), default=0)
        arms = {arm_of(shard) for shard in self._shards} if self._separate_arms else set()
        known: dict[str, Known] = {}
        for arm in sorted(arms | {_ANY_ARM}):
            try:
                known[arm] = self._of(self._rows_of(arm))
            except np.linalg.LinAlgError:
                metrics.FALLBACKS.labels("policy_merge").inc()
                if arm in self._known:
                    known[arm] = self._known[arm]  # the policy before stays in use
        self._known = known

    def _rows_of(self, arm: str) -> list[tuple[Statistics, PolicyShard]]:
        """Return what an arm learns from, in a fixed order."""
        own = (arm, _ANY_ARM)
        return [
            self._shards[shard]
            for shard in sorted(self._shards)
            if not self._separate_arms or arm_of(shard) in own
        ]

    def _of(self, rows: list[tuple[Statistics, PolicyShard]]) -> Known:
        posterior = (
            merge([statistics for statistics, _ in rows], self._prior)
            if rows
            else no_knowledge(self._prior, len(self.columns))
        )
        version = policy_version(posterior)
        if self._value is not None:
            version += f"+{self._value.version}"
        apprentice = None
        if self._apprentice:
            apprentice = make(self._apprentice, posterior, **self._settings)
        return Known(
            posterior,
            {row.shard: row.version for _, row in rows},
            version,
            make(self._name, posterior, **self._settings),
            apprentice,
            {},
        )

    def known(self, arm: str = _MAIN_ARM) -> Known:
        """Return what an experiment arm goes by."""
        return self._known.get(arm) or self._known[_ANY_ARM]

    @property
    def posterior(self) -> Posterior:
        """What users of no named arm are served by, as are the next three."""
        return self.known().posterior

    @property
    def mean(self) -> NDArray[np.float64]:
        """Weights, shape (D,)."""
        return self.posterior.mean

    @property
    def n_rewards(self) -> int:
        """Rewards that they were learned from."""
        return self.posterior.n

    @property
    def version(self) -> str:
        """Version of their policy."""
        return self.known().version

    def policy(self, arm: str) -> AuditedPolicy:
        """Return the policy that serves an experiment arm: one by the arm's name, or the usual.

        A name whose policy needs another learner is counted, and served by the usual one.
        """
        if arm == RANDOM_ARM:
            return self._uniform
        known = self.known(arm)
        if arm not in KINDS:
            return known.policy
        if KINDS[arm].learner != self._learner:
            metrics.FALLBACKS.labels("policy_arm").inc()
            return known.policy
        if arm not in known.others:
            known.others[arm] = make(arm, known.posterior, **self._settings)
        return known.others[arm]

    def none_value(self, policy_id: str, context: NDArray[np.float64]) -> float:
        """Return what "none" is worth there, in the unit of a policy's values."""
        if self._value is None or policy_id in _NOT_OF_REWARDS:
            return NONE_VALUE
        value = self._value.none_value(context)
        return (
            value if self.is_in_rewards else round(self._scale.over_nothing(value), VALUE_DECIMALS)
        )
