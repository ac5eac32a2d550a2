"""An apprentice's log: what it would have done, beside what was done and earned.

Reads   the archive: decisions whose windows have closed, answers, what the apprentice left in them.
Emits   arrays for `models.apprentice`, and its verdict.
Owns    which decisions are looked at.

Those of one serving policy, that of most of the latest: of the others' decisions it is not known
what this one would have done. So the random arm is left out; its log is for `pushflow ope`.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from flows import archived
from flows.experiment import ExperimentError
from flows.ope_archive import bandit_log
from flows.settings import Settings
from models.apprentice import Rule, Verdict, judge
from models.ope import Report
from models.ope_log import select
from operators.archive_files import Place
from operators.messages import Apprentice
from operators.policy_table import RANDOM_ARM

DECISIONS: Final = "push.decisions.v1"
_LATEST: Final = 1_000  # decisions that say which policy serves: arms may have others


class Watched(NamedTuple):
    """An apprentice and what is known of it."""

    apprentice: str
    served: str
    n_decisions: int
    expected: float  # mean of what it expected to earn a decision, in the unit of its values
    verdict: Verdict


class _Learning(msgspec.Struct, frozen=True, gc=False):
    apprentice: Apprentice | None = None


class _Decision(msgspec.Struct, frozen=True, gc=False):
    learning: _Learning


def watched(
    settings: Settings, rule: Rule, policy_id: str = "", *, from_ms: int = 0, until_ms: int
) -> Watched:
    """Judge an apprentice by the archive.

    Parameters
    ----------
    policy_id
        Which; "": the one that was asked most.
    from_ms, until_ms
        Only decisions of that time, and what was known at its end.

    Raises
    ------
    flows.experiment.ExperimentError
        If there is no decision that it was asked at.
    """
    place = Place(settings.archive.url)
    asked = dict(_asked(place))
    found = archived.decided(settings, place, until_ms=until_ms)
    ids, labels = found.log.decision_ids, found.labels
    kept = [
        n
        for n, arm in enumerate(labels["arm"])
        if ids[n] in asked and arm != RANDOM_ARM and found.log.decided_ms[n] >= from_ms
    ]
    if not policy_id and kept:
        policy_id = Counter(asked[ids[n]].policy_id for n in kept).most_common(1)[0][0]
    kept = [n for n in kept if asked[ids[n]].policy_id == policy_id]
    if not kept:
        name = policy_id or "any apprentice"
        raise ExperimentError(
            f"no answered decision at which {name} was asked: set PUSHFLOW_RANKING__APPRENTICE, "
            "and run decide and archive"
        )
    latest = Counter(labels["policy_id"][n] for n in kept[-_LATEST:])
    served = latest.most_common(1)[0][0]
    kept = [n for n in kept if labels["policy_id"][n] == served]
    part = select(bandit_log(settings, found, None), np.array(kept))
    own = [asked[ids[n]] for n in kept]
    target = np.concatenate([np.array(one.probabilities) for one in own])
    if len(target) != len(part.arms):
        raise ExperimentError("an apprentice's probabilities are of another action set")
    expected = float(np.mean([one.value for one in own]))
    return Watched(policy_id, served, len(kept), expected, judge(part.log, target, rule))


def _asked(place: Place) -> Iterator[tuple[str, Apprentice]]:
    """Yield what apprentices said, by decision_id; it has no column of its own."""
    decoder = msgspec.json.Decoder(_Decision)
    for decision_id, raw in archived.columns(place, DECISIONS, ("decision_id", "raw")):
        apprentice = decoder.decode(raw).learning.apprentice
        if apprentice is not None:
            yield decision_id, apprentice


def values(found: Watched) -> dict[str, Any]:
    """Return the verdict as JSON has it; null for what is not known."""
    verdict = found.verdict
    report = verdict.report
    found_values: dict[str, Any] = _known(
        {
            "verdict": verdict.outcome,
            "reasons": verdict.reasons,
            "apprentice": found.apprentice,
            "served": found.served,
            "decisions": found.n_decisions,
            "expected": found.expected,
            "difference": verdict.difference,
            "low": verdict.low,
            "high": verdict.high,
            "ess": report.policies[-1].support.ess if report else None,
            "values": _estimates(report) if report else {},
            "promotion": f"PUSHFLOW_RANKING__POLICY={found.apprentice}",
        }
    )
    return found_values


def _estimates(report: Report) -> dict[str, dict[str, Any]]:
    """Return value and interval by policy and estimator."""
    return {
        policy.name: {
            name: policy.estimates[name].estimate._asdict() for name in ("ips", "snips", "dr")
        }
        for policy in report.policies
    }


def _known(value: Any) -> Any:
    """Put None for numbers that are none."""
    if isinstance(value, dict):
        return {key: _known(one) for key, one in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
