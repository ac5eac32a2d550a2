"""Rewards: what the outcomes of a push are worth, and until when each may count.

Owns    the sum, and what a campaign puts in place of the settings.

A push is worth the sum of its outcomes, each type once. An outcome counts if it comes before its
type's credit ends, after sending. An opt-out says more of a push than of the hours after it, and
is waited for longest.
"""

import math
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from operators.messages import CampaignRewards

# In this order they are added up: that of arrival must not reach the last bits of the sum.
OUTCOMES: Final = ("opened", "clicked", "converted", "dismissed", "opted_out")
# Feedback that says that nobody saw the push: it teaches nothing.
UNDELIVERED: Final = frozenset(("token_invalid", "expired"))
_NOTHING: Final = CampaignRewards()


class RewardRules(NamedTuple):
    """What outcomes are worth, in reward units, and how long each is waited for.

    Parameters
    ----------
    opened, clicked, converted, dismissed, opted_out
        What an outcome is worth.
    no_response
        What a push without outcome is worth when its window has closed.
    window_ms
        The window: from sending to when silence counts, event time.
    credit_ms
        Outcome -> how long after sending it counts; one that is not named: three windows.
    conversion_value, conversion_max
        Added to `converted` for each unit of a conversion's value, and the most that it then is.

    Examples
    --------
    >>> rules = RewardRules(1.0, 0.5, 1.0, -0.3, -5.0, -0.05, 1_000, conversion_value=0.01)
    >>> rules.worth(["converted", "opened"], value=30.0)
    2.3
    >>> rules.worth([]), rules.credit_of("opened")
    (-0.05, 3000)
    >>> rules.worth(["opened"], own=CampaignRewards(opened=0.2))
    0.2
    """

    opened: float
    clicked: float
    converted: float
    dismissed: float
    opted_out: float
    no_response: float
    window_ms: int
    credit_ms: Mapping[str, int] = {}
    conversion_value: float = 0.0
    conversion_max: float = math.inf

    def worth(
        self, types: Collection[str], value: float = 0.0, own: CampaignRewards | None = None
    ) -> float:
        """Return what the outcomes among `types` are worth together, or silence if there is none.

        `value` is that of the conversion, money; `own` what the push's campaign says.
        """
        own = own or _NOTHING
        found = [kind for kind in OUTCOMES if kind in types]
        if not found:
            return self._of("no_response", own)
        return sum(self._of(kind, own) + self._bonus(kind, value, own) for kind in found)

    def window_of(self, own: CampaignRewards | None) -> int:
        """Return the window of a campaign's pushes."""
        seconds = own.window_seconds if own else None
        return self.window_ms if seconds is None else seconds * 1_000

    def credit_of(self, kind: str, own: CampaignRewards | None = None) -> int:
        """Return how long after sending an outcome counts, ms; the window at least."""
        window_ms = self.window_of(own)
        return max(self.credit_ms.get(kind, 3 * window_ms), window_ms)

    def longest_ms(self, own: CampaignRewards | None = None) -> int:
        """Return how long after sending any outcome counts, ms."""
        return max(self.credit_of(kind, own) for kind in OUTCOMES)

    def _of(self, name: str, own: CampaignRewards) -> float:
        instead = getattr(own, name)
        worth: float = getattr(self, name) if instead is None else instead
        return worth

    def _bonus(self, kind: str, value: float, own: CampaignRewards) -> float:
        if kind != "converted" or not self.conversion_value or value <= 0:
            return 0.0
        most = max(self.conversion_max - self._of(kind, own), 0.0)
        return min(self.conversion_value * value, most)
