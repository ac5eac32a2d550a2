"""Delay: how long after sending the first response to a push comes, by channel.

Reads   the delays of pushes whose window has closed: of those that are younger only the quick
        responses are known, and their mean would be too short.
Emits   the age at which silence is to be learned.

Why     A response is learned when it comes. Were silence learned when the window closes, the
        pushes of the last hours would be known by their responses alone, and look better than they
        are: in a stream of n pushes a second of which a share p responds, after T seconds
        n p (T - mean delay) responses and n (1 - p) (T - window) silences would be known. Learned
        at the age of the mean delay, the one makes up for the other: what is late of the
        responses, and then corrects the silence, is as much as what is early of the silences.
        Up to second order in p times the mean delay over T.
"""

from collections.abc import MutableMapping
from typing import Final

# Responses that a mean needs: with 20 it is some 20% off, where the delays are exponential.
MIN_RESPONSES: Final = 20
MEMORY: Final = 1_000  # responses that a mean is of, for delays change

Sums = MutableMapping[str, tuple[float, float]]  # channel -> (weight, weighted sum of delays, ms)


def add_delay(sums: Sums, channel: str, delay_ms: int) -> None:
    """Count the first response to a push; older ones fade.

    >>> sums = {}
    >>> add_delay(sums, "fcm", 1_000)
    >>> add_delay(sums, "fcm", 3_000)
    >>> sums["fcm"]
    (1.999, 3999.0)
    """
    n, total = sums.get(channel, (0.0, 0.0))
    kept = 1 - 1 / MEMORY
    sums[channel] = (kept * n + 1.0, kept * total + delay_ms)


def mean_delay_ms(sums: Sums, channel: str) -> int | None:
    """Return the mean delay on a channel, or over all while it is not known; None: nor is that.

    >>> sums = {"fcm": (30.0, 60_000.0), "apns": (5.0, 40_000.0)}
    >>> mean_delay_ms(sums, "fcm"), mean_delay_ms(sums, "apns"), mean_delay_ms({}, "fcm")
    (2000, 2857, None)
    """
    n, total = sums.get(channel, (0.0, 0.0))
    if n < MIN_RESPONSES:
        n = sum(weight for weight, _ in sums.values())
        total = sum(part for _, part in sums.values())
    return round(total / n) if n >= MIN_RESPONSES else None
