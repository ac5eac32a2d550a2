"""Audit: every logged probability computed again, from what was logged.

Reads   decisions, and where they are at hand the learner's rows that the policy was merged from.
Emits   how many were recomputed, and what does not agree, decision by decision.
Owns    what a decision has to agree with, and how nearly.

There are two steps, as a policy has them. From the logged values, spreads and settings come the
probabilities again, by the policy's own rule; this needs the decision alone. From the logged
columns and the posterior come the values again; this needs the rows of push.policy.v1 that the
decision names. The topic is compacted, so only a log that was written on the way has all of them;
where one is missing, the values are taken as logged, and counted so.

A decision that no policy was asked for has nothing to audit: nothing was left to choose from.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.arms import design
from models.policies import KINDS, make, recompute
from models.policy import AuditedPolicy, Judged, sample
from operators.messages import NONE_ARM, Decision, Judgement, Learning, PolicyShard
from operators.policy_table import PolicyTable

SUM_ERROR: Final = 1e-6
# Probabilities are logged as the doubles they were; a processor may differ in the last bits.
PROBABILITY_ERROR: Final = 1e-9
# Values are logged to 9 decimals, so a last bit may move the ninth.
VALUE_ERROR: Final = 2e-9
_KEPT_POLICIES: Final = 64  # merged posteriors, 31 KB each: decisions come nearly in their order
_SHOWN: Final = 10

WORDS: Final = {
    "sum": "the probabilities do not add up to 1",
    "floor": "an arm has less than the floor",
    "probability": "the logged values give other probabilities",
    "propensity": "the propensity is not the chosen arm's probability",
    "draw": "the decision's id draws another arm",
    "exploration": "is_exploration is not what the values say",
    "values": "the columns and the posterior give other values",
    "posterior": "the learner's rows give another policy_version; is the prior the same?",
    "unknown": "this release has no such policy, or not its settings",
    "unlogged": "a policy chose, and what it went by was not logged",
}


class Fault(NamedTuple):
    """One thing that does not agree."""

    decision_id: str
    kind: str  # of `WORDS`
    detail: str = ""


class Posteriors:
    """The posteriors that decisions were made with, merged from the learner's rows.

    Parameters
    ----------
    rows
        Of push.policy.v1, in any order.
    wanted
        (shard, version) of those that decisions name.
    prior_precision
        As `decide` had it.

    Notes
    -----
    Memory: 21 KB a row that is wanted.
    """

    def __init__(
        self,
        rows: Iterable[PolicyShard],
        wanted: set[tuple[str, int]],
        *,
        prior_precision: float,
    ) -> None:
        self._rows = {
            (row.shard, row.version): row for row in rows if (row.shard, row.version) in wanted
        }
        self._prior = prior_precision
        self._tables: OrderedDict[str, PolicyTable | None] = OrderedDict()

    def table(self, learning: Learning, judged: Judgement) -> PolicyTable | None:
        """Return the merged rows of a decision, or None where one is missing."""
        version = learning.policy_version
        if version not in self._tables:
            self._tables[version] = self._merge(learning.policy_id, judged)
            if len(self._tables) > _KEPT_POLICIES:
                self._tables.popitem(last=False)
        return self._tables[version]

    def _merge(self, policy_id: str, judged: Judgement) -> PolicyTable | None:
        rows = [self._rows.get(key) for key in judged.learned.items()]
        found = [row for row in rows if row is not None]
        if len(found) < len(rows):
            return None
        # By their learner, for a decision of the random arm is of another policy than its table.
        names = [n for n, kind in KINDS.items() if found and kind.learner == found[0].policy_id]
        name = names[0] if names else policy_id
        table = PolicyTable(prior_precision=self._prior, policy=name)
        for row in found:
            table.apply(row.shard, row)
        table.refresh()
        return table


class Audit:
    """Goes through decisions, one at a time.

    Parameters
    ----------
    posteriors
        None: values are taken as logged.

    Attributes
    ----------
    n_decisions, n_asked, n_recomputed, n_from_posterior
        All; those that a policy was asked for; those whose probabilities agree with the logged
        values; those whose values agree with a posterior.
    faults
        Number of decisions by kind of fault; `examples` are the first of them.
    weights
        Of each decision that a policy was asked for and that agrees: recomputed probability of
        the chosen arm over the logged propensity, and the same for the uniform policy.

    Notes
    -----
    About 0.2 ms a decision.
    """

    def __init__(self, posteriors: Posteriors | None = None) -> None:
        self._posteriors = posteriors
        self.n_decisions = self.n_asked = self.n_recomputed = self.n_from_posterior = 0
        self.policies: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.examples: list[Fault] = []
        self.largest_sum_error = self.largest_error = 0.0
        self.weights: dict[str, tuple[float, float]] = {}

    @property
    def is_clean(self) -> bool:
        """Whether all that a policy was asked for was recomputed and agrees."""
        return not self.faults and self.n_recomputed == self.n_asked

    def add(self, decision: Decision) -> list[Fault]:
        """Audit one decision; return what does not agree."""
        self.n_decisions += 1
        learning = decision.learning
        if learning.judged is None and len(learning.action_set) == 1:
            return []
        self.n_asked += 1
        self.policies[learning.policy_id] += 1
        found = list(self._faults(decision))
        for fault in found:
            self.faults[fault.kind] += 1
        self.examples += found[: _SHOWN - len(self.examples)]
        return found

    def _faults(self, decision: Decision) -> Iterator[Fault]:
        learning, identity = decision.learning, decision.decision_id
        if learning.judged is None:
            yield Fault(identity, "unlogged", learning.policy_id)
            return
        logged = np.array([action.probability for action in learning.action_set])
        yield from self._own(identity, learning, learning.judged, logged)
        try:
            again = _again(identity, learning, learning.judged)
        except (KeyError, ValueError, IndexError, np.linalg.LinAlgError) as error:
            yield Fault(identity, "unknown", f"{learning.policy_id}: {error}")
            return
        off = float(np.abs(again - logged).max()) if again.shape == logged.shape else np.inf
        self.largest_error = max(self.largest_error, off)
        if off > PROBABILITY_ERROR:
            yield Fault(identity, "probability", f"by up to {off:.3g}")
            return
        self.n_recomputed += 1
        chosen = learning.chosen
        if (drawn := sample(again, identity.encode())) != chosen:
            yield Fault(
                identity, "draw", f"{_name(learning, drawn)}, not {_name(learning, chosen)}"
            )
        if learning.propensity > 0:
            uniform = 1 / len(logged) / learning.propensity
            self.weights[identity] = float(again[chosen]) / learning.propensity, uniform
        yield from self._by_posterior(identity, learning, learning.judged)

    def _own(
        self, identity: str, learning: Learning, judged: Judgement, logged: NDArray[np.float64]
    ) -> Iterator[Fault]:
        """Yield what in a decision contradicts itself."""
        off = abs(float(logged.sum()) - 1)
        self.largest_sum_error = max(self.largest_sum_error, off)
        if off > SUM_ERROR:
            yield Fault(identity, "sum", f"{logged.sum():.9f}")
        floor = min(judged.knobs.get("floor", 0.0), 1 / len(logged))
        if logged.min() < floor - PROBABILITY_ERROR:
            yield Fault(identity, "floor", f"{logged.min():.6g} < {floor:.6g}")
        if abs(logged[learning.chosen] - learning.propensity) > PROBABILITY_ERROR:
            detail = f"{learning.propensity:.9f}, not {logged[learning.chosen]:.9f}"
            yield Fault(identity, "propensity", detail)
        is_exploration = learning.chosen != int(np.argmax(judged.values))
        if is_exploration != learning.is_exploration:
            yield Fault(identity, "exploration")

    def _by_posterior(
        self, identity: str, learning: Learning, judged: Judgement
    ) -> Iterator[Fault]:
        table = self._posteriors.table(learning, judged) if self._posteriors else None
        if table is None:
            return
        # Behind a plus is the version of the value of holding: it is in the logged values alone.
        if table.version != learning.policy_version.partition("+")[0]:
            yield Fault(identity, "posterior", f"{table.version}, not {learning.policy_version}")
            return
        policy = _policy(learning.policy_id, judged, table)
        arms = [action.features for action in learning.action_set if action.item_id != NONE_ARM]
        again = policy.judge(design(learning.context, arms))
        again = again.with_none(judged.values[-1])
        if not (_near(again.values, judged.values) and _near(again.spread, judged.spread)):
            yield Fault(identity, "values")
            return
        self.n_from_posterior += 1


def _again(identity: str, learning: Learning, judged: Judgement) -> NDArray[np.float64]:
    """Return the probabilities that the logged numbers give."""
    numbers = Judged(np.array(judged.values), np.array(judged.spread))
    return recompute(learning.policy_id, numbers, judged.knobs, identity.encode())


def _policy(policy_id: str, judged: Judgement, table: PolicyTable) -> AuditedPolicy:
    """Return the policy; `judge` reads no setting but the threshold."""
    own = {name: value for name, value in judged.knobs.items() if name == "threshold"}
    return make(policy_id, table.posterior, **own)


def _near(values: NDArray[np.float64], logged: list[float]) -> bool:
    return values.shape == (len(logged),) and bool(
        np.allclose(values, logged, rtol=0.0, atol=VALUE_ERROR)
    )


def _name(learning: Learning, arm: int) -> str:
    return learning.action_set[arm].item_id


def named_rows(decisions: Iterable[Decision]) -> set[tuple[str, int]]:
    """Return (shard, version) of the learner's rows that decisions name."""
    return {
        row
        for decision in decisions
        if decision.learning.judged is not None
        for row in decision.learning.judged.learned.items()
    }
