"""What travels between the steps of a flow: plain records, never on a topic.

Owns    the shapes that `operators.steps` hands from one pure class to the next.

A user's data enters by one source partition, and each entry carries the watermark of that
partition as it stood at that entry. A shard therefore sees the same sequence of timers and
entries whatever the batch sizes and however many workers: this is what replay rests on.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from operators.messages import (
    Decision,
    Event,
    Feedback,
    Item,
    TrialStage,
    TriggerType,
    UserProfile,
    UserSignal,
)


class RawMessage(NamedTuple):
    """A Kafka message as it came; `timestamp_ms` is the broker's, -1 where unknown."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int


class Forget(NamedTuple):
    """A user to drop: a tombstone of `push.users.v1`, an erasure, or idle for too long."""

    user_id: str
    shard: str = ""  # filled by the step that passes it on


Entry = Event | Feedback | UserProfile | Decision | UserSignal | Forget


class ShardBatch(NamedTuple):
    """Entries of one source partition for one shard, in partition order.

    `entries` pairs each entry with the partition's watermark at that entry; `watermark_ms` is
    the partition's watermark after the batch, and may have moved without any entry here.
    """

    shard: str
    partition: int
    watermark_ms: int
    entries: list[tuple[int, Entry]]


class History(NamedTuple):
    """A user's last items, oldest first; three lists of one length, at most 50."""

    item_ids: list[str]
    types: list[int]  # index into models.features.EVENT_TYPES
    time_s: list[int]  # event time, seconds


class Engagement(NamedTuple):
    """How a user took earlier pushes, from feedback."""

    opens: float  # decayed, half-life 7 days
    dismissals: float
    last_open_ms: int  # 0: never
    is_opted_out: bool


class FeatureRow(NamedTuple):
    """One user's features after a batch, for Redis."""

    user_id: str
    time_ms: int
    context: list[float]  # raw, in the order of models.features.CONTEXT


class Trigger(NamedTuple):
    """A reason to consider a push, with all that is known of the user at that moment."""

    type: TriggerType
    event_id: str
    user_id: str
    shard: str
    time_ms: int  # event time: the event's, or the due time of a timer
    context: list[float]  # raw, in the order of models.features.CONTEXT
    history: History
    cart: list[str]  # items now in the cart, oldest first
    bought: list[str]  # items bought lately, oldest first, at most 200
    category: str  # the session's main category or ""
    platform: str
    profile: UserProfile | None
    engagement: Engagement
    # What the user wrote, as int16, little-endian, shape (64,), in steps of 2^-11 (see
    # `models.neighbours`), of the encoder that the catalogue serves; b"": nothing.
    intent: bytes = b""  # of the session's searches
    taste: bytes = b""  # of all that was searched and commented, fading
    bought_s: Sequence[int] = ()  # event times of `bought`, seconds; 0 where it is not known
    about: Sequence[str] = ()  # item ids that the trigger is about: those that changed


class Candidate(NamedTuple):
    """An item we could push; `score` is the fused score, higher is better."""

    item_id: str
    source: str
    score: float


class Tried(NamedTuple):
    """What a model on trial had to do with an action set."""

    version: str
    stage: TrialStage
    scores: NDArray[np.float32]  # of shadow: its own, shape (K,); of canary: none, shape (0,)


class Ranked(NamedTuple):
    """A trigger with its action set, before the policy chooses. K counts arms without "none"."""

    trigger: Trigger
    campaign_id: str  # "": no campaign takes this trigger
    candidates: list[Candidate]  # at most K, best first
    scores: NDArray[np.float32]  # the student's, shape (K,)
    arm_features: NDArray[np.float32]  # shape (K, len(models.arms.ARM)), less push fatigue
    model_version: str
    tried: Tried | None = None


class Standing(NamedTuple):
    """A decision that was written before a crash, and stands in place of the replay's own."""

    decision: Decision


def learner_shard(partition: int, arm: str = "") -> str:
    """Return the learner of a partition's rewards, or of those of one experiment arm.

    >>> [arm_of(shard) for shard in (learner_shard(0), learner_shard(0, "random"))]
    ['', 'random']
    """
    return f"p{partition}/{arm}" if arm else f"p{partition}"


def arm_of(shard: str) -> str:
    """Return the experiment arm that a learner shard learns from alone; "": from all."""
    return shard.partition("/")[2]


class Reward(NamedTuple):
    """One thing to learn: features of the chosen arm and its reward, or a change of it."""

    shard: str  # the learner's shard
    decision_id: str
    x: NDArray[np.float64]  # shape (D,)
    reward: float  # the reward, or for a correction the new minus the old
    is_correction: bool
    time_ms: int  # when it became known
    # When the push was decided: all rewards of a push are weighed by it, quick ones as late ones.
    decided_ms: int = 0
    campaign_id: str = ""
    trigger: str = ""  # its type


class Interest(NamedTuple):
    """A user who showed interest in an item, or has no more of it."""

    item_id: str
    user_id: str
    time_ms: int
    is_over: bool  # bought, or put back


class ItemUpdate(NamedTuple):
    """An item as it is from now on."""

    item_id: str
    item: Item | None  # None: it was removed
    version: int  # the message's offset: rises with each change of an item
    time_ms: int  # the message's timestamp


class ItemSignal(NamedTuple):
    """One interaction with an item, and what the user had beside it."""

    item_id: str
    type: str  # an EventType, "push", "open", or "together": seen beside another item
    time_ms: int
    country: str
    value: float  # the event's; of "together" the weight of the pair
    together: tuple[str, ...]  # items of the same session or basket, newest first
    since_ms: int = 0  # of a purchase: since the user's last one of this item; 0: none known
