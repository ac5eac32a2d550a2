"""The archive's decisions and candidate policies, for off-policy evaluation.

Reads   `flows.archived`: what was decided and earned.
Emits   `models.ope_log.BanditLog`, and each candidate's probabilities of its arms.
Owns    how a candidate is written, what it has learned from, and what its decisions are made on.

A candidate learns from the pushes whose windows had closed before the first decision that it is
judged on, with what was known of them then: exactly what `learn` would have had by that moment.
It learns nothing after that, while the logging policy went on learning. So a candidate that loses
by little may have lost by that; one that is ahead is ahead in spite of it.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows import archived
from flows.archived import Decided
from flows.settings import Settings
from models.arms import D, design
from models.learner import RewardLearner
from models.log_odds import Scale
from models.logistic import LogisticLearner
from models.ope_log import BanditLog
from models.policies import KINDS, LINEAR, NEURAL, PolicySettings, make
from models.policy import Policy
from models.posterior import Posterior, merge
from models.push_log import PushLog
from operators.archive_files import Place

DAY_MS: Final = 86_400_000
SEGMENTS: Final = {  # --by -> column of the archive
    "trigger": "trigger_type",
    "campaign": "campaign_id",
    "arm": "arm",
    "policy": "policy_id",
}


class Candidate(NamedTuple):
    """A policy by name, with the settings that differ from those in force."""

    text: str  # as it was written: "squarecb:gamma=500"
    name: str
    settings: dict[str, float]


class Trial(NamedTuple):
    """A log to judge on, each candidate's probabilities on it, and how many pushes they learned."""

    log: BanditLog
    targets: dict[str, NDArray[np.float64]]
    n_learned: int
    from_ms: int


def parse(text: str) -> Candidate:
    """Return the candidate that a text names; ValueError says what is wrong with it.

    >>> parse("squarecb:gamma=500,floor=0.01")
    Candidate(text='squarecb:gamma=500,floor=0.01', name='squarecb', ...'floor': 0.01})
    >>> parse("best")
    Traceback (most recent call last):
    ValueError: no policy 'best'; there are uniform, popularity, greedy, epsilon_greedy, ...
    """
    name, _, rest = text.partition(":")
    if name not in KINDS:
        raise ValueError(f"no policy {name!r}; there are {', '.join(KINDS)}")
    if KINDS[name].learner == NEURAL:
        raise ValueError(f"{name} needs the student's vectors, which the archive does not keep")
    found: dict[str, float] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in PolicySettings._fields:
            raise ValueError(f"no setting {key!r}; there are {', '.join(PolicySettings._fields)}")
        found[key] = int(value) if value.isdigit() else float(value)
    return Candidate(text, name, found)


def trial(
    settings: Settings,
    place: Place,
    candidates: Sequence[Candidate],
    *,
    from_ms: int | None = None,
    until_ms: int = archived.FOR_EVER_MS,
    by: str | None = None,
) -> Trial:
    """Return what candidates would have done.

    Parameters
    ----------
    from_ms
        Judge on decisions from then on, learn from what was known before. None: the later half.
    until_ms
        Leave out what is from then on.
    by
        A key of `SEGMENTS`.

    Raises
    ------
    ValueError
        If there is nothing to judge on, or a candidate's settings are out of their bounds.
    """
    found = archived.decided(settings, place, until_ms)
    if from_ms is None and found.log.decision_ids:
        from_ms = int(np.median(found.log.decided_ms))
    if from_ms is None or not (found := later(found, from_ms)).log.decision_ids:
        raise ValueError("no decisions of a policy whose window for answers has closed")
    pushes = archived.push_log(settings, place, from_ms)
    posteriors: dict[str, Posterior] = {}
    targets = {}
    for candidate in candidates:
        kind = KINDS[candidate.name].learner
        if kind not in posteriors:
            posteriors[kind] = learned(settings, pushes, kind)
        own = make(candidate.name, posteriors[kind], **in_force(settings) | candidate.settings)
        targets[candidate.text] = probabilities(own, found.log)
    return Trial(bandit_log(settings, found, by), targets, len(pushes.decision_ids), from_ms)


