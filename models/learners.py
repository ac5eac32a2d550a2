"""Which learner a policy goes by: made, and restored from its snapshots.

Owns    the interface that learners have in common, and that a snapshot of another one than is
        asked for is refused.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.arms import design_names, policy_spec_hash
from models.learner import FORMATS, RewardLearner
from models.log_odds import Scale
from models.logistic import FORMAT, LogisticLearner
from models.policies import KINDS, LINEAR, LOGISTIC, NEURAL
from models.posterior import Statistics


class Learner(Protocol):
    """What `learn` asks of a learner; see `models.learner.RewardLearner`."""

    version: int

    @property
    def weight(self) -> float: ...  # noqa: D102
    def predict(self, x: NDArray[np.float64]) -> float: ...  # noqa: D102
    def learn(self, x: NDArray[np.float64], reward: float, time_ms: int = 0) -> None: ...  # noqa: D102
    def correct(self, x: NDArray[np.float64], delta: float, time_ms: int = 0) -> None: ...  # noqa: D102
    def discount(self, share: float) -> None: ...  # noqa: D102
    def statistics(self) -> Statistics: ...  # noqa: D102
    def snapshot(self) -> bytes: ...  # noqa: D102


class LearnerKind(NamedTuple):
    """A learner, and what it is set by.

    Examples
    --------
    >>> kind = LearnerKind.of("logistic_ucb")
    >>> kind.name, len(kind.columns)
    ('logistic', 62)
    >>> kind.restore(kind.new().snapshot()).version
    0
    """

    name: str = LINEAR  # of `models.policies`
    half_life_ms: int = 0
    scale: Scale = Scale()  # the logistic one's, as is the prior
    prior: float = 1.0

    @classmethod
    def of(cls, policy: str, **settings: Any) -> "LearnerKind":
        """Return the learner that a policy goes by."""
        return cls(KINDS[policy].learner, **settings)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the row's columns."""
        return design_names(is_neural=self.name == NEURAL)

    @property
    def spec(self) -> str:
        """Hash of the columns."""
        return policy_spec_hash(is_neural=self.name == NEURAL)

    @property
    def formats(self) -> tuple[int, ...]:
        """First bytes of snapshots that it reads."""
        return (FORMAT,) if self.name == LOGISTIC else FORMATS

    def is_of_another(self, state: bytes) -> bool:
        """Whether a snapshot is another learner's."""
        return state[0] not in self.formats and state[0] in (*FORMATS, FORMAT)

    def new(self) -> Learner:
        """Return a learner that knows nothing."""
        if self.name == LOGISTIC:
            return LogisticLearner(
                self.columns,
                spec_hash=self.spec,
                scale=self.scale,
                prior=self.prior,
                half_life_ms=self.half_life_ms,
            )
        return RewardLearner(self.columns, spec_hash=self.spec, half_life_ms=self.half_life_ms)

    def restore(self, state: bytes) -> Learner:
        """Return the learner of a snapshot.

        Raises
        ------
        models.learner.SnapshotError
            If it is of other columns.
        """
        if self.name == LOGISTIC:
            return LogisticLearner.restore(
                state,
                self.columns,
                spec_hash=self.spec,
                scale=self.scale,
                prior=self.prior,
                half_life_ms=self.half_life_ms,
            )
        return RewardLearner.restore(
            state, self.columns, spec_hash=self.spec, half_life_ms=self.half_life_ms
        )
