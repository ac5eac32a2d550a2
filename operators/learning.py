"""Learning: what feedback is worth, and the learner that is told.

Reads   events, decisions and feedback of one shard; rewards of one learner shard.
Emits   rewards and item signals; the learner's statistics as a row of `push.policy.v1`.
Owns    the order between attribution and the tracking of items within a user's state, and when
        a learner's row is due.
"""

from typing import Final

from models.arms import policy_spec_hash
from models.learner import RewardLearner, SnapshotError
from models.posterior import pack_lower, pack_vector
from operators import metrics
from operators.attribution import Attribution
from operators.duplicates import is_repeat
from operators.hops import Forget, ItemSignal, Reward, ShardBatch
from operators.item_stats import InteractionTracker, ItemStatsShard, fan_out, since_bought
from operators.messages import Decision, Event, Feedback, ItemStats, PolicyShard
from operators.packed import Versions

_DAY_MS: Final = 86_400_000
# A newer release's learner stops the flow: to begin anew in its place would lose what it knows.
_LEARNERS = Versions("learner", {1: RewardLearner.restore})


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

    def __init__(self, state: tuple[str, int, bytes] | None = None) -> None:
        self._shard, self._time_ms, learner = state or ("", 0, b"")
        self._learner = _restored(learner)
        self._learned = metrics.REWARDS.labels("reward")
        self._corrected = metrics.REWARDS.labels("correction")

    def on_batch(self, rewards: list[Reward]) -> None:
        """Learn the rewards, one after another."""
        learner = self._learner
        for reward in rewards:
            self._shard = reward.shard
            self._time_ms = max(self._time_ms, reward.time_ms)
            if reward.is_correction:
                learner.correct(reward.x, reward.reward)
                self._corrected.inc()
            else:
                learner.learn(reward.x, reward.reward)
                self._learned.inc()

    def row(self) -> PolicyShard:
        """Return the statistics as they are now."""
        statistics = self._learner.statistics()
        return PolicyShard(
            shard=self._shard,
            policy_id="linear",
            feature_spec=policy_spec_hash(),
            version=self._learner.version,
            n_rewards=statistics.n,
            dim=len(statistics.moment),
            time_ms=self._time_ms,
            precision=pack_lower(statistics.precision),
            moment=pack_vector(statistics.moment),
        )

    def snapshot(self) -> tuple[str, int, bytes]:
        """Return the state: immutable, 14.2 KB at D = 58."""
        return self._shard, self._time_ms, self._learner.snapshot()


def _restored(state: bytes) -> RewardLearner:
    """Return the learner of a snapshot; a new one where a release has changed the columns."""
    if not state:
        return RewardLearner()
    try:
        return _LEARNERS.read(state)
    except SnapshotError:
        metrics.FALLBACKS.labels("learner_spec").inc()
        return RewardLearner()
