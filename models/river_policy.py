"""Our policies as River's: pulled and updated by River's own evaluations.

Reads   arms and contexts as River has them: ids, and a dict of numbers.
Emits   pulls; the learner is updated by each reward.
Owns    how an arm and a context become a row, for those who have no better way.

The other way round there is nothing to adapt: the learner is River's regression already.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from river.bandit.base import ContextualPolicy

from models.learner import RewardLearner
from models.log_odds import Scale
from models.logistic import LogisticLearner
from models.policies import KINDS, LOGISTIC, make
from models.policy import AuditedPolicy, sample
from models.posterior import merge, no_knowledge

NONE: Final = "none"  # an arm of this id has no row, and its own value

Arm = int | str
Rows = Callable[[Sequence[Arm], Mapping[str, float]], NDArray[np.float64]]


class OwnColumns:
    """Rows in which every arm has columns of its own: the context, in that arm's place.

    So each arm has a model of its own, as in River's `LinUCBDisjoint`.

    Examples
    --------
    >>> rows = OwnColumns(["a", "b"], ["x"])
    >>> rows.n_columns, rows(["b"], {"x": 3.0}).tolist()
    (2, [[0.0, 3.0]])
    """

    def __init__(self, arms: Sequence[Arm], columns: Sequence[str]) -> None:
        self._place = {arm: n for n, arm in enumerate(arms)}
        self._columns = tuple(columns)
        self.n_columns = len(self._place) * len(self._columns)

    def __call__(self, arms: Sequence[Arm], context: Mapping[str, float]) -> NDArray[np.float64]:
        """Return the rows of some arms, shape (K, `n_columns`); absent columns are 0."""
        width = len(self._columns)
        values = [float(context.get(name, 0.0)) for name in self._columns]
        rows = np.zeros((len(arms), self.n_columns))
        for k, arm in enumerate(arms):
            start = self._place[arm] * width
            rows[k, start : start + width] = values
        return rows


class RiverPolicy(ContextualPolicy):
    """A policy of `models.policies` for `river.bandit.evaluate_offline` and its like.

    Parameters
    ----------
    name
        One of `models.policies.KINDS`.
    rows
        Makes rows of D columns of K arms and a context.
    n_columns
        D.
    refresh
        The posterior is taken anew after so many rewards, >= 1: it costs D^3.
    prior
        Precision of the weights' prior, > 0.
    seed
        Of the draws.
    settings
        Of `models.policies.PolicySettings`.
    reward_obj, burn_in
        As River has them.

    Notes
    -----
    Arms may differ from pull to pull. `none` has the value 0 where it is among them; where it is
    not, the others share its probability.

    Examples
    --------
    >>> from river import bandit
    >>> rng = np.random.default_rng(1)
    >>> history = [
    ...     (["a", "b"], {"bias": 1.0}, arm, float(arm == "b"))
    ...     for arm in rng.choice(["a", "b"], 400)
    ... ]
    >>> policy = RiverPolicy("squarecb", OwnColumns(["a", "b"], ["bias"]), 2)
    >>> total, n_used = bandit.evaluate_offline(policy, history)
    >>> bool(total.get() / n_used > 0.9)
    True
    """

    def __init__(
        self,
        name: str,
        rows: Rows,
        n_columns: int,
        *,
        refresh: int = 10,
        prior: float = 1.0,
        seed: int = 0,
        settings: Mapping[str, float] | None = None,
        reward_obj: Any = None,
        burn_in: int = 0,
    ) -> None:
        super().__init__(reward_obj, burn_in=burn_in)
        self.name, self.rows, self.n_columns = name, rows, n_columns
        self.refresh, self.prior, self.seed, self.settings = refresh, prior, seed, settings
        self._own = dict(settings or {})
        if KINDS[name].learner == LOGISTIC:
            self._own.setdefault("threshold", Scale().threshold)
        self._learner = _learner(name, n_columns, prior)
        self._policy: AuditedPolicy = make(name, no_knowledge(prior, n_columns), **self._own)
        self._n_pulls = 0

    def _pull(self, arm_ids: Sequence[Arm], context: Mapping[str, float]) -> Arm:
        arms = [arm for arm in arm_ids if arm != NONE]
        seed = b"%d:%d" % (self.seed, self._n_pulls)
        self._n_pulls += 1
        _, probabilities = self._policy.distribution(self.rows(arms, context), seed)
        if len(arms) == len(arm_ids):
            shares = probabilities[:-1]
            whole = shares.sum()
            probabilities = shares / whole if whole else np.full(len(arms), 1 / len(arms))
        chosen = sample(probabilities, seed)
        return arms[chosen] if chosen < len(arms) else NONE

    def update(self, arm_id: Arm, context: Mapping[str, float], *args: Any, **kwargs: Any) -> None:
        """Learn the reward, the first of `args`."""
        super().update(arm_id, context, *args, **kwargs)
        if arm_id == NONE:
            return
        self._learner.learn(self.rows([arm_id], context)[0], float(args[0]))
        if self._learner.n_rewards % self.refresh == 0:
            posterior = merge([self._learner.statistics()], self.prior)
            self._policy = make(self.name, posterior, **self._own)


def _learner(name: str, n_columns: int, prior: float) -> RewardLearner | LogisticLearner:
    names = [f"c{n}" for n in range(n_columns)]
    if KINDS[name].learner == LOGISTIC:
        return LogisticLearner(names, spec_hash="river", prior=prior)
    return RewardLearner(names, spec_hash="river")
