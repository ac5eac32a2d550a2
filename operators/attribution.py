"""Attribution: decisions joined with their feedback, in event time, into rewards to learn.

Reads   `Decision` and `Feedback` of one shard, each with its partition and that partition's
        watermark.
Emits   `Reward` for the learner and `ItemSignal` ("push", "open") for item statistics.
Owns    when a decision counts as answered, and what is learned of it then.

A push is worth the sum of what its user did with it, each outcome once (`operators.rewards`). The
first outcome is learned at once. If none has come when the window closes, `no_response` is
learned; what comes later becomes a correction, the difference to what was learned. So whatever
the order of messages, the rewards of a decision add up to its worth.

Where delays are estimated, silence is learned earlier: at the age that responses have on average,
so that young pushes are not known by their responses alone (`models.delay`). Each push keeps the
age that held when it was sent.

A push that never reached anybody (token_invalid, expired) teaches nothing: no reward, or back to
0 if the window had closed before that was known.

What time will do follows from a user's state alone (`operators.attribution_timers`).
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final, Protocol

import numpy as np

from models.arms import D
from models.delay import add_delay, mean_delay_ms
from operators.attribution_state import (
    NO_USER,
    AttributionState,
    MismatchedError,
    Pending,
    pending_of,
)
from operators.attribution_timers import AttributionTimers, is_armed
from operators.hops import ItemSignal, Reward, learner_shard
from operators.messages import Decision, Feedback
from operators.rewards import OUTCOMES, UNDELIVERED, RewardRules

Output = Reward | ItemSignal


class States(Protocol):
    """The shard's users: `operators.state.Shard`, or `operators.shards.DictShard` in memory."""

    def get(self, key: str, /) -> AttributionState: ...  # noqa: D102
    def peek(self, key: str, /) -> AttributionState | None: ...  # noqa: D102
    def delete(self, key: str, /) -> None: ...  # noqa: D102
    def scan_raw(self) -> Iterator[tuple[str, bytes]]: ...  # noqa: D102


