"""Rolling out a model: who is on trial, and whether it is too slow to serve.

Reads   user ids; students, and the seconds that two of them took over the same users.
Owns    the split of users, and what too slow means.

Users are split, not triggers: what a user was sent by one model bears on how they take the next
push, so a user whose pushes came from both would tell nothing of either; and one who opts out
leaves one model's share alone. The split follows from the user's id and the model's version, so
every process, batch and replay puts a user on the same side, and each trial draws others: nobody
is the guinea pig of every model. A larger share holds all users of a smaller one.
"""

import time
from collections import deque
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.features import HISTORY, N_CONTEXT
from models.serving import StudentScorer

_SPLIT_SEED: Final = 0x747269616C  # apart from other hashes of the same id (the holdout's)
# Calls before a 99th percentile says something: ten of them are beyond it.
MIN_CALLS: Final = 1_000
# Below this nobody waits for a model, however slow it is beside another.
FAST_S: Final = 0.002


def is_in_share(user_id: str, version: str, share: float) -> bool:
    """Say whether a user is on trial: the same for ever for one model.

    >>> [is_in_share(f"user-{i}", "ab12", 0.5) for i in range(4)]
    [True, True, False, False]
    >>> is_in_share("user-1", "ab12", 1.0), is_in_share("user-0", "ab12", 0.0)
    (True, False)
    """
    key = f"{version}:{user_id}".encode()
    # 53 bits, all that a double holds: the top value stays below 1.
    return float(xxhash.xxh3_64_intdigest(key, seed=_SPLIT_SEED) >> 11) * 2.0**-53 < share


class PairedTimes:
    """Seconds that two models took, each over the same users at the same moment.

    Pairs, for how long a call takes depends on how many users share it and on what else the
    machine does just then.

    Parameters
    ----------
    window
        The newest pairs that count, >= 1.

    Examples
    --------
    >>> times = PairedTimes(window=1_000)
    >>> for n in range(1_000):
    ...     times.add(0.001, 0.004 if n % 50 else 0.020)
    >>> times.n, times.p99()
    (1000, (0.001, 0.02))
    >>> times.is_slow(max_ratio=3.0), times.is_slow(max_ratio=30.0)
    (True, False)
    """

    def __init__(self, window: int = MIN_CALLS) -> None:
        self._pairs: deque[tuple[float, float]] = deque(maxlen=window)
        self.n = 0

    def add(self, served_s: float, trial_s: float) -> None:
        """Take a pair."""
        self._pairs.append((served_s, trial_s))
        self.n += 1

    def p99(self) -> tuple[float, float]:
        """Return the 99th percentiles of both; zeros without pairs."""
        if not self._pairs:
            return 0.0, 0.0
        served, trial = np.percentile(np.array(self._pairs), 99, axis=0).tolist()
        return served, trial

    def is_slow(self, max_ratio: float) -> bool:
        """Say whether the model on trial is slower than it may be; not before `MIN_CALLS`."""
        # The percentile is looked at once a window: it takes longer than a pair.
        if self.n < MIN_CALLS or self.n % len(self._pairs):
            return False
        served, trial = self.p99()
        return trial > max(max_ratio * served, FAST_S)


def rank_correlation(scores: NDArray[np.floating], others: NDArray[np.floating]) -> float:
    """Return Spearman's correlation of two models' scores of the same items, shape (K,), K >= 2.

    Equal scores are ranked in the order they have.

    >>> rank_correlation(np.array([3.0, 2.0, 1.0]), np.array([9.0, 8.0, -1.0]))
    1.0
    >>> rank_correlation(np.array([3.0, 2.0, 1.0]), np.array([1.0, 2.0, 3.0]))
    -1.0
    """
    n = len(scores)
    places = np.arange(n)
    ranks = np.empty((2, n))
    for row, own in enumerate((scores, others)):
        ranks[row, np.argsort(-own, kind="stable")] = places
    gaps = ranks[0] - ranks[1]
    return 1.0 - 6.0 * float(gaps @ gaps) / (n * (n * n - 1))


def time_users(scorer: StudentScorer, n_users: int) -> float:
    """Return the seconds that a student takes for made-up users with full histories."""
    table = np.zeros((2, scorer.dim), np.float32)
    shape = (n_users, HISTORY)
    ones, ages = np.ones(shape, np.int64), np.ones(shape, np.float32)
    context = np.zeros((n_users, N_CONTEXT), np.float32)
    began = time.perf_counter()
    scorer.user_vectors(table, ones, ones, ages, context)
    return time.perf_counter() - began
