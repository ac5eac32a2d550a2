"""The report of an experiment: what each arm does, or why nothing may be said of it.

Reads   campaigns, and the evidence of `flows.exposures`.
Emits   a report: its tables and picture are `flows.experiment_report`'s.
Owns    which campaigns are one experiment, the order of the checks, when the report says nothing.

Campaigns with one and the same `experiment` are one experiment: their users are split alike. What
is said of arms that were not split as they were set, or whose exposure is not complete, would be
wrong in a way that no interval shows; so nothing is said then, and the report tells what to mend.

**Learners.** Arms whose policies learn from the same pushes (shared) are compared as policies on
one knowledge: a good small arm is held back by nothing, and each learns from what the others
explore. Arms that learn from their own pushes alone (separated) are compared with what they teach
themselves; then the larger arm learns faster, and looks better for it. The report says which it is.
"""

from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.exposure_logs import archive_log, topic_log
from flows.exposures import ACTS, METRICS, Exposed, Own, Span, read
from flows.learn import reward_rules
from flows.settings import Settings
from models.experiments import Compared, Split, check_split, compare
from operators.campaigns import HOLDOUT, POLICY, CampaignTable, load_yaml, shares_of
from operators.codec import table_handler
from operators.content import validate_templates
from operators.kafka_tables import TableFollower
from operators.messages import Campaign, Experiment
from operators.policy_table import RANDOM_ARM

CAMPAIGNS: Final = "push.campaigns.v1"
# Arms that learn apart are told of where one has so many times the pushes of another.
_UNEVEN: Final = 1.5


class ExperimentError(Exception):
    """There is nothing to report; the message says why."""


class Asked(NamedTuple):
    """What the report is to be of."""

    is_of_archive: bool = True
    campaign_id: str = ""  # any of the experiment's; "": the only experiment there is
    control: str = ""  # "": see `default_control`
    alpha: float = 0.05
    planned: float = 10_000.0  # users at which the anytime interval is narrowest
    span_ms: int = 7 * 86_400_000
    before_ms: int = 7 * 86_400_000
    since_ms: int = 0
    until_ms: int = 4_200_000_000_000  # 2103: no message may be dated so


class Arm(NamedTuple):
    """An arm's users, and what they did in their span, a user."""

    name: str
    share: float  # as it was set
    n_users: int  # exposed
    n_over: int  # of them, whose time is over: what follows is of these
    totals: dict[str, float]  # by the names of `METRICS`


class Report(NamedTuple):
    """What is known of an experiment; `compared` is empty where nothing may be said."""

    campaigns: list[str]
    arms: list[Arm]
    control: str
    split: Split
    refusals: list[str]
    learners: str
    notes: list[str]
    compared: dict[str, dict[str, Compared]]  # arm -> metric -> beside the control
    over_ms: NDArray[np.int64]  # when each user's time was over, as the sequences count them


def report(settings: Settings, asked: Asked) -> Report:
    """Read the evidence and hold it to the checks.

    Raises
    ------
    ExperimentError
        If there is no such experiment, arm or user.
    """
    campaigns = read_campaigns(settings)
    experiment, own = choose(campaigns, asked.campaign_id)
    shares = shares_of(experiment)
    control = asked.control or default_control(shares)
    if control not in shares:
        raise ExperimentError(f"no arm {control!r}: there are {', '.join(shares)}")
    log = archive_log(settings) if asked.is_of_archive else topic_log(settings)
    what = _own(settings, campaigns, own, list(shares))
    answer_ms = max(what.rules.longest_ms(rewards) for rewards in what.campaigns.values())
    span = Span(asked.since_ms, asked.until_ms, asked.span_ms, asked.before_ms, answer_ms)
    found = read(log, what, span)
    if not len(found.arms):
        raise ExperimentError("nobody was exposed: no decision of its campaigns is in the log")
    is_separate = settings.learning.separate_arms
    judged = judge(shares, found, asked._replace(control=control), is_separate=is_separate)
    return judged._replace(campaigns=own)


def judge(shares: dict[str, float], found: Exposed, asked: Asked, *, is_separate: bool) -> Report:
    """Hold the evidence to the checks, and compare the arms where they allow it.

    `shares` are those that were set, by arm; `is_separate` says that arms learn apart.
    """
    names = list(shares)
    split = check_split(found.arms, np.array(list(shares.values())))
    refusals = [f"exposure is not complete: {fault}" for fault in found.faults]
    if split.is_wrong:
        refusals.append(
            f"users are not split as set (sample ratio mismatch): p = {split.p_value:.1e}, "
            f"at the worst look {split.anytime_p_value:.1e}"
        )
    arms = [_arm(name, shares[name], found, code) for code, name in enumerate(names)]
    is_over = found.is_over
    own = {name: found.arms[is_over] == code for code, name in enumerate(names)}
    compared: dict[str, dict[str, Compared]] = {}
    for name in names if not refusals else ():
        if name != asked.control:
            compared[name] = {
                metric: compare(
                    found.metrics[metric][is_over],
                    np.log1p(found.before[is_over]),
                    own[name],
                    own[asked.control],
                    alpha=asked.alpha,
                    planned=asked.planned,
                )
                for metric in _metrics(name, asked.control)
            }
    return Report(
        campaigns=[],
        arms=arms,
        control=asked.control,
        split=split,
        refusals=refusals,
        learners="separated" if is_separate else "shared",
        notes=_notes(arms) if is_separate else [],
        compared=compared,
        over_ms=found.first_ms[is_over] + asked.span_ms,
    )


