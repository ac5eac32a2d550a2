"""Learning: what feedback is worth, and the learner that is told.

Reads   events, decisions and feedback of one shard; rewards of one learner shard.
Emits   rewards and item signals; the learner's statistics as a row of `push.policy.v1`.
Owns    the order between attribution and the tracking of items within a user's state, and when
        a learner's row is due.
"""

from typing import Any, Final

import msgspec

from models.drift import Alarm, DriftWatches
from models.learner import SnapshotError
from models.learners import Learner, LearnerKind
from models.posterior import pack_lower, pack_vector
from operators import metrics
from operators.attribution import Attribution
from operators.duplicates import is_repeat
from operators.hops import Forget, ItemSignal, Reward, ShardBatch
from operators.item_stats import InteractionTracker, ItemStatsShard, fan_out, since_bought
from operators.messages import Decision, DriftAlarm, Event, Feedback, ItemStats, PolicyShard
from operators.packed import Versions

_DAY_MS: Final = 86_400_000
_LINEAR: Final = LearnerKind()
MAX_ALARMS: Final = 8  # that a row tells of


class LearningUsers:
    """The users of one shard, as `learn` sees them.

    Parameters
    ----------
    attribution
        Joins decisions with feedback; owns the users' state.
    tracker
        Sees which items are used together.
    """

    def __init__(self, attribution: Attribution, tracker: InteractionTracker) -> None:
        self._attribution = attribution
        self._tracker = tracker

    def on_batch(self, batches: list[ShardBatch]) -> list[Reward | ItemSignal]:
        """Fold the batches in; time passes for each entry as it did for its partition."""
        attribution = self._attribution
        out: list[Reward | ItemSignal] = []
        for batch in batches:
            partition = batch.partition
            for watermark_ms, entry in batch.entries:
                out += attribution.advance(partition, watermark_ms)
                if isinstance(entry, Event):
                    out += self._on_event(entry, partition)
                elif isinstance(entry, Decision):
                    out += attribution.on_decision(entry, partition, watermark_ms)
                elif isinstance(entry, Feedback):
                    out += attribution.on_feedback(entry, partition, watermark_ms)
                elif isinstance(entry, Forget):
                    attribution.forget(entry.user_id)
            out += attribution.advance(partition, batch.watermark_ms)
        for reason, count in attribution.counts.items():
            metrics.FEEDBACK_IGNORED.labels(reason).inc(count)
        attribution.counts.clear()
        return out

    def _on_event(self, event: Event, partition: int) -> list[ItemSignal]:
        if event.item_id is None:
            return []
        state = self._attribution.interaction(event.user_id, partition, event.time_ms)
        if is_repeat(state.seen, event.event_id):
            metrics.DUPLICATES.inc()
            return []
        signal = self._tracker.observe(state.recent, event)
        if signal is None:
            return []
        return fan_out(signal._replace(since_ms=since_bought(state.bought, event)))


class LearningItems:
    """The items of one shard, told of together.

    Parameters
    ----------
    stats
        Gathers signals.
    keep_ms
        An item without a signal for so long is dropped, event time.

    Examples
    --------
    >>> from operators.item_stats import decode_state, encode_state, new_state
    >>> from operators.shards import DictShard
    >>> states = DictShard("00", encode=encode_state, decode=decode_state, new=new_state)
    >>> items = LearningItems(ItemStatsShard(states), keep_ms=10 * _DAY_MS)
    >>> items.on_batch([ItemSignal("a", "view", 1_700_000_000_000, "", 0.0, ())])
    ()
    >>> [(item_id, row is None) for item_id, row in items.publish()]
    [('a', False)]
    >>> items.on_batch([ItemSignal("b", "view", 1_701_000_000_000, "", 0.0, ())])
    ()
    >>> [(item_id, row is None) for item_id, row in items.publish()]  # "a" is 11 days old
    [('b', False), ('a', True)]
    """

    def __init__(self, stats: ItemStatsShard, *, keep_ms: int) -> None:
        self._stats = stats
        self._keep_ms = keep_ms
        self._newest_ms = self._swept_ms = 0

    def on_batch(self, signals: list[ItemSignal]) -> tuple[()]:
        """Gather; nothing follows at once."""
        for signal in signals:
            self._stats.on_signal(signal)
            self._newest_ms = max(self._newest_ms, signal.time_ms)
        return ()

    def mark_all(self) -> None:
        """Make the next `publish` give out every item."""
        self._stats.mark_all()

    def publish(self) -> list[tuple[str, ItemStats | None]]:
        """Return what has changed since the last call, by item_id; None for a dropped item."""
        rows: list[tuple[str, ItemStats | None]] = [
            (row.item_id, row) for row in self._stats.dirty()
        ]
        if self._newest_ms - self._swept_ms >= _DAY_MS:
            self._swept_ms = self._newest_ms
            rows += [(item, None) for item in self._stats.sweep(self._newest_ms - self._keep_ms)]
        return rows


