"""What an audit finds: the decisions, the policy's own estimate, as a table and as JSON.

Reads   a log of `flows.audit_sources`.
Owns    how a log is gone through, and whether its draws are those of its propensities.

The policy that decided is held against its own log. Its rewards, weighed by recomputed
probability over logged propensity, must come to the plain mean. This says that the propensities
are the probabilities. That the draws follow them is said by the uniform policy, whose weights are
1 in the mean for whatever policy decided, if each arm came up as often as its propensity says.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from msgspec import structs
from numpy.typing import NDArray
from rich.table import Table

from flows.audit import WORDS, Audit, Posteriors, named_rows
from flows.audit_sources import DECISIONS, FEEDBACK, POLICY, Log, read
from flows.learn import attribution
from flows.settings import Settings
from operators import attribution_state
from operators.hops import Reward
from operators.messages import NONE_ARM, Decision, Feedback
from operators.shards import DictShard

_Z95: Final = 1.96
# Standard errors that the uniform policy's mean weight may be off: 1 sound log in 16,000 is more.
_MOST_ERRORS: Final = 4.0


class Estimate(NamedTuple):
    """A mean over n decisions, and half the width of its 95% interval."""

    n: int
    mean: float
    half: float

    def holds(self, value: float) -> bool:
        """Say whether a value lies within the interval."""
        return self.n > 0 and abs(value - self.mean) <= self.half + 1e-12


class Report(NamedTuple):
    """An audit that is over. `plain` and `weighted` are of rewards, `uniform` of weights."""

    audit: Audit
    plain: Estimate
    weighted: Estimate
    uniform: Estimate

    @property
    def are_draws_fair(self) -> bool:
        """Whether arms came up as often as their propensities say."""
        off = abs(self.uniform.mean - 1.0)
        return self.uniform.n < 2 or off <= self.uniform.half * _MOST_ERRORS / _Z95 + 1e-9

    @property
    def is_own_estimate_right(self) -> bool:
        """Whether the policy's IPS on its own log is within the plain mean's interval."""
        return self.plain.n == 0 or self.plain.holds(self.weighted.mean)

    @property
    def is_clean(self) -> bool:
        """Whether nothing speaks against the log."""
        return self.audit.is_clean and self.are_draws_fair and self.is_own_estimate_right


def run(settings: Settings, log: Log) -> Report:
    """Go through a log; decisions are read twice, and a third time where rewards are known.

    Memory: 0.2 KB a decision, 1 KB a push, and 21 KB for each row of the learner that is named.
    """
    posteriors = Posteriors(
        read(log, POLICY),
        named_rows(read(log, DECISIONS)),
        prior_precision=settings.learning.prior_precision,
    )
    audit = Audit(posteriors)
    known: dict[str, float] = {}  # what "none" earned: nothing
    pushes: list[Decision] = []
    for decision in read(log, DECISIONS):
        audit.add(decision)
        if decision.decision_id not in audit.weights:
            continue
        if _chosen(decision) == NONE_ARM:
            known[decision.decision_id] = 0.0
        elif decision.outcome == "send":
            pushes.append(_slim(decision))
    feedback = list(read(log, FEEDBACK))
    if feedback:
        known |= rewards(settings, pushes, feedback)
    else:
        known = {}
    own = np.array([audit.weights[one][0] for one in known])
    earned = np.array(list(known.values()))
    uniform = np.array([weight for _, weight in audit.weights.values()])
    return Report(audit, estimate(earned), estimate(own * earned), estimate(uniform))


def estimate(values: NDArray[np.float64]) -> Estimate:
    """Return the mean of independent values, with its 95% interval.

    >>> estimate(np.array([0.0, 1.0, 0.0, 1.0]))
    Estimate(n=4, mean=0.5, half=0.566)
    """
    n = len(values)
    if n < 2:
        return Estimate(n, float(values.sum()), math.inf)
    half = _Z95 * float(values.std(ddof=1)) / math.sqrt(n)
    return Estimate(n, float(values.mean()), half)


def rewards(
    settings: Settings, pushes: list[Decision], feedback: list[Feedback]
) -> dict[str, float]:
    """Return what pushes earned, by decision_id, as `learn` comes to it; those it learned from."""
    states = DictShard(
        "00",
        encode=attribution_state.encode_state,
        decode=attribution_state.decode_state,
        new=attribution_state.new_state,
    )
    joining = attribution(settings, states)
    earned: dict[str, float] = defaultdict(float)

    def learn(found: list[Any]) -> None:
        for entry in found:
            if isinstance(entry, Reward):
                earned[entry.decision_id] += entry.reward

    sent = sorted(((d.decided_at, d) for d in pushes), key=_time)
    came = sorted(((f.time_ms, f) for f in feedback), key=_time)
    merged: Iterator[tuple[int, Any]] = heapq.merge(sent, came, key=_time)
    time_ms = 0
    for time_ms, entry in merged:
        learn(joining.advance(0, time_ms))
        if isinstance(entry, Decision):
            learn(joining.on_decision(entry, 0, time_ms))
        else:
            learn(joining.on_feedback(entry, 0, time_ms))
    return dict(earned)


def _time(entry: tuple[int, Any]) -> int:
    return entry[0]


def _chosen(decision: Decision) -> str:
    learning = decision.learning
    return learning.action_set[learning.chosen].item_id


def _slim(decision: Decision) -> Decision:
    """Return what attribution reads of a push: of its arms the chosen one."""
    learning = decision.learning
    own = structs.replace(
        learning, action_set=[learning.action_set[learning.chosen]], chosen=0, judged=None
    )
    return structs.replace(decision, learning=own, content=None, explanation=[])


def table(report: Report) -> Table:
    """Return the report for people."""
    audit = report.audit
    rows = Table(show_header=False, title="Audit", title_justify="left")
    rows.add_row("decisions", f"{audit.n_decisions:,}")
    names = ", ".join(f"{name} {n:,}" for name, n in audit.policies.most_common())
    rows.add_row("decided by a policy", f"{audit.n_asked:,}  ({names})")
    rows.add_row("probabilities recomputed", _of(audit.n_recomputed, audit.n_asked))
    rows.add_row("values recomputed from the posterior", _of(audit.n_from_posterior, audit.n_asked))
    rows.add_row("largest |sum - 1|", f"{audit.largest_sum_error:.2g}")
    rows.add_row("largest difference of a probability", f"{audit.largest_error:.2g}")
    rows.add_row("mean weight of the uniform policy", _interval(report.uniform) + "; 1 is due")
    if report.plain.n:
        rows.add_row("mean reward", f"{_interval(report.plain)} over {report.plain.n:,} decisions")
        rows.add_row("its own IPS estimate", f"{report.weighted.mean:.5f}")
    else:
        rows.add_row("mean reward", "no feedback in this log")
    for kind, n in audit.faults.most_common():
        rows.add_row(f"[red]{WORDS[kind]}", f"[red]{n:,}")
    return rows


def _of(n: int, whole: int) -> str:
    return "all" if n == whole else f"{n:,} of {whole:,}"


def _interval(found: Estimate) -> str:
    return f"{found.mean:.5f} ± {found.half:.5f}"


def verdict(report: Report) -> list[str]:
    """Return in words what speaks against the log, the first cases by decision; [] if nothing."""
    lines = [
        f"decision {fault.decision_id}: {WORDS[fault.kind]}"
        + (f" ({fault.detail})" if fault.detail else "")
        for fault in report.audit.examples
    ]
    if not report.are_draws_fair:
        lines.append(
            f"arms came up more or less often than their propensities say: the uniform policy "
            f"weighs {_interval(report.uniform)} in the mean, not 1"
        )
    if not report.is_own_estimate_right:
        lines.append(
            f"the policy's own IPS estimate {report.weighted.mean:.5f} is outside the plain "
            f"mean's interval {_interval(report.plain)}"
        )
    return lines


def as_json(report: Report) -> dict[str, Any]:
    """Return the report for programs."""
    audit = report.audit
    return {
        "is_clean": report.is_clean,
        "decisions": audit.n_decisions,
        "by_policy": dict(audit.policies),
        "asked": audit.n_asked,
        "recomputed": audit.n_recomputed,
        "from_posterior": audit.n_from_posterior,
        "largest_sum_error": audit.largest_sum_error,
        "largest_error": audit.largest_error,
        "faults": dict(audit.faults),
        "examples": [fault._asdict() for fault in audit.examples],
        "uniform_weight": report.uniform._asdict(),
        "reward": report.plain._asdict(),
        "own_ips": report.weighted._asdict(),
    }
