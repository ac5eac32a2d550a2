"""Decider: the one answer to each trigger, held against everything a push may not do.

Reads   ranked triggers of one shard, in order, what has been sent to each user, and after a crash
        what was decided before it.
Emits   exactly one `Decision` a trigger.
Owns    the decision's id, the order of verdict, policy and content, and the record of sends.

Eligibility comes before the policy, so that the policy chooses among what may be sent and cannot
explore past it. The draw is seeded by the decision's id, and the id follows from the trigger
alone: a replay with the same tables decides the same. Where a decision was written before a
crash, that one holds, and what was sent follows it. A deferred push counts as sent at the time it
is planned for.
"""

import hashlib
from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from models.arms import design, loggable, policy_context, with_fatigue
from models.policy import VALUE_DECIMALS, explain, sample
from models.rollout import is_in_share
from operators import metrics
from operators.campaigns import CampaignTable
from operators.content import collapse_key, render
from operators.eligibility import (
    NO_CANDIDATES,
    POLICY_NONE,
    Verdict,
    check,
    choose_channel,
    item_fault,
)
from operators.emitted import Emitted
from operators.fatigue import PushState
from operators.hops import Candidate, Forget, Ranked, Standing, Tried, Trigger
from operators.messages import (
    NONE_ARM,
    Action,
    Apprentice,
    Campaign,
    CampaignRewards,
    Caps,
    Content,
    Decision,
    Delivery,
    Explanation,
    Item,
    Judgement,
    Learning,
    Trial,
    TriggerRef,
)
from operators.policy_table import PolicyTable

DAY_MS: Final = 86_400_000
_EMPTY: Final = PushState()  # read, never written: the sends of a user never sent to
_NO_CAMPAIGN_KEY: Final = "none"


class Pushes(Protocol):
    """The part of `operators.state.Shard` that is needed here."""

    def get(self, key: str) -> PushState: ...  # noqa: D102
    def peek(self, key: str) -> PushState | None: ...  # noqa: D102
    def delete(self, key: str) -> None: ...  # noqa: D102


def decision_id(trigger: Trigger, campaign_id: str) -> str:
    """Return 32 hex digits from the trigger, campaign and user alone; the idempotency key."""
    parts = (trigger.type, trigger.event_id, str(trigger.time_ms), campaign_id, trigger.user_id)
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).hexdigest()


class Choice:
    """What the policy saw, and what it chose: everything that is logged for learning.

    The last action is always "none". Before a policy is asked it is the only one.
    """

    def __init__(self) -> None:
        self.actions = [Action(NONE_ARM, "", 0.0, 1.0, [])]
        self.chosen = 0
        self.propensity = 1.0
        self.policy_id = "rule"
        self.is_exploration = False
        self.context: list[float] = []
        self.trial: Trial | None = None
        self.judged: Judgement | None = None
        self.apprentice: Apprentice | None = None
        self.explanation: list[Explanation] = []

    @property
    def is_none(self) -> bool:
        """Whether the choice is to send nothing."""
        return self.chosen == len(self.actions) - 1

    @property
    def item_id(self) -> str:
        """The chosen item, or "none"."""
        return self.actions[self.chosen].item_id


