"""Rewards as shares between two marks, and what doing nothing is on that scale.

Owns    the scale that the logistic learner and the logistic policies must have in common.

Apart from `models.logistic`, for `decide` needs it and not the learner.
"""

import math
from typing import Final, NamedTuple

_EDGE: Final = 1e-3  # probability that stands for "never": log-odds are finite


class Scale(NamedTuple):
    """The rewards that count as 0 and as 1; low < high.

    >>> Scale(-0.05, 1.0).share(1.0), round(Scale(-0.05, 1.0).threshold, 3)
    (1.0, -2.996)
    """

    low: float = 0.0
    high: float = 1.0

    def share(self, reward: float) -> float:
        """Return the reward as y."""
        return (reward - self.low) / (self.high - self.low)

    @property
    def threshold(self) -> float:
        """Return the log-odds of a reward of 0, what doing nothing earns."""
        return self._log_odds(0.0)

    def over_nothing(self, reward: float) -> float:
        """Return how far a reward is above one of 0, in log-odds.

        >>> Scale(-0.05, 1.0).over_nothing(0.0), round(Scale(-0.05, 1.0).over_nothing(0.1), 3)
        (0.0, 1.204)
        """
        return self._log_odds(reward) - self.threshold

    def _log_odds(self, reward: float) -> float:
        p = min(max(self.share(reward), _EDGE), 1.0 - _EDGE)
        return math.log(p / (1.0 - p))
