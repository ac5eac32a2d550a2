"""Drift: when the mean of a stream of numbers has moved, by segment.

Reads   rewards, and the learner's errors: reward less the value that it had foretold.
Emits   alarms.
Owns    Page-Hinkley tests as River has them: in which unit, how sure, from when on, and as which
        bytes.

A number goes into the test in standard deviations of its own stream, so that one threshold holds
for all. Page-Hinkley adds up how far numbers lie beyond the mean by more than `DELTA`, and tells
when that is `THRESHOLD` above its least. A quiet stream of independent normal numbers then gives
one false alarm in some 10^8 (Wald: exp(2 DELTA THRESHOLD) / (4 DELTA^2), both ways). A mean that
has moved by half a deviation is found after THRESHOLD / (0.5 - DELTA), some 190 numbers.

Rewards move for good reasons too: a policy that learns earns more. Errors move when what was
learned holds no more. So both are watched, and only errors are a reason to forget.

Why Page-Hinkley and not ADWIN: its state is six numbers that can be read and put back, so that a
restart goes on bit for bit. River's `alpha` stays at 1: below, the sums of a long quiet stream
are drawn back to 0 as strongly as `DELTA` pushes them away, and wander up to the threshold.
"""

import math
from collections.abc import Sequence
from itertools import compress
from typing import Final

import msgspec

DELTA: Final = 0.1  # standard deviations
THRESHOLD: Final = 75.0
# Numbers of a segment before its test begins, and again after an alarm: the scale is estimated
# from them, and a learner that has just begun or just forgotten is let settle.
SETTLING: Final = 200
LATE: Final = 100  # numbers that an alarm's "after" is of
MAX_DEVIATIONS: Final = 4.0  # a single number counts no more than this
MAX_SEGMENTS: Final = 64  # the one that was seen longest ago makes room
KINDS: Final = ("reward", "error")
_NEW: Final = (0.0,) * 8 + (math.inf, -1.0)  # River begins its greatest sum at -1


class Alarm(msgspec.Struct, frozen=True, array_like=True):
    """One mean that has moved."""

    segment: str
    kind: str  # "reward" or "error"
    time_ms: int
    before: float  # mean since the test began
    after: float  # of late


class Watch:
    """The test of one stream: River's `PageHinkley(delta=DELTA, threshold=THRESHOLD, alpha=1)`.

    Notes
    -----
    The state is 10 numbers. River's own object takes 2 us a number, and each reward is told to
    four tests; its arithmetic stands here line by line, and a test holds it to River's bits.

    Examples
    --------
    >>> watch = Watch()
    >>> any(watch.update(n % 2) for n in range(2_000))
    False
    >>> next(n for n in range(2_000) if watch.update(n % 2 + 1.0))  # by two standard deviations
    41
    >>> again = Watch(watch.state())
    >>> again.state() == watch.state()
    True
    """

    __slots__ = (
        "_highest",
        "_lowest",
        "_n",
        "_squares",
        "_sum_down",
        "_sum_up",
        "_tested",
        "_tested_mean",
        "late_mean",
        "mean",
    )

    def __init__(self, state: Sequence[float] = _NEW) -> None:
        # Mean and sum of squares around it since the test began; mean of late.
        self._n, self.mean, self._squares, self.late_mean = state[:4]
        # The test: its own mean, what lies above and below it summed up, and their extremes.
        self._tested, self._tested_mean, self._sum_up, self._sum_down = state[4:8]
        self._lowest, self._highest = state[8:]

    def state(self) -> tuple[float, ...]:
        """Return the state as numbers."""
        return (
            *(self._n, self.mean, self._squares, self.late_mean),
            *(self._tested, self._tested_mean, self._sum_up, self._sum_down),
            *(self._lowest, self._highest),
        )

    def update(self, value: float) -> bool:
        """Take a number; return whether the mean has moved, which asks for a new watch."""
        n = self._n = self._n + 1.0
        off = value - self.mean
        mean = self.mean = self.mean + off / n
        squares = self._squares = self._squares + off * (value - mean)
        self.late_mean += (value - self.late_mean) / (n if n < LATE else LATE)
        if n <= SETTLING or not squares:
            return False
        # Plain comparisons from here on: a call of `min` costs as much as three sums.
        scaled = off / math.sqrt(squares / n)
        if not -MAX_DEVIATIONS <= scaled <= MAX_DEVIATIONS:
            scaled = math.copysign(MAX_DEVIATIONS, scaled)
        tested = self._tested = self._tested + 1.0
        mean = self._tested_mean = self._tested_mean + (1.0 / tested) * (scaled - self._tested_mean)
        up = self._sum_up = self._sum_up + (scaled - mean) - DELTA
        down = self._sum_down = self._sum_down + (scaled - mean) + DELTA
        if up < self._lowest:  # noqa: PLR1730
            self._lowest = up
        if down > self._highest:  # noqa: PLR1730
            self._highest = down
        return up - self._lowest > THRESHOLD or self._highest - down > THRESHOLD


class DriftWatches:
    """The tests of all segments of one shard.

    Parameters
    ----------
    state
        A value from `snapshot`, or nothing.

    Notes
    -----
    Memory and state: two tests a segment, 64 segments at most, 12 KB.

    Examples
    --------
    >>> watches = DriftWatches()
    >>> watches.update("trigger:idle", 1.0, error=0.2, time_ms=5)
    []
    >>> DriftWatches(watches.snapshot()).snapshot() == watches.snapshot()
    True
    """

    def __init__(self, state: bytes = b"") -> None:
        known = _decoder.decode(state) if state else {}
        # By segment, one for each of `KINDS`.
        self._watches = {
            segment: [Watch(kinds[kind]) for kind in KINDS] for segment, kinds in known.items()
        }

    def update(self, segment: str, reward: float, *, error: float, time_ms: int) -> list[Alarm]:
        """Take a reward of a segment, and how far from it the foretold value was."""
        watches = self._watches.pop(segment, None) or [Watch(), Watch()]
        self._watches[segment] = watches  # the last place: seen just now
        if len(self._watches) > MAX_SEGMENTS:
            del self._watches[next(iter(self._watches))]
        has_moved = watches[0].update(reward), watches[1].update(error)
        if True not in has_moved:  # nearly always
            return []
        alarms = []
        for i in compress((0, 1), has_moved):
            watch, watches[i] = watches[i], Watch()
            alarms.append(Alarm(segment, KINDS[i], time_ms, watch.mean, watch.late_mean))
        return alarms

    def settle(self) -> None:
        """Begin all tests of errors anew: the learner was made to forget, and errs otherwise."""
        for watches in self._watches.values():
            watches[1] = Watch()

    def snapshot(self) -> bytes:
        """Return the state as bytes."""
        return _encoder.encode(
            {
                segment: {kind: w.state() for kind, w in zip(KINDS, watches, strict=True)}
                for segment, watches in self._watches.items()
            }
        )


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(dict[str, dict[str, tuple[float, ...]]])