class Decider:
    """Decides for the users of one shard.

    Parameters
    ----------
    pushes
        What was sent, by user_id.
    campaigns, policies
        Global tables, kept current by the caller between batches.
    item_of
        item_id -> the item as it is now, or None.
    window_ms
        From sending to when silence counts, event time, where the campaign says nothing else.
    top_explanations
        Columns that each decision explains itself by.
    emitted
        Decisions that were written before a crash, None where there are none.
    apprentice_share
        Of triggers, for which the table's apprentice says what it would do, 0 to 1.

    Notes
    -----
    About 120 us a decision with 20 arms. State: see `operators.fatigue`.
    """

    def __init__(
        self,
        pushes: Pushes,
        *,
        campaigns: CampaignTable,
        policies: PolicyTable,
        item_of: Callable[[str], Item | None],
        window_ms: int,
        top_explanations: int = 5,
        emitted: Emitted | None = None,
        apprentice_share: float = 1.0,
    ) -> None:
        self._pushes = pushes
        self._campaigns = campaigns
        self._policies = policies
        self._item_of = item_of
        self._window_ms = window_ms
        self._top = top_explanations
        self._emitted = emitted
        self._apprentice_share = apprentice_share

    def on_batch(self, batch: list[Ranked | Forget]) -> list[Decision | Standing]:
        """Return one decision for each ranked trigger, in order."""
        answers: list[Decision | Standing] = []
        decision: Decision | None = None
        for ranked in batch:
            if isinstance(ranked, Forget):
                self._pushes.delete(ranked.user_id)
                continue
            written = self._emitted.take(ranked.trigger) if self._emitted is not None else None
            if written is None:
                decision = self._decide(ranked)
                answers.append(decision)
            else:
                decision = written
                self._follow(written)
                answers.append(Standing(written))
            metrics.DECISIONS.labels(decision.outcome, decision.reason_codes[0]).inc()
        if decision is not None and self._policies.newest_ms:
            age_ms = decision.decided_at - self._policies.newest_ms
            metrics.POLICY_AGE_SECONDS.set(age_ms / 1_000)
        return answers

    def _follow(self, written: Decision) -> None:
        """Record the send of a decision as `_decide` did when it made it."""
        chosen = written.learning.action_set[written.learning.chosen].item_id
        if written.outcome in ("send", "defer") and chosen != NONE_ARM:
            self._pushes.get(written.user_id).record_send(written.delivery.send_after, chosen)

    def _decide(self, ranked: Ranked) -> Decision:
        trigger = ranked.trigger
        campaign = self._campaigns.get(ranked.campaign_id) if ranked.campaign_id else None
        sends = self._pushes.peek(trigger.user_id) or _EMPTY
        arm = self._campaigns.arm_of(trigger.user_id, campaign) if campaign else ""
        caps = self._campaigns.caps_at(trigger.time_ms)
        verdict = check(
            campaign,
            trigger.profile,
            trigger.engagement,
            sends,
            trigger.time_ms,
            arm=arm,
            caps=caps,
        )
        identity = decision_id(trigger, ranked.campaign_id)
        choice, content = Choice(), None
        if campaign is not None and verdict.outcome in ("send", "defer"):
            choice = self._choose(
                ranked,
                sends,
                caps=caps,
                arm=arm,
                identity=identity,
                send_after_ms=verdict.send_after,
            )
            verdict = _after(verdict, choice)
            if not choice.is_none:
                content = self._content(campaign, choice.item_id, trigger)
                self._pushes.get(trigger.user_id).record_send(verdict.send_after, choice.item_id)
        learning = self._learning(ranked, verdict, choice, arm)
        return Decision(
            decision_id=identity,
            trigger=TriggerRef(trigger.type, trigger.event_id),
            user_id=trigger.user_id,
            decided_at=trigger.time_ms,
            outcome=verdict.outcome,
            reason_codes=verdict.reasons,
            delivery=_delivery(campaign, trigger, verdict),
            content=content,
            learning=learning,
            explanation=choice.explanation,
        )

    def _choose(
        self,
        ranked: Ranked,
        sends: PushState,
        *,
        caps: Caps,
        arm: str,
        identity: str,
        send_after_ms: int,
    ) -> Choice:
        trigger, choice = ranked.trigger, Choice()
        keep = [
            k
            for k, candidate in enumerate(ranked.candidates)
            if item_fault(self._item_of(candidate.item_id), sends, caps, send_after_ms) is None
        ]
        if not keep:
            return choice
        candidates = [ranked.candidates[k] for k in keep]
        time_ms = trigger.time_ms
        counts = sends.item_fatigue([c.item_id for c in candidates], time_ms)
        arms = with_fatigue(ranked.arm_features[keep], *counts)  # (K, d_a)
        context = policy_context(
            trigger.context,
            trigger.type,
            sends.hours_since_push(time_ms),
            sends.pushes_since(time_ms, DAY_MS),
            sends.pushes_since(time_ms, 7 * DAY_MS),
            campaign_id=ranked.campaign_id,
        )
        x = design(context, arms)  # (K, D)
        policy = self._policies.policy(arm)
        seed = identity.encode()
        judged = policy.judge(x).with_none(self._policies.none_value(policy.policy_id, context))
        probabilities = policy.shares(judged, policy.knobs, seed)
        choice.chosen = sample(probabilities, seed)
        choice.actions = _actions(candidates, ranked.scores[keep], probabilities, loggable(arms))
        choice.propensity = float(probabilities[choice.chosen])
        choice.policy_id = policy.policy_id
        choice.is_exploration = choice.chosen != int(np.argmax(judged.values))
        choice.judged = Judgement(
            judged.values.tolist(),
            judged.spread.tolist(),
            dict(policy.knobs),
            self._policies.known(arm).learned,
        )
        choice.apprentice = self._watch(arm, x, context, identity)
        choice.context = loggable(context)
        choice.trial = _trial(ranked.tried, keep)
        if not choice.is_none:
            mean = self._policies.known(arm).posterior.mean
            shares = explain(x[choice.chosen], mean, self._top, self._policies.columns)
            choice.explanation = [Explanation(n, v, round(c, 6)) for n, v, c in shares]
        return choice

    def _watch(
        self,
        arm: str,
        x: NDArray[np.float64],
        context: NDArray[np.float64],
        identity: str,
    ) -> Apprentice | None:
        """Return what the apprentice would do with the rows `x`, (K, D)."""
        policy = self._policies.known(arm).apprentice
        if policy is None or not is_in_share(identity, policy.policy_id, self._apprentice_share):
            return None
        none = self._policies.none_value(policy.policy_id, context)
        judged = policy.judge(x).with_none(none)
        probabilities = policy.shares(judged, policy.knobs, identity.encode())
        value = round(float(probabilities @ judged.values), VALUE_DECIMALS)
        return Apprentice(policy.policy_id, probabilities.tolist(), value)

    def _content(self, campaign: Campaign, item_id: str, trigger: Trigger) -> Content | None:
        item = self._item_of(item_id)
        locale = trigger.profile.locale if trigger.profile else campaign.default_locale
        return None if item is None else render(campaign, item, locale, time_ms=trigger.time_ms)

    def _learning(self, ranked: Ranked, verdict: Verdict, choice: Choice, arm: str) -> Learning:
        campaign = self._campaigns.get(ranked.campaign_id)
        rewards = campaign.rewards if campaign is not None else None
        return Learning(
            policy_id=choice.policy_id,
            policy_version=self._policies.known(arm).version,
            model_version=ranked.model_version,
            feature_spec=self._policies.spec,
            campaign_id=ranked.campaign_id,
            arm=arm,
            context=choice.context,
            action_set=choice.actions,
            chosen=choice.chosen,
            propensity=choice.propensity,
            is_exploration=choice.is_exploration,
            reward_deadline=verdict.send_after + self._window_of(rewards),
            trial=choice.trial,
            judged=choice.judged,
            rewards=rewards,
            apprentice=choice.apprentice,
        )

    def _window_of(self, rewards: CampaignRewards | None) -> int:
        seconds = rewards.window_seconds if rewards is not None else None
        return self._window_ms if seconds is None else seconds * 1_000


