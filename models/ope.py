"""Off-policy evaluation: what policies would have earned, judged from the log of another.

Reads   `models.ope_log.BanditLog`, and each policy's probabilities of its arms.
Emits   `Report`: values with intervals, differences in pairs, segments, and verdicts or why not.
Owns    what is compared with what, and what a verdict is.

The logging policy is one of the policies compared, by the name `LOGGED`: its weights are all 1.

A verdict on a pair comes from the difference of the two doubly robust estimates on the same
decisions, which is far surer than the difference of two intervals. With P pairs each interval
leaves out 1 / P of what one alone might (Bonferroni), so that all hold at once. No verdict is given
where `models.ope_support` refuses one for either policy. Segments are for looking: their
intervals are each by itself, and no verdict follows.

See `models.ope_estimators` for the formulas, `models.ope_interval` for the intervals.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Final, Literal, NamedTuple

import numpy as np

from models.ope_estimators import Evidence, Formed, bounds, dr, evidence, form, root_error, snips
from models.ope_interval import AS_USUAL, Estimate, Resampling, bernstein, intervals
from models.ope_log import BanditLog, Floats, check, most_weight, select
from models.ope_reward import cross_fitted
from models.ope_support import Support, refusals, support

LOGGED: Final = "logged"
_LEAST_SEGMENT: Final = 50  # decisions, below which a segment is left out

Verdict = Literal["better", "worse", "even", "refused"]


class Found(NamedTuple):
    """One estimator's answer; of a biased one without interval, and with the bias in `error`."""

    estimate: Estimate
    bernstein: tuple[float, float] | None  # None: it is no mean of numbers with known bounds
    setting: float | None


class Judged(NamedTuple):
    """One policy on one log."""

    name: str
    support: Support
    refusals: list[str]
    estimates: dict[str, Found]


class Pair(NamedTuple):
    """What the first policy earns a decision more than the second."""

    first: str
    second: str
    dr: Estimate
    snips: Estimate
    verdict: Verdict  # on the first
    reasons: list[str]  # why it was refused


class Segment(NamedTuple):
    """Some of the decisions; of estimates `snips` and `dr` alone."""

    name: str
    n: int
    policies: list[Judged]


class Report(NamedTuple):
    """All that a log says about some policies."""

    n: int
    n_groups: int
    confidence: float
    policies: list[Judged]
    pairs: list[Pair]
    segments: list[Segment]


def evaluate(
    log: BanditLog,
    targets: Mapping[str, Floats],
    *,
    expected: Floats | None = None,
    how: Resampling = AS_USUAL,
) -> Report:
    """Return what a log says about policies.

    Parameters
    ----------
    log
        Decisions and rewards; see `models.ope_log.check` for what is refused.
    targets
        Probabilities of the log's arms by name of the policy, each (M,).
    expected
        A reward model's values of all arms, (M,); without, `models.ope_reward.cross_fitted`.
    how
        Its confidence is that of an interval, and of all pairs' intervals together.

    Raises
    ------
    ValueError
        If the log cannot be evaluated, or probabilities have another shape or do not sum to 1.

    Examples
    --------
    >>> from models.ope_log import alike
    >>> rng = np.random.default_rng(1)
    >>> log = alike(2, rng.integers(0, 2, 1_000).astype(float).tolist())
    >>> firsts = np.arange(0, 2_000, 2)
    >>> log = log._replace(chosen=firsts + (log.rewards == 0))  # the first arm always earns 1
    >>> report = evaluate(log, {"first": np.tile([0.8, 0.2], 1_000)}, how=Resampling(draws=200))
    >>> [pair] = report.pairs
    >>> pair.first, pair.verdict, round(pair.dr.value, 1)
    ('first', 'better', 0.3)
    """
    check(log)
    everyone = {LOGGED: log.probabilities, **targets}
    for name, target in targets.items():
        _check_target(log, name, target)
    if expected is None:
        expected = cross_fitted(log, seed=how.seed)
    found = {name: evidence(log, target, expected) for name, target in everyone.items()}
    policies = [
        _judge(log, name, target, form(found[name]), how) for name, target in everyone.items()
    ]
    return Report(
        n=log.n,
        n_groups=len(np.unique(log.groups)),
        confidence=how.confidence,
        policies=policies,
        pairs=_pairs(log, found, policies, how),
        segments=list(_segments(log, everyone, expected, how)),
    )


def _check_target(log: BanditLog, name: str, target: Floats) -> None:
    if target.shape != log.probabilities.shape or not (target >= 0).all():
        raise ValueError(f"{name}: probabilities of other arms than the log's")
    if np.abs(np.add.reduceat(target, log.offsets[:-1]) - 1).max() > 1e-6:
        raise ValueError(f"{name}: probabilities that do not sum to 1")


def _judge(
    log: BanditLog,
    name: str,
    target: Floats,
    formed: dict[str, Formed],
    how: Resampling,
) -> Judged:
    ratios = [own.ratios for own in formed.values()]
    estimates = intervals(ratios, log.groups, how)
    most = most_weight(log, target)
    found = {}
    for (key, own), estimate in zip(formed.items(), estimates, strict=True):
        limits = bounds(key, most, log.reward_range)
        sure = None
        if limits is not None:
            sure = bernstein(own.ratios.tops[:, 0], log.groups, limits, confidence=how.confidence)
        told = estimate
        if own.unbiased is not None:
            error = root_error(own.ratios, own.unbiased, log.groups)
            told = Estimate(estimate.value, error, math.nan, math.nan)
        found[key] = Found(told, sure, own.setting)
    seen = support(log, target)
    return Judged(name, seen, refusals(seen), found)


def _pairs(
    log: BanditLog,
    found: Mapping[str, Evidence],
    policies: list[Judged],
    how: Resampling,
) -> list[Pair]:
    by_name = {policy.name: policy for policy in policies}
    # A candidate less the logging policy, and less every candidate named before it.
    names = [(later, earlier) for earlier, later in combinations(by_name, 2)]
    ratios = [
        make(found[first]).minus(make(found[second]))
        for first, second in names
        for make in (dr, snips)
    ]
    each = 1 - (1 - how.confidence) / max(len(names), 1)
    estimates = intervals(ratios, log.groups, how._replace(confidence=each))
    pairs = []
    for (first, second), by_dr, by_snips in zip(
        names, estimates[::2], estimates[1::2], strict=True
    ):
        reasons = [
            f"{name}: {reason}" for name in (first, second) for reason in by_name[name].refusals
        ]
        pairs.append(Pair(first, second, by_dr, by_snips, _verdict(by_dr, reasons), reasons))
    return pairs


def _verdict(difference: Estimate, reasons: list[str]) -> Verdict:
    if reasons:
        return "refused"
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "even"


def _segments(
    log: BanditLog,
    everyone: Mapping[str, Floats],
    expected: Floats,
    how: Resampling,
) -> Iterator[Segment]:
    names, codes, counts = np.unique(log.segments, return_inverse=True, return_counts=True)
    if len(names) < 2:
        return
    for code in np.argsort(-counts, kind="stable").tolist():
        if counts[code] < _LEAST_SEGMENT:
            continue
        own, arms = select(log, np.flatnonzero(codes == code))
        policies = []
        for name, target in everyone.items():
            of = evidence(own, target[arms], expected[arms])
            formed = {"snips": Formed(snips(of)), "dr": Formed(dr(of))}
            policies.append(_judge(own, name, target[arms], formed, how))
        yield Segment(str(names[code]), own.n, policies)