def _metrics(*arms: str) -> tuple[str, ...]:
    """Return what arms can be compared by: of the holdout nothing is known that takes a push."""
    return ("reward", *ACTS.values(), "events") if HOLDOUT in arms else METRICS


def _arm(name: str, share: float, found: Exposed, code: int) -> Arm:
    is_in = found.arms == code
    is_over = is_in & found.is_over
    totals = {metric: float(found.metrics[metric][is_over].sum()) for metric in METRICS}
    return Arm(name, share, int(is_in.sum()), int(is_over.sum()), totals)


def _notes(arms: list[Arm]) -> list[str]:
    learning = [arm for arm in arms if arm.name not in (HOLDOUT, RANDOM_ARM)]
    taught = {arm.name: arm.totals["sends"] for arm in learning}
    if len(taught) < 2:
        return []
    most, least = max(taught, key=taught.__getitem__), min(taught, key=taught.__getitem__)
    if taught[most] <= _UNEVEN * taught[least]:
        return []
    return [
        f"arm {most} learned from {taught[most]:,.0f} pushes, arm {least} from "
        f"{taught[least]:,.0f}: part of a difference is that. Give them equal shares"
    ]


def default_control(shares: dict[str, float]) -> str:
    """Return the arm that the others are held against: random, else the holdout, else policy.

    >>> default_control({"holdout": 0.05, "policy": 0.95})
    'holdout'
    """
    return next(name for name in (RANDOM_ARM, HOLDOUT, POLICY, *shares) if name in shares)


def read_campaigns(settings: Settings) -> CampaignTable:
    """Return the campaigns of the file, or of the topic, as they are now."""
    table = CampaignTable(validate_templates, holdout_salt=settings.experiments.holdout_salt)
    if settings.campaigns_file:
        text = Path(settings.campaigns_file).read_text(encoding="utf-8")
        for campaign in load_yaml(text, validate_templates):
            table.apply(campaign.campaign_id, campaign)
        return table
    topic = settings.topics[CAMPAIGNS]
    handlers = {topic: table_handler(Campaign, table.apply, CAMPAIGNS)}
    follower = TableFollower(settings.kafka.client(), handlers)
    try:
        follower.load()
    finally:
        follower.close()
    return table


def choose(campaigns: CampaignTable, campaign_id: str) -> tuple[Experiment, list[str]]:
    """Return an experiment and its campaigns.

    `campaign_id` names any of its campaigns; it may be left out where there is one experiment.
    """
    groups: list[tuple[Experiment, list[str]]] = []
    for campaign in campaigns:
        same = [ids for experiment, ids in groups if experiment == campaign.experiment]
        if same:
            same[0].append(campaign.campaign_id)
        else:
            groups.append((campaign.experiment, [campaign.campaign_id]))
    if campaign_id:
        groups = [group for group in groups if campaign_id in group[1]]
        if not groups:
            raise ExperimentError(f"no campaign {campaign_id!r}")
    if not groups:
        raise ExperimentError("no campaigns")
    if len(groups) > 1:
        each = "; ".join(", ".join(ids) for _, ids in groups)
        raise ExperimentError(f"{len(groups)} experiments, name a campaign of one: {each}")
    return groups[0]


def _own(settings: Settings, campaigns: CampaignTable, ids: list[str], names: list[str]) -> Own:
    own = {campaign.campaign_id: campaign for campaign in campaigns if campaign.campaign_id in ids}
    return Own(
        names,
        {name: campaign.rewards for name, campaign in own.items()},
        lambda user_id, campaign_id: campaigns.arm_of(user_id, own[campaign_id]),
        reward_rules(settings),
    )


def values(found: Report) -> dict[str, Any]:
    """Return the report as JSON has it."""
    return {
        "verdict": "refused" if found.refusals else "reported",
        "refusals": found.refusals,
        "campaigns": found.campaigns,
        "control": found.control,
        "learners": found.learners,
        "notes": found.notes,
        "split": {
            "p_value": found.split.p_value,
            "anytime_p_value": found.split.anytime_p_value,
            "expected": [round(n, 1) for n in found.split.expected],
        },
        "arms": {arm.name: _arm_values(arm) for arm in found.arms},
        "compared": {
            name: {metric: _compared_values(one) for metric, one in metrics.items()}
            for name, metrics in found.compared.items()
        },
    }


def _arm_values(arm: Arm) -> dict[str, Any]:
    n = max(arm.n_over, 1)
    return {
        "share": arm.share,
        "users": arm.n_users,
        "users_over": arm.n_over,
        "totals": {name: round(total, 6) for name, total in arm.totals.items()},
        "a_user": {name: round(total / n, 6) for name, total in arm.totals.items()},
    }


def _compared_values(one: Compared) -> dict[str, Any] | None:
    if one.look is None or one.adjusted is None:
        return None
    return {
        "plain": one.look._asdict(),
        "adjusted": one.adjusted._asdict(),
        "correlation": round(one.correlation, 6),
    }