def later(found: Decided, from_ms: int) -> Decided:
    """Return what was decided from a moment on."""
    log = found.log
    first = int(np.searchsorted(log.decided_ms, from_ms))
    arm = int(log.offsets[first])
    part = PushLog(
        decision_ids=log.decision_ids[first:],
        user_ids=log.user_ids[first:],
        decided_ms=log.decided_ms[first:],
        contexts=log.contexts[first:],
        offsets=log.offsets[first:] - arm,
        item_ids=log.item_ids[arm:],
        features=log.features[arm:],
        probabilities=log.probabilities[arm:],
        chosen=log.chosen[first:] - arm,
        propensities=log.propensities[first:],
        rewards=log.rewards[first:],
        outcomes=log.outcomes[first:],
    )
    return Decided(part, {name: values[first:] for name, values in found.labels.items()})


def in_force(settings: Settings) -> dict[str, float]:
    """Return what the settings say of policies."""
    ranking = settings.ranking
    names = ("floor", "gamma", "epsilon", "temperature", "width", "draws")
    found = {name: getattr(ranking, name) for name in names}
    return found | {"threshold": Scale(*settings.rewards.scale).threshold}


def learned(settings: Settings, pushes: PushLog, kind: str) -> Posterior:
    """Return what a learner knows after some pushes."""
    half_life_ms = round(settings.learning.half_life_days * DAY_MS)
    prior = settings.learning.prior_precision
    learner: RewardLearner | LogisticLearner
    if kind == LINEAR:
        learner = RewardLearner(half_life_ms=half_life_ms)
    else:
        scale = Scale(*settings.rewards.scale)
        learner = LogisticLearner(scale=scale, prior=prior, half_life_ms=half_life_ms)
    for n, context in enumerate(pushes.contexts):
        row = design(context, pushes.features[pushes.chosen[n]][None])[0]
        learner.learn(row, float(pushes.rewards[n]), int(pushes.decided_ms[n]))
    return merge([learner.statistics()], prior)


def probabilities(policy: Policy, log: PushLog) -> NDArray[np.float64]:
    """Return a policy's probabilities of all arms, shape (M,)."""
    found = []
    for n, context in enumerate(log.contexts):
        x = design(context, log.features[log.offsets[n] : log.offsets[n + 1] - 1])
        found.append(policy.distribution(x, log.decision_ids[n].encode())[1])
    return np.concatenate(found)


def bandit_log(settings: Settings, found: Decided, by: str | None) -> BanditLog:
    """Return decisions as off-policy evaluation reads them; users are its groups."""
    log = found.log
    low, high = _reward_range(settings)
    return BanditLog(
        offsets=log.offsets,
        probabilities=log.probabilities,
        chosen=log.chosen,
        rewards=log.rewards,
        groups=np.unique(log.user_ids, return_inverse=True)[1],
        # A campaign may have rewards of its own.
        reward_range=(min(low, float(log.rewards.min())), max(high, float(log.rewards.max()))),
        rows=_rows_of(log),
        segments=found.labels[SEGMENTS[by]] if by else [""] * len(log.decision_ids),
    )


def _reward_range(settings: Settings) -> tuple[float, float]:
    """Return what a push can earn by the settings: each outcome counts once."""
    worth = settings.rewards
    converted = worth.converted + (worth.conversion_max if worth.conversion_value else 0.0)
    outcomes = (worth.opened, worth.clicked, converted, worth.dismissed, worth.opted_out)
    return (
        min(sum(value for value in outcomes if value < 0), worth.no_response),
        max(sum(value for value in outcomes if value > 0), worth.no_response),
    )


def _rows_of(log: PushLog) -> Callable[[int], NDArray[np.float64]]:
    def rows(n: int) -> NDArray[np.float64]:
        own = slice(log.offsets[n], log.offsets[n + 1] - 1)
        arms = design(log.contexts[n], log.features[own])  # (K, D)
        return np.vstack([arms, np.zeros((1, D))])  # "send nothing" is worth 0, and known to be

    return rows
