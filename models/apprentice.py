"""May a policy that only watched serve: what it would have earned, and the rule.

Reads   decisions of the serving policy, with what the apprentice would have done at each.
Emits   `Verdict`: promote, reject or wait, with the numbers and the reasons.
Owns    the rule of promotion.

Both are valued on the same decisions, the serving policy by what they earned, the apprentice by
importance weights (`models.ope`). What counts is the difference of the two doubly robust values a
decision, in pairs, with users as what was drawn.

**The rule.** An apprentice is promoted where all of this holds, and rejected where the whole
interval of the difference is below -margin; else it goes on watching:

    decisions >= n          answered ones, that it was asked at
    effective >= m          (sum w)^2 / sum w^2
    no refusal              of `models.ope_support`: the log can say something of it
    lower bound > -margin   of the difference, by the confidence sequence

Whoever waits for the verdict looks again and again, so the bound is one that holds at every look
(`models.sequential`), and not that of a single interval.
"""

from typing import Final, Literal, NamedTuple

import numpy as np

from models.ope import Report, evaluate
from models.ope_interval import AS_USUAL, Resampling
from models.ope_log import BanditLog, Floats
from models.sequential import tuned

APPRENTICE: Final = "apprentice"
Outcome = Literal["promote", "reject", "wait"]


class Rule(NamedTuple):
    """What it takes."""

    margin: float = 0.005  # reward a decision that may be lost; it is the price of the change
    min_decisions: int = 1_000
    min_ess: float = 200.0
    confidence: float = 0.95
    planned: float = 10_000.0  # decisions at which the bound is closest


AS_STATED: Final = Rule()


class Verdict(NamedTuple):
    """What became of it."""

    outcome: Outcome
    reasons: list[str]
    difference: float  # a decision, apprentice less serving policy
    low: float  # of the sequence, as is `high`
    high: float
    report: Report | None  # None: too few decisions to look at


def judge(
    log: BanditLog, target: Floats, rule: Rule = AS_STATED, how: Resampling = AS_USUAL
) -> Verdict:
    """Hold an apprentice to the rule.

    Parameters
    ----------
    log
        Decisions of the serving policy.
    target
        The apprentice's probabilities of its arms, shape (M,).
    rule
        What it takes.
    how
        For the intervals of the report.

    Examples
    --------
    >>> from models.ope_log import alike
    >>> few = alike(2, [1.0, 0.0] * 20)
    >>> judge(few, np.tile([0.6, 0.4], 40))[:2]
    ('wait', ['40 decisions of 1000'])
    """
    if log.n < rule.min_decisions:
        nothing = float("nan")
        reasons = [f"{log.n} decisions of {rule.min_decisions}"]
        return Verdict("wait", reasons, nothing, nothing, nothing, None)
    report = evaluate(log, {APPRENTICE: target}, how=how._replace(confidence=rule.confidence))
    [pair] = report.pairs
    own = next(policy for policy in report.policies if policy.name == APPRENTICE)
    wide = float(tuned(rule.planned, 1 - rule.confidence).errors(np.array([log.n]))[0])
    difference, half = pair.dr.value, wide * pair.dr.error
    low, high = difference - half, difference + half
    reasons = list(own.refusals)
    if own.support.ess < rule.min_ess:
        reasons.append(f"{own.support.ess:.0f} effective decisions of {rule.min_ess:.0f}")
    found: Outcome = "wait"
    if reasons:
        pass
    elif high < -rule.margin:
        found = "reject"
        reasons.append(f"it loses {-high:.4f} a decision at least, {rule.margin:g} are let pass")
    elif low > -rule.margin:
        found = "promote"
        reasons.append(f"it loses {max(-low, 0.0):.4f} a decision at most, or gains")
    else:
        reasons.append(f"it may lose {-low:.4f} a decision, {rule.margin:g} are let pass")
    return Verdict(found, reasons, difference, low, high, report)
