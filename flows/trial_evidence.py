"""The evidence of a trial: pushes with what became of them, from the topics.

Reads   push.decisions.v1 and push.feedback.v1, from where the trial's stage began.
Emits   arrays for `models.trial_verdict`, and its checks.
Owns    which decisions count: those whose window has closed, as `learn` rewards them.

Decisions carry all that is needed: who decided, the scores in the shadow, propensities. So the
verdict can be had anew by anybody who has the topics, or their archive.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from flows.learn import reward_rules
from flows.settings import Settings
from models.rollout import is_in_share, rank_correlation
from models.trial_verdict import (
    Check,
    Pushes,
    Shadowed,
    judge_canary,
    judge_shadow,
    softmax_weight,
    standardised,
)
from operators.kafka_tables import Reader
from operators.messages import NONE_ARM, CampaignRewards, Feedback, ModelTrial, Trial
from operators.rewards import OUTCOMES, UNDELIVERED, RewardRules

DECISIONS: Final = "push.decisions.v1"
FEEDBACK: Final = "push.feedback.v1"
JUDGED: Final = (DECISIONS, FEEDBACK)
_MOST: Final = 1_000_000  # decisions that are looked at, 0.5 kB each: more say no more
_POSITIVE: Final = frozenset(("opened", "converted"))


class _Action(msgspec.Struct, frozen=True, gc=False):
    item_id: str
    score: float
    probability: float


class _Learning(msgspec.Struct, frozen=True, gc=False):
    model_version: str
    action_set: list[_Action]
    chosen: int
    reward_deadline: int
    trial: Trial | None = None
    rewards: CampaignRewards | None = None


class _Delivery(msgspec.Struct, frozen=True, gc=False):
    dry_run: bool = False


class _Decided(msgspec.Struct, frozen=True, gc=False):
    """The part of a decision that tells of models."""

    decision_id: str
    user_id: str
    decided_at: int
    outcome: str
    delivery: _Delivery
    learning: _Learning


class _Push(NamedTuple):
    """A decision of the trial, before its feedback is known."""

    user_id: str
    deadline_ms: int
    is_of_trial: bool
    score: float  # z-scored, NaN: nothing was sent
    # Of the shadow:
    other: float = 0.0
    served_weight: float = 0.0
    weight: float = 0.0
    correlation: float = 0.0
    # Of what it earns:
    value: float = 0.0
    rewards: CampaignRewards | None = None


class Evidence:
    """Decisions of a trial's stage, and their feedback; `pushes` joins them.

    Parameters
    ----------
    trial
        What is judged.
    rules
        What outcomes are worth.
    """

    def __init__(self, trial: ModelTrial, rules: RewardRules) -> None:
        self._trial = trial
        self._rules = rules
        self._pushes: dict[str, _Push] = {}
        self._types: dict[str, set[str]] = {}
        self._newest_ms = 0

    def on_decision(self, value: bytes) -> None:
        """Take a decision as it stands in the topic."""
        decided = msgspec.json.decode(value, type=_Decided)
        self._newest_ms = max(self._newest_ms, decided.decided_at)
        learning = decided.learning
        if len(learning.action_set) < 2 or decided.delivery.dry_run:  # nothing was chosen among
            return
        is_none = learning.action_set[learning.chosen].item_id == NONE_ARM
        if not is_none and decided.outcome != "send":
            return
        push = self._shadowed(decided) if self._trial.stage == "shadow" else self._split(decided)
        if push is not None and len(self._pushes) < _MOST:
            self._pushes[decided.decision_id] = push._replace(rewards=learning.rewards)

    def on_feedback(self, value: bytes) -> None:
        """Take feedback as it stands in the topic, after all decisions."""
        feedback = msgspec.json.decode(value, type=Feedback)
        self._newest_ms = max(self._newest_ms, feedback.time_ms)
        if feedback.decision_id in self._pushes:
            self._types.setdefault(feedback.decision_id, set()).add(feedback.type)
            if feedback.type == "converted" and feedback.value is not None:
                push = self._pushes[feedback.decision_id]
                self._pushes[feedback.decision_id] = push._replace(value=feedback.value)

    def shadowed(self) -> Shadowed:
        """Return the pushes that the model on trial scored in the shadow."""
        kept = list(self._answered())
        columns = np.array([push[4:8] for push, _ in kept], np.float64).reshape(-1, 4).T
        return Shadowed(self._arrays(kept), *columns)

    def split(self) -> tuple[Pushes, Pushes]:
        """Return the decisions of the served model, and of the one in canary."""
        kept = list(self._answered())
        served = [one for one in kept if not one[0].is_of_trial]
        trial = [one for one in kept if one[0].is_of_trial]
        return self._arrays(served), self._arrays(trial)

    def _shadowed(self, decided: _Decided) -> _Push | None:
        learning = decided.learning
        trial, chosen = learning.trial, learning.chosen
        arms = [action for action in learning.action_set if action.item_id != NONE_ARM]
        if trial is None or trial.version != self._trial.version or chosen >= len(arms):
            return None
        if trial.stage != "shadow" or len(trial.scores) != len(arms) or len(arms) < 2:
            return None
        scores = np.array([action.score for action in arms])
        others = np.array(trial.scores)
        probabilities = np.array([action.probability for action in arms])
        return _Push(
            decided.user_id,
            learning.reward_deadline,
            False,
            float(standardised(scores)[chosen]),
            float(standardised(others)[chosen]),
            softmax_weight(scores, probabilities, chosen),
            softmax_weight(others, probabilities, chosen),
            rank_correlation(scores, others),
        )

    def _split(self, decided: _Decided) -> _Push | None:
        learning, version = decided.learning, self._trial.version
        is_of_trial = learning.model_version == version
        # A user of the trial whom the served model decided for, while a process had not taken it
        # up, belongs to neither side.
        if is_of_trial != is_in_share(decided.user_id, version, self._trial.share):
            return None
        arms = [action for action in learning.action_set if action.item_id != NONE_ARM]
        score = float("nan")
        if learning.chosen < len(arms):
            score = float(standardised(np.array([a.score for a in arms]))[learning.chosen])
        return _Push(decided.user_id, learning.reward_deadline, is_of_trial, score)

    def _answered(self) -> Iterator[tuple[_Push, set[str]]]:
        """Yield the decisions whose window has closed, with what came of them."""
        for decision_id, push in self._pushes.items():
            types = self._types.get(decision_id, set())
            is_undelivered = types.isdisjoint(OUTCOMES) and types & UNDELIVERED
            if push.deadline_ms <= self._newest_ms and not is_undelivered:
                yield push, types

    def _arrays(self, kept: list[tuple[_Push, set[str]]]) -> Pushes:
        numbers: dict[str, int] = {}
        users = [numbers.setdefault(push.user_id, len(numbers)) for push, _ in kept]
        scores = np.array([push.score for push, _ in kept], np.float64)
        worth = self._rules.worth
        rewards = np.array([worth(types, p.value, p.rewards) for p, types in kept], np.float64)
        return Pushes(
            users=np.array(users, np.int64),
            rewards=np.where(np.isnan(scores), 0.0, rewards),
            is_positive=np.array([bool(types & _POSITIVE) for _, types in kept], np.bool_),
            scores=scores,
        )


def judge_pushes(settings: Settings, trial: ModelTrial) -> list[Check]:
    """Read what the trial's stage has decided so far, and hold the model to the guard."""
    evidence = Evidence(trial, reward_rules(settings))
    for name, take in ((DECISIONS, evidence.on_decision), (FEEDBACK, evidence.on_feedback)):
        for value in _values(settings, name, trial.begins.get(name, [])):
            try:
                take(value)
            except msgspec.DecodeError:  # `learn` has made a dead letter of it
                continue
    bounds: dict[str, Any] = settings.models.model_dump(
        include={"min_pushes", "calibration_loss", "reward_loss"}
    )
    if trial.stage == "shadow":
        least = settings.models.min_correlation
        return judge_shadow(evidence.shadowed(), min_correlation=least, **bounds)
    return judge_canary(*evidence.split(), **bounds)


def _values(settings: Settings, name: str, begins: list[int]) -> Iterator[bytes]:
    topic = settings.kafka.topic(name)
    start = {(topic, number): offset for number, offset in enumerate(begins)}
    reader = Reader(settings.kafka.client(), [topic], start)
    try:
        for batch in reader:
            yield from (message.value for message in batch if message.value is not None)
    finally:
        reader.close()
