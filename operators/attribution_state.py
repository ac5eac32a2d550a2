"""Attribution's state: what `learn` keeps of one user, and its bytes.

Reads   a `Decision`, for what is kept of a push.
Owns    the fields and their order, the versions of the bytes, and the bounds of every list.
"""

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.arms import LIMIT, design
from operators.messages import NONE_ARM, CampaignRewards, Decision, Feedback
from operators.packed import HEAD_BYTES, Armed, Versions, head

# 1 had no head, and its timers were all made anew; 2 did not know what its user had bought.
STATE_VERSION: Final = 3
# A deadline further off is taken as this: FCM keeps a message 4 weeks, and a week more.
MAX_WINDOW_MS: Final = 35 * 86_400_000
NO_USER: Final = ""  # its key holds what is known of the shard's users together


class Pending(msgspec.Struct, array_like=True):
    """A push whose worth may still change: about 550 bytes."""

    item_id: str
    deadline_ms: int
    x: bytes  # row of models.arms.design, float64 (D,)
    learned: float | None = None  # sum of the rewards emitted; None: none yet
    is_closed: bool = False  # silence counts
    types: list[str] = []  # feedback applied, one of each type
    feedback_ids: list[str] = []
    # Nothing below was kept by releases before the one that learned to forget.
    decided_ms: int = 0
    silence_ms: int = 0  # when silence counts; 0: when the window closes
    is_matured: bool = False  # the window has closed
    first_ms: int = 0  # the first response; 0: none
    value: float = 0.0  # of the conversion
    channel: str = ""
    campaign_id: str = ""
    trigger: str = ""  # its type
    rewards: CampaignRewards | None = None  # in place of the settings'
    arm: str = ""  # that learns from it alone; "": all do


class MismatchedError(ValueError):
    """A decision by columns that are not ours, or by none of its actions."""


def pending_of(
    decision: Decision, feature_spec: str = "", *, separate_arms: bool = False
) -> Pending | None:
    """Return what is kept of a decision's push, or None if it sent nothing.

    Parameters
    ----------
    feature_spec
        That the decision must have been made by; "" checks sizes alone.
    separate_arms
        Note the experiment arm, for only that one to learn from it.

    Raises
    ------
    MismatchedError
        For a push that nothing can be learned from.
    """
    learning = decision.learning
    if decision.outcome != "send" or decision.delivery.dry_run:
        return None
    if not 0 <= learning.chosen < len(learning.action_set):
        raise MismatchedError(f"action {learning.chosen} of {len(learning.action_set)}")
    action = learning.action_set[learning.chosen]
    if action.item_id == NONE_ARM:
        return None
    if feature_spec not in ("", learning.feature_spec):
        raise MismatchedError(f"columns of {learning.feature_spec}, not of {feature_spec}")
    return Pending(
        action.item_id,
        min(learning.reward_deadline, decision.decided_at + MAX_WINDOW_MS),
        _row(learning.context, action.features),
        decided_ms=decision.decided_at,
        channel=decision.delivery.channel,
        campaign_id=learning.campaign_id,
        trigger=decision.trigger.type,
        rewards=learning.rewards,
        arm=learning.arm if separate_arms else "",
    )


def _row(context: list[float], features: list[float]) -> bytes:
    """Return the row to learn, float64 (D,)."""
    try:
        x: NDArray[np.float64] = design(context, [features])[0]
    except ValueError as error:
        raise MismatchedError(str(error)) from error
    # No column of ours leaves LIMIT, no cross its square; a larger one would own the sums.
    if not np.abs(x).max() <= LIMIT * LIMIT:
        raise MismatchedError("a column beyond the bounds of ours")
    return x.tobytes()


class AttributionState(msgspec.Struct, array_like=True):
    """What `learn` keeps of one user.

    At most 64 pending pushes, 32 decisions' early feedback and 32 ids of events; `recent` and
    `bought` are bounded by `operators.item_stats`, which fills them. Below 50 KB, and about 1 KB
    for a usual user. Fields are stored by position: append only, with a default.

    Examples
    --------
    >>> state = AttributionState(recent=[("i1", 5)])
    >>> decode_state(encode_state(state)) == state
    True
    """

    partition: int = 0  # the user's, to find the timers' heap again
    pending: dict[str, Pending] = {}  # by decision_id, oldest first
    early: dict[str, list[Feedback]] = {}  # feedback that came before its decision
    recent: list[tuple[str, int]] = []  # (item_id, ms) of late, for what goes together
    recent_country: str = ""
    last_ms: int = 0  # newest interaction
    has_idle_timer: bool = False  # there are items to drop once the user is idle
    # Armed timers, 0: none. Both are 0 in a state that version 1 wrote, whatever waits in it.
    soon_ms: int = 0  # the first that a push or early feedback waits for
    later_ms: int = 0  # idle, as of some interaction
    seen: bytearray = msgspec.field(default_factory=bytearray)  # of `operators.duplicates`
    bought: dict[str, int] = {}  # item_id -> when it was last bought, ms; of `operators.item_stats`
    delays: dict[str, tuple[float, float]] = {}  # of `models.delay`, in the state of NO_USER alone


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AttributionState)
_versions = Versions(
    "attribution",
    {
        1: lambda packed: _decoder.decode(memoryview(packed)[1:]),
        2: lambda packed: _decoder.decode(memoryview(packed)[HEAD_BYTES:]),
        STATE_VERSION: lambda packed: _decoder.decode(memoryview(packed)[HEAD_BYTES:]),
    },
)


def new_state(user_id: str) -> AttributionState:
    """Return the state of a user not seen before; `user_id` is not kept in it."""
    return AttributionState()


def encode_state(state: AttributionState) -> bytes:
    """Return the state as a head that is read alone (`operators.packed`) and MessagePack."""
    armed = Armed(state.soon_ms, state.later_ms, state.partition)
    return head(STATE_VERSION, armed) + _encoder.encode(state)


def decode_state(data: bytes) -> AttributionState:
    """Return the state that `encode_state` packed; NewerStateError for a newer release's."""
    return _versions.read(data)