class Attribution:
    """The rewards of one shard's users.

    Parameters
    ----------
    states
        The shard's users; timers are rebuilt from its `scan_raw`.
    rules
        What outcomes are worth, and how long each counts. Feedback waits for its decision for
        `rules.window_ms`; a decision's own window ends at its `reward_deadline`.
    estimates_delays
        Learn silence at the mean delay of responses; else when the window closes.
    separate_arms
        Have each experiment arm learn from its own pushes alone.
    idle_after_ms
        How long a user's recent items are kept after their last interaction. Like the other times,
        a change holds at once for what comes, and from its next timer on for what waits.
    buyer_idle_after_ms
        The same for a user who has bought something: long enough to see it bought again.
    feature_spec
        Learn only from decisions with this `learning.feature_spec`; "" checks sizes alone.
    n_columns
        Of the rows of these.

    Attributes
    ----------
    counts
        Messages that taught nothing, by reason: "duplicate", "orphan" (feedback of no decision
        that is known), "stale" (a decision older than all corrections), "mismatched" (columns of
        another policy spec), "crowded_out" (a decision settled early, the user had 64).

    Notes
    -----
    Before each entry call `advance` with the entry's watermark, then `on_decision` or
    `on_feedback` with the same: then the rewards do not depend on batch sizes. The watermark must
    not run ahead of the decisions topic, or decisions come in stale.

    Memory beside the states: at most two timers a user, and those overtaken, 75 bytes each.

    Examples
    --------
    >>> from models.arms import N_ARM, N_POLICY_CONTEXT
    >>> import msgspec
    >>> from operators.attribution_state import decode_state, encode_state, new_state
    >>> from operators.shards import DictShard
    >>> shard = DictShard("07", encode=encode_state, decode=decode_state, new=new_state)
    >>> rules = RewardRules(opened=1.0, clicked=0.5, converted=1.0, dismissed=-0.3,
    ...     opted_out=-5.0, no_response=-0.05, window_ms=1_000)
    >>> attribution = Attribution(shard, rules)
    >>> day = 1_700_000_000_000
    >>> sent = msgspec.convert(dict(
    ...     decision_id="d1", user_id="u1", decided_at=day, outcome="send", reason_codes=[],
    ...     trigger=dict(type="idle", event_id="e1"), content=None, explanation=[],
    ...     delivery=dict(channel="any", send_after=day, expires_at=day, priority="normal",
    ...         collapse_key="c"),
    ...     learning=dict(policy_id="", policy_version="", model_version="", feature_spec="",
    ...         campaign_id="", arm="policy", context=[0.0] * N_POLICY_CONTEXT,
    ...         action_set=[dict(item_id="i1", source="trend", score=0.0, probability=1.0,
    ...             features=[0.0] * N_ARM)],
    ...         chosen=0, propensity=1.0, is_exploration=False, reward_deadline=day + 1_000),
    ... ), Decision)
    >>> [signal.type for signal in attribution.on_decision(sent, 0, day)]
    ['push']
    >>> [reward.reward for reward in attribution.advance(0, day + 1_000)]  # silence
    [-0.05]
    >>> late = Feedback(feedback_id="f1", decision_id="d1", user_id="u1", type="opened",
    ...     time_ms=day + 2_000)
    >>> reward, signal = attribution.on_feedback(late, 0, day + 2_000)
    >>> reward.reward, reward.is_correction, signal.type
    (1.05, True, 'open')
    """

    MAX_PENDING: Final = 64
    MAX_EARLY: Final = 32

    def __init__(
        self,
        states: States,
        rules: RewardRules,
        *,
        estimates_delays: bool = False,
        separate_arms: bool = False,
        idle_after_ms: int = 30 * 86_400_000,
        buyer_idle_after_ms: int = 180 * 86_400_000,
        feature_spec: str = "",
        n_columns: int = D,
    ) -> None:
        self._states = states
        self._rules = rules
        self._estimates_delays = estimates_delays
        self._separate_arms = separate_arms
        self._feature_spec, self._n_columns = feature_spec, n_columns
        self.counts: Counter[str] = Counter()
        self._timers = AttributionTimers(
            states.scan_raw(),
            rules,
            idle_after_ms=idle_after_ms,
            buyer_idle_after_ms=buyer_idle_after_ms,
        )

    def interaction(self, user_id: str, partition: int, time_ms: int) -> AttributionState:
        """Return the user's state for an event at `time_ms`, to be changed in place.

        The caller owns `recent`, `recent_country` and `bought`; they are cleared once the user is
        idle.
        """
        state = self._state(user_id, partition)
        state.last_ms = max(state.last_ms, time_ms)
        if not state.has_idle_timer:
            state.has_idle_timer = True
            self._timers.arm(user_id, state)
        return state

    def on_decision(self, decision: Decision, partition: int, watermark_ms: int) -> list[Output]:
        """Take a decision; only a push that was sent can earn a reward."""
        try:
            pending = pending_of(decision, self._feature_spec, separate_arms=self._separate_arms)
        except MismatchedError:
            return self._ignore("mismatched")
        if pending is None:
            return []
        pending.silence_ms = self._silence_ms(pending)
        decision_id, user_id = decision.decision_id, decision.user_id
        if self._timers.ends_ms(pending) <= watermark_ms:
            return self._ignore("stale")
        state = self._state(user_id, partition)
        if decision_id in state.pending:
            return self._ignore("duplicate")
        out = self._make_room(state, partition)
        state.pending[decision_id] = pending
        self._timers.arm_soon(user_id, state, self._timers.due_of(pending))
        out.append(self._signal(state, pending, "push", decision.decided_at))
        # In order of event time, so that the order of arrival leaves no trace.
        early = state.early.pop(decision_id, [])
        for feedback in sorted(early, key=lambda f: (f.time_ms, f.feedback_id)):
            out += self._apply(state, pending, feedback, partition)
        return out

    def on_feedback(self, feedback: Feedback, partition: int, watermark_ms: int) -> list[Output]:
        """Take feedback; "accepted" and "delivered" change no reward."""
        if feedback.type not in OUTCOMES and feedback.type not in UNDELIVERED:
            return []
        known = self._states.peek(feedback.user_id)
        if known is None or feedback.decision_id not in known.pending:
            return self._wait(feedback, partition, watermark_ms)
        state = self._state(feedback.user_id, partition)
        return self._apply(state, state.pending[feedback.decision_id], feedback, partition)

    def advance(self, partition: int, watermark_ms: int) -> list[Output]:
        """Fire the partition's timers up to its watermark, in order of event time."""
        out: list[Output] = []
        timers = self._timers.of(partition)
        while timers.first_ms <= watermark_ms:
            due_ms, user_id = timers.pop()
            out += self._fire(user_id, due_ms, partition)
        return out

    def forget(self, user_id: str) -> None:
        """Erase a user; what they taught the learner before stays, as sums over all users."""
        self._states.delete(user_id)
        self._timers.drop(user_id)

    def _silence_ms(self, pending: Pending) -> int:
        """Return when silence is to be learned, 0: when the window closes."""
        known = self._states.peek(NO_USER) if self._estimates_delays else None
        delay_ms = mean_delay_ms(known.delays, pending.channel) if known is not None else None
        if delay_ms is None:
            return 0
        return min(self._timers.sent_ms(pending) + delay_ms, pending.deadline_ms)

    def _make_room(self, state: AttributionState, partition: int) -> list[Output]:
        """Settle the oldest push of a user who has too many, as if its window closed now."""
        if len(state.pending) < self.MAX_PENDING:
            return []
        self.counts["crowded_out"] += 1
        oldest = min(state.pending, key=lambda key: (state.pending[key].deadline_ms, key))
        pending = state.pending.pop(oldest)
        pending.is_closed = True
        return self._settle(oldest, pending, partition, pending.deadline_ms)

    def _wait(self, feedback: Feedback, partition: int, watermark_ms: int) -> list[Output]:
        """Keep feedback until its decision comes, for one window at most."""
        due_ms = self._timers.gives_up_ms(feedback)
        if due_ms <= watermark_ms:
            return self._ignore("orphan")
        state = self._state(feedback.user_id, partition)
        waiting = state.early.setdefault(feedback.decision_id, [])
        if any(_is_repeat(feedback, f.type, f.feedback_id) for f in waiting):
            return self._ignore("duplicate")
        waiting.append(feedback)
        self._timers.arm_soon(feedback.user_id, state, due_ms)
        if len(state.early) > self.MAX_EARLY:
            first = next(iter(state.early))
            self.counts["orphan"] += len(state.early.pop(first))
        return []

    def _apply(
        self, state: AttributionState, pending: Pending, feedback: Feedback, partition: int
    ) -> list[Output]:
        credit_ms = self._rules.credit_of(feedback.type, pending.rewards)
        if feedback.time_ms >= self._timers.sent_ms(pending) + credit_ms:
            return self._ignore("orphan")
        seen = zip(pending.types, pending.feedback_ids, strict=True)
        if any(_is_repeat(feedback, kind, feedback_id) for kind, feedback_id in seen):
            return self._ignore("duplicate")
        pending.types.append(feedback.type)
        pending.feedback_ids.append(feedback.feedback_id)
        if feedback.type in OUTCOMES:
            pending.first_ms = min(pending.first_ms or feedback.time_ms, feedback.time_ms)
        if feedback.type == "converted" and feedback.value is not None:
            pending.value = feedback.value
        out = self._settle(feedback.decision_id, pending, partition, feedback.time_ms)
        if feedback.type == "opened":
            out.append(self._signal(state, pending, "open", feedback.time_ms))
        return out

    def _settle(
        self, decision_id: str, pending: Pending, partition: int, time_ms: int
    ) -> list[Output]:
        """Emit what lies between a push's worth and what was learned of it."""
        worth = self._worth_of(pending)
        if worth is None or worth == pending.learned:
            return []
        is_correction = pending.learned is not None
        reward = worth - (pending.learned or 0.0)
        pending.learned = worth
        x = np.frombuffer(pending.x)  # (D,)
        if x.shape != (self._n_columns,):  # kept through an upgrade that changed the columns
            return self._ignore("mismatched")
        learned = Reward(
            learner_shard(partition, pending.arm),
            decision_id,
            x,
            reward,
            is_correction,
            time_ms,
            decided_ms=pending.decided_ms or self._timers.sent_ms(pending),
            campaign_id=pending.campaign_id,
            trigger=pending.trigger,
        )
        return [learned]

    def _worth_of(self, pending: Pending) -> float | None:
        """Return a push's reward by all that is known, or None if there is none to learn yet."""
        is_answered = any(kind in OUTCOMES for kind in pending.types)
        if not is_answered and not UNDELIVERED.isdisjoint(pending.types):
            return None if pending.learned is None else 0.0
        if is_answered or pending.is_closed:
            return self._rules.worth(pending.types, pending.value, pending.rewards)
        return None

    def _fire(self, user_id: str, due_ms: int, partition: int) -> list[Output]:
        """Do what is due for a user at an instant of an armed timer, and arm the next."""
        known = self._states.peek(user_id)
        if known is None or known.partition != partition:
            return []
        if is_armed(known) and due_ms not in (known.soon_ms, known.later_ms):
            return []  # overtaken
        state = self._states.get(user_id)
        out = self._close_windows(state, due_ms, partition)
        self._forget_pushes(state, due_ms)
        self._give_up(state, due_ms)
        if 0 < self._timers.idle_ms(state) <= due_ms:
            state.has_idle_timer = False
            state.recent.clear()
            state.bought.clear()
            state.seen.clear()
        if state.pending or state.early or state.has_idle_timer:
            self._timers.arm_beyond(user_id, state, due_ms)
        else:
            self._states.delete(user_id)
        return out

    def _close_windows(self, state: AttributionState, due_ms: int, partition: int) -> list[Output]:
        out: list[Output] = []
        pending, due_of = state.pending, self._timers.due_of
        waiting = [(due_of(push), key) for key, push in pending.items() if not push.is_closed]
        for silence_ms, key in sorted(waiting):
            if silence_ms <= due_ms:
                pending[key].is_closed = True
                out += self._settle(key, pending[key], partition, silence_ms)
        for _, push in sorted(pending.items()):
            if not push.is_matured and push.deadline_ms <= due_ms:
                push.is_matured = True
                self._note_delay(push)
        return out

    def _note_delay(self, push: Pending) -> None:
        """Learn from a push whose window has closed how long its response took."""
        if self._estimates_delays and 0 < push.first_ms < push.deadline_ms:
            delay_ms = max(push.first_ms - self._timers.sent_ms(push), 0)
            add_delay(self._states.get(NO_USER).delays, push.channel, delay_ms)

    def _forget_pushes(self, state: AttributionState, due_ms: int) -> None:
        """Drop pushes that take no more corrections."""
        over = [key for key, push in state.pending.items() if self._timers.due_of(push) <= due_ms]
        for key in over:
            del state.pending[key]

    def _give_up(self, state: AttributionState, due_ms: int) -> None:
        """Drop feedback whose decision did not come within the window."""
        gives_up_ms = self._timers.gives_up_ms
        for key, waiting in list(state.early.items()):
            kept = [feedback for feedback in waiting if gives_up_ms(feedback) > due_ms]
            if len(kept) < len(waiting):
                self.counts["orphan"] += len(waiting) - len(kept)
                del state.early[key]
                if kept:
                    state.early[key] = kept

    def _signal(
        self, state: AttributionState, pending: Pending, kind: str, time_ms: int
    ) -> ItemSignal:
        return ItemSignal(pending.item_id, kind, time_ms, state.recent_country, 1.0, ())

    def _state(self, user_id: str, partition: int) -> AttributionState:
        state = self._states.get(user_id)
        if state.partition != partition:  # new, or the topic has grown and the user moved
            state.partition = partition
            state.soon_ms = state.later_ms = 0
        if not is_armed(state):  # for these, and for one that version 1 wrote
            self._timers.arm(user_id, state)
        return state

    def _ignore(self, reason: str) -> list[Output]:
        self.counts[reason] += 1
        return []


def _is_repeat(feedback: Feedback, kind: str, feedback_id: str) -> bool:
    return feedback.type == kind or feedback.feedback_id == feedback_id