def _after(verdict: Verdict, choice: Choice) -> Verdict:
    """Return the verdict once the policy has chosen."""
    if not choice.is_none:
        return verdict
    reason = POLICY_NONE if len(choice.actions) > 1 else NO_CANDIDATES
    return verdict._replace(outcome="suppress", reasons=[reason])


def _actions(
    candidates: list[Candidate],
    scores: NDArray[np.float32],
    probabilities: NDArray[np.float64],
    features: list[list[float]],
) -> list[Action]:
    rows = zip(candidates, scores.tolist(), probabilities.tolist(), features, strict=False)
    actions = [
        Action(candidate.item_id, candidate.source, round(score, 4), probability, columns)
        for candidate, score, probability, columns in rows
    ]
    actions.append(Action(NONE_ARM, "", 0.0, float(probabilities[-1]), []))
    return actions


def _trial(tried: Tried | None, keep: list[int]) -> Trial | None:
    if tried is None:
        return None
    scores = tried.scores[keep] if len(tried.scores) else tried.scores
    return Trial(tried.version, tried.stage, [round(score, 4) for score in scores.tolist()])


def _delivery(campaign: Campaign | None, trigger: Trigger, verdict: Verdict) -> Delivery:
    channel = None
    if campaign is not None and trigger.profile is not None:
        channel = choose_channel(campaign, trigger.profile)
    return Delivery(
        channel=channel or "any",
        send_after=verdict.send_after,
        expires_at=verdict.expires_at,
        priority=campaign.priority if campaign else "normal",
        collapse_key=collapse_key(campaign.campaign_id) if campaign else _NO_CAMPAIGN_KEY,
        dry_run=campaign.dry_run if campaign else False,
    )
