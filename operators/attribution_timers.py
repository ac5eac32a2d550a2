"""Attribution's timers: when time next does something to a user's pushes, and what is armed of it.

Reads   `AttributionState`s, and at the start the packed ones of a shard.
Owns    `soon_ms` and `later_ms` of the states, and which partition's watermark fires them.

All times follow from a user's state alone. Two of them are armed, the first of the pushes and of
early feedback, and that of the idle user. They stand in the head of the bytes, so that a restart
decodes nothing. A push is due up to three times: when silence is learned, when its window closes,
and when no outcome counts any more.
"""

from collections.abc import Iterable

from operators.attribution_state import STATE_VERSION, AttributionState, Pending, decode_state
from operators.messages import Feedback
from operators.packed import Armed, armed_of
from operators.rewards import RewardRules
from operators.timers import PartitionTimers, load_timers


def is_armed(state: AttributionState) -> bool:
    """Return whether a state has timers; one that version 1 wrote says no, whatever waits in it."""
    return bool(state.soon_ms or state.later_ms)


class AttributionTimers:
    """The timers of one shard's users.

    Parameters
    ----------
    rows
        user_id and packed state of each user.
    rules
        How long each outcome counts, and how long feedback waits for its decision.
    idle_after_ms, buyer_idle_after_ms
        After their last interaction users are idle; the second is for those who bought something.
    """

    def __init__(
        self,
        rows: Iterable[tuple[str, bytes]],
        rules: RewardRules,
        *,
        idle_after_ms: int,
        buyer_idle_after_ms: int,
    ) -> None:
        self._rules = rules
        self._idle_after_ms = idle_after_ms
        self._buyer_idle_after_ms = buyer_idle_after_ms
        self._by_partition = load_timers(rows, STATE_VERSION, self._older)

    def __len__(self) -> int:
        return sum(len(timers) for timers in self._by_partition.values())

    def of(self, partition: int) -> PartitionTimers:
        """Return the timers that a partition's watermark fires."""
        timers = self._by_partition.get(partition)
        if timers is None:
            timers = self._by_partition[partition] = PartitionTimers()
        return timers

    def drop(self, user_id: str) -> None:
        """Take all timers of a user out: O(timers)."""
        for timers in self._by_partition.values():
            timers.drop(user_id)

    def arm(self, user_id: str, state: AttributionState) -> None:
        """Arm what follows from the state and is not armed."""
        if soon_ms := self._soon_ms(state):
            self.arm_soon(user_id, state, soon_ms)
        if not state.later_ms and (later_ms := self.idle_ms(state)):
            state.later_ms = later_ms
            self.of(state.partition).put(later_ms, user_id)

    def arm_soon(self, user_id: str, state: AttributionState, due_ms: int) -> None:
        """Arm the time of a push or of early feedback, if it comes before what is armed."""
        if not state.soon_ms or due_ms < state.soon_ms:
            state.soon_ms = due_ms
            self.of(state.partition).put(due_ms, user_id)

    def arm_beyond(self, user_id: str, state: AttributionState, due_ms: int) -> None:
        """Arm what comes next, once all up to `due_ms` has been done."""
        state.soon_ms = state.soon_ms if state.soon_ms > due_ms else 0
        state.later_ms = state.later_ms if state.later_ms > due_ms else 0
        self.arm(user_id, state)

    def due_of(self, push: Pending) -> int:
        """Return when time next does something to a push: silence, the window, its end."""
        if not push.is_closed:
            return push.silence_ms or push.deadline_ms
        return self.ends_ms(push) if push.is_matured else push.deadline_ms

    def sent_ms(self, push: Pending) -> int:
        """Return when a push was sent, as its deadline says."""
        return push.deadline_ms - self._rules.window_of(push.rewards)

    def ends_ms(self, push: Pending) -> int:
        """Return when no outcome of a push counts any more."""
        return self.sent_ms(push) + self._rules.longest_ms(push.rewards)

    def gives_up_ms(self, feedback: Feedback) -> int:
        """Return when early feedback waits no longer for its decision."""
        return feedback.time_ms + self._rules.window_ms

    def idle_ms(self, state: AttributionState) -> int:
        """Return when the user is idle; 0: there is nothing to drop then."""
        if not state.has_idle_timer:
            return 0
        is_buyer = bool(state.bought)
        return state.last_ms + (self._buyer_idle_after_ms if is_buyer else self._idle_after_ms)

    def _soon_ms(self, state: AttributionState) -> int:
        """Return when time next does something to a push or to early feedback; 0: never."""
        dues = [self.due_of(push) for push in state.pending.values()]
        for waiting in state.early.values():
            dues += [self.gives_up_ms(feedback) for feedback in waiting]
        return min(dues, default=0)

    def _older(self, packed: bytes) -> Armed:
        if packed[0] == 2:  # the first version with a head
            return armed_of(packed)
        state = decode_state(packed)
        return Armed(self._soon_ms(state), self.idle_ms(state), state.partition)
