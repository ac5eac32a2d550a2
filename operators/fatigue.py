"""Push fatigue: when a user was last sent to, and with which items.

Reads   sends as they are decided; a deferred push counts from the time it is planned for.
Emits   counts and ages that eligibility and the policy's arm features ask for.
Owns    the state of the `decide` step, one `PushState` a user, and its bytes.

Times are event times, and triggers may come slightly out of order, so every question takes the
instant it is about and looks at sends on both sides of it. Where old sends have been dropped and
the true count is not known, the answer is the largest: a cap may hold too early, never too late.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from operators.packed import Versions

MAX_SENDS: Final = 64  # kept a user; so a cap above 64 holds as 64
KEEP_MS: Final = 35 * 86_400_000  # 4 weeks, FCM's longest time to live, and a week
UNKNOWN: Final = 1_000_000  # above any cap: what `most_in_window` says where sends were dropped
NEVER_HOURS: Final = 24.0 * 30  # `hours_since_push` of a user never sent to, and its upper bound
NEVER_DAYS: Final = 35.0  # `item_fatigue` of an item never sent: KEEP_MS in days
_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 86_400_000
_VERSION: Final = 1  # of the bytes; a change of layout takes the next number
_LAST_ITEM: Final = "\U0010ffff"  # sorts behind every item_id


class PushState(msgspec.Struct, array_like=True):
    """One user's sends, sorted by event time, newest last.

    Notes
    -----
    At most `MAX_SENDS` of the last `KEEP_MS`: 1.5 KB with ids of 10 bytes, 9 KB with ids of full
    length. Questions cost O(log n) or O(n) for n <= 64.

    Examples
    --------
    >>> hour = 3_600_000
    >>> state = new_state("u1")
    >>> state.record_send(10 * hour, "i1")
    >>> state.record_send(9 * hour, "i2")  # out of order
    >>> state.sends[-1], state.hours_since_push(12 * hour)
    ((36000000, 'i1'), 2.0)
    >>> state.pushes_since(12 * hour, 3 * hour)  # a send exactly 3 hours ago is outside
    1
    >>> decode_state(encode_state(state)) == state
    True
    """

    sends: list[tuple[int, str]] = []

    def record_send(self, time_ms: int, item_id: str) -> None:
        """Add a send at `time_ms`, which may lie before others; drop what is too many or old."""
        insort(self.sends, (time_ms, item_id))
        first_kept = bisect_left(self.sends, (self.sends[-1][0] - KEEP_MS, ""))
        del self.sends[: max(first_kept, len(self.sends) - MAX_SENDS)]

    def _may_have_dropped(self, start_ms: int) -> bool:
        """Say whether a send after `start_ms` may have been dropped."""
        if not self.sends:
            return False
        horizon_ms = self.sends[-1][0] - KEEP_MS
        if len(self.sends) >= MAX_SENDS:
            horizon_ms = max(horizon_ms, self.sends[0][0])
        return start_ms < horizon_ms

    def pushes_since(self, now_ms: int, window_ms: int) -> int:
        """Return how many sends lie after `now_ms - window_ms`, planned ones ahead included.

        At most `MAX_SENDS`, and that many where some may have been dropped.
        """
        start_ms = now_ms - window_ms
        if self._may_have_dropped(start_ms):
            return MAX_SENDS
        return len(self.sends) - bisect_right(self.sends, (start_ms, _LAST_ITEM))

    def most_in_window(self, at_ms: int, window_ms: int) -> int:
        """Return the most sends that any window of `window_ms` around `at_ms` holds already.

        A window takes in its start, leaves out its end, and has `at_ms` in it. A send at `at_ms`
        makes the number one larger, so a cap of n holds as long as the answer is below n. Sends
        on both sides count, which keeps a cap through triggers out of order and planned pushes.

        >>> state = PushState([(0, "a"), (10, "b"), (30, "c")])
        >>> state.most_in_window(20, 11)  # [10, 21) and [20, 31)
        1
        >>> state.most_in_window(20, 21)  # [10, 31)
        2
        """
        if self._may_have_dropped(at_ms - window_ms):
            return UNKNOWN
        first = bisect_right(self.sends, (at_ms - window_ms, _LAST_ITEM))
        end = bisect_left(self.sends, (at_ms + window_ms, ""))
        times = [time_ms for time_ms, _ in self.sends[first:end]]
        if not times or times[-1] <= at_ms:
            return len(times)
        # The fullest window starts at a send or at `at_ms`: moving its start on to the next of
        # these loses none.
        starts = [t for t in times if t < at_ms] + [at_ms]
        return max(bisect_left(times, t + window_ms) - bisect_left(times, t) for t in starts)

    def nearest_gap_ms(self, at_ms: int) -> int | None:
        """Return the time between `at_ms` and the send nearest to it on either side, or None.

        >>> PushState([(0, "a"), (30, "b")]).nearest_gap_ms(20)
        10
        """
        place = bisect_left(self.sends, (at_ms, ""))
        around = self.sends[max(place - 1, 0) : place + 1]
        return min((abs(at_ms - time_ms) for time_ms, _ in around), default=None)

    def hours_since_push(self, now_ms: int) -> float:
        """Return hours since the newest send, in [0, `NEVER_HOURS`]; 0 if it is planned ahead."""
        if not self.sends:
            return NEVER_HOURS
        return min(max((now_ms - self.sends[-1][0]) / _HOUR_MS, 0.0), NEVER_HOURS)

    def item_fatigue(
        self, item_ids: Sequence[str], now_ms: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return how often each item was sent in the last 35 days, and days since the last time.

        Returns
        -------
        times_pushed
            float32, shape (K,).
        days_since
            float32, shape (K,), in [0, `NEVER_DAYS`]; `NEVER_DAYS` for an item never sent.

        Examples
        --------
        >>> state = PushState([(0, "a")])
        >>> times_pushed, days_since = state.item_fatigue(["a", "b"], 86_400_000)
        >>> times_pushed.tolist(), days_since.tolist()
        ([1.0, 0.0], [1.0, 35.0])
        """
        times_pushed = np.zeros(len(item_ids), np.float32)
        days_since = np.full(len(item_ids), NEVER_DAYS, np.float32)
        counts: dict[str, int] = {}
        newest: dict[str, int] = {}
        for time_ms, item_id in self.sends:
            if time_ms > now_ms - KEEP_MS:
                counts[item_id] = counts.get(item_id, 0) + 1
                newest[item_id] = time_ms
        for k, item_id in enumerate(item_ids):
            if item_id in counts:
                times_pushed[k] = counts[item_id]
                days_since[k] = max(now_ms - newest[item_id], 0) / _DAY_MS
        return times_pushed, days_since

    def items_since(self, now_ms: int, window_ms: int) -> frozenset[str]:
        """Return the items sent after `now_ms - window_ms`, planned ones included; for look-ups.

        >>> sorted(PushState([(0, "a"), (5, "b")]).items_since(10, 6))
        ['b']
        """
        start_ms = now_ms - window_ms
        return frozenset(item_id for time_ms, item_id in self.sends if time_ms > start_ms)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(PushState)
_versions = Versions("push", {_VERSION: lambda data: _decoder.decode(memoryview(data)[1:])})


def new_state(user_id: str) -> PushState:
    """Return the state of a user never sent to; `user_id` is not kept in it."""
    return PushState()


def encode_state(state: PushState) -> bytes:
    """Return the state as a version byte and MessagePack."""
    return bytes((_VERSION,)) + _encoder.encode(state)


def decode_state(data: bytes) -> PushState:
    """Return the state that `encode_state` packed; NewerStateError for a newer release's."""
    return _versions.read(data)