class LearnerShard:
    """One learner, and its row for `push.policy.v1`.

    Parameters
    ----------
    state
        A value from `snapshot`, or None for a learner that knows nothing.
    kind
        The learner that the policy goes by. Rewards are weighed by when their push was decided.
    drift_keeps
        When the learner's errors drift in any segment, what it knows is made to count for so many
        rewards, if for more; 0: drift is told of and changes nothing.

    Notes
    -----
    Each shard watches its own rewards and discounts its own sums, at the reward that tells. Shards
    need not agree: a merge adds up what each one's rewards still count for. A correction is not
    watched; what comes late of a response is late before and after a drift.

    Examples
    --------
    >>> import numpy as np
    >>> from models.arms import D
    >>> shard = LearnerShard()
    >>> shard.on_batch([Reward("p0", "d1", np.ones(D), 1.0, False, 1_700_000_000_000)])
    >>> row = shard.row()
    >>> row.shard, row.n_rewards, row.time_ms
    ('p0', 1, 1700000000000)
    >>> LearnerShard(shard.snapshot()).row() == row
    True
    """

    def __init__(
        self,
        state: tuple[Any, ...] | None = None,
        *,
        kind: LearnerKind = _LINEAR,
        drift_keeps: int = 0,
    ) -> None:
        # Releases that did not watch for drift left three parts.
        self._shard, self._time_ms, learner, *watched = state or ("", 0, b"")
        self._kind, self._learner = kind, _restored(learner, kind)
        self._drift_keeps = drift_keeps
        self._watches, self._alarms = _watched(watched[0]) if watched else (DriftWatches(), [])
        self._learned = metrics.REWARDS.labels("reward")
        self._corrected = metrics.REWARDS.labels("correction")

    def on_batch(self, rewards: list[Reward]) -> None:
        """Learn the rewards, one after another."""
        learner = self._learner
        for reward in rewards:
            self._shard = reward.shard
            self._time_ms = max(self._time_ms, reward.time_ms)
            if reward.is_correction:
                learner.correct(reward.x, reward.reward, reward.decided_ms)
                self._corrected.inc()
            else:
                self._watch(reward)
                learner.learn(reward.x, reward.reward, reward.decided_ms)
                self._learned.inc()

    def _watch(self, reward: Reward) -> None:
        """Hold a reward against what was expected of it; forget, where errors have drifted."""
        if not reward.campaign_id:  # of a push that an older release took
            return
        # Rounded: after a restart the last bits of what is foretold differ.
        error = round(reward.reward - self._learner.predict(reward.x), 9)
        found: list[Alarm] = []
        for segment in (f"campaign:{reward.campaign_id}", f"trigger:{reward.trigger}"):
            found += self._watches.update(
                segment, reward.reward, error=error, time_ms=reward.time_ms
            )
        for alarm in found:
            metrics.DRIFT_ALARMS.labels(alarm.kind).inc()
        self._alarms = [*self._alarms, *found][-MAX_ALARMS:]
        if self._drift_keeps and any(alarm.kind == "error" for alarm in found):
            if self._learner.weight > self._drift_keeps:
                self._learner.discount(self._drift_keeps / self._learner.weight)
            self._watches.settle()

    def row(self) -> PolicyShard:
        """Return the statistics as they are now."""
        statistics = self._learner.statistics()
        return PolicyShard(
            shard=self._shard,
            policy_id=self._kind.name,
            feature_spec=self._kind.spec,
            version=self._learner.version,
            n_rewards=statistics.n,
            dim=len(statistics.moment),
            time_ms=self._time_ms,
            precision=pack_lower(statistics.precision),
            moment=pack_vector(statistics.moment),
            forgotten=statistics.forgotten,
            newest_ms=statistics.newest_ms,
            half_life_ms=statistics.half_life_ms,
            alarms=[DriftAlarm(*msgspec.structs.astuple(alarm)) for alarm in self._alarms],
        )

    def snapshot(self) -> tuple[str, int, bytes, bytes]:
        """Return the state: immutable, 14.2 KB at D = 58, and 400 bytes a segment watched."""
        watched = msgspec.msgpack.encode((self._watches.snapshot(), self._alarms))
        return self._shard, self._time_ms, self._learner.snapshot(), watched


def _watched(state: bytes) -> tuple[DriftWatches, list[Alarm]]:
    watches, alarms = msgspec.msgpack.decode(state, type=tuple[bytes, list[Alarm]])
    return DriftWatches(watches), alarms


def _restored(state: bytes, kind: LearnerKind) -> Learner:
    """Return the learner of a snapshot; a new one where columns or learner have changed."""
    if not state:
        return kind.new()
    if kind.is_of_another(state):
        metrics.FALLBACKS.labels("learner_kind").inc()
        return kind.new()
    try:
        # A newer release's learner stops the flow: to begin anew would lose what it knows.
        return Versions("learner", dict.fromkeys(kind.formats, kind.restore)).read(state)
    except SnapshotError:
        metrics.FALLBACKS.labels("learner_spec").inc()
        return kind.new()
