"""The demo's books: what was sent, what came back, what users made of it.

Reads   events and feedback as they are sent, decisions as they are read.
Owns    how loss, duplicates, open rates and latency are counted. No clock: times are passed in.

Every trigger must have one decision. The harness cannot see triggers, so their number is
`decide`'s own counter; decisions are counted here, by id, from the topic.
"""

from collections import Counter, OrderedDict, deque
from typing import Final, NamedTuple

import numpy as np

from operators.messages import Decision, Event, Feedback

ARMS: Final = ("policy", "random")
_EVENTS_TIMED: Final = 200_000  # newest events whose sending time is kept; minutes at any speed
_LATENCIES_KEPT: Final = 200_000  # newest
_BOOTSTRAPS: Final = 4_000


class Rate(NamedTuple):
    """Opens among sends."""

    sends: int
    opens: int

    @property
    def value(self) -> float | None:
        """Return opens / sends, None without sends."""
        return self.opens / self.sends if self.sends else None


class Send(NamedTuple):
    """One push that a gateway would have sent."""

    decided_at: int  # event time, ms
    arm: str


class Counters(NamedTuple):
    """What the flows say of themselves, from their Prometheus endpoints; 0 where unknown."""

    decoded_events: int = 0
    decoded_feedback: int = 0
    dead_letters: int = 0
    triggers: int = 0
    decisions: int = 0
    rewards: int = 0


class Tally:
    """Counts of one run of the demo.

    Parameters
    ----------
    warm_up_s
        Decisions read before this many seconds of the run are left out of the latency: the
        first batch of every process loads code and fills caches.

    Notes
    -----
    Memory: an id for each decision (about 150 bytes), bounded by the length of the run; sending
    times of the newest 200,000 events; the newest 200,000 latencies.

    Examples
    --------
    >>> tally = Tally(warm_up_s=5.0)
    >>> tally.rate("policy").value is None, tally.latency_ms(99)
    (True, None)
    """

    def __init__(self, warm_up_s: float = 5.0) -> None:
        self._warm_up_s = warm_up_s
        self.events_sent = 0
        self.feedback_sent = 0
        self.rubbish_sent = 0
        self.duplicates = 0  # decisions read a second time
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.feedback: Counter[str] = Counter()
        self.policy_version = ""
        self.policy_changed_s = 0.0
        self._sent_at: OrderedDict[str, float] = OrderedDict()  # event_id -> seconds of the run
        self._latency_ms: deque[float] = deque(maxlen=_LATENCIES_KEPT)
        self._decided: set[str] = set()
        self.sends: dict[str, Send] = {}  # decision_id -> send, in the order of reading
        self.opened: set[str] = set()  # decision_ids
        self._n_sends: Counter[str] = Counter()  # by arm, as are the opens
        self._n_opens: Counter[str] = Counter()
        self._held_out: set[str] = set()  # user_ids
        self._pushed: set[str] = set()
        self._purchases: Counter[str] = Counter()

    @property
    def n_decisions(self) -> int:
        """Return the number of distinct decisions read."""
        return len(self._decided)

    def on_event(self, event: Event, at_s: float) -> None:
        """Note an event that is being sent, `at_s` seconds into the run."""
        self.events_sent += 1
        if event.event_id not in self._sent_at:  # a duplicate does not set the time anew
            self._sent_at[event.event_id] = at_s
            if len(self._sent_at) > _EVENTS_TIMED:
                self._sent_at.popitem(last=False)
            if event.type == "purchase":
                self._purchases[event.user_id] += 1

    def on_decision(self, decision: Decision, at_s: float) -> bool:
        """Note a decision read at `at_s`; return whether it is new."""
        if decision.decision_id in self._decided:
            self.duplicates += 1
            return False
        self._decided.add(decision.decision_id)
        self.outcomes[decision.outcome] += 1
        self.reasons.update(decision.reason_codes)
        arm = decision.learning.arm
        if decision.outcome == "send" and not decision.delivery.dry_run:
            self.sends[decision.decision_id] = Send(decision.decided_at, arm)
            self._n_sends[arm] += 1
            self._pushed.add(decision.user_id)
        elif decision.outcome == "holdout":
            self._held_out.add(decision.user_id)
        if decision.learning.policy_version not in ("", self.policy_version):
            self.policy_version, self.policy_changed_s = decision.learning.policy_version, at_s
        # Only an intent is caused by an event just sent; the other triggers wait for a timer.
        sent_at = self._sent_at.get(decision.trigger.event_id)
        if decision.trigger.type == "intent" and sent_at is not None and at_s >= self._warm_up_s:
            self._latency_ms.append(1_000 * (at_s - sent_at))
        return True

    def on_feedback(self, feedback: Feedback) -> None:
        """Note feedback that is being sent."""
        self.feedback_sent += 1
        self.feedback[feedback.type] += 1
        send = self.sends.get(feedback.decision_id)
        if feedback.type == "opened" and send and feedback.decision_id not in self.opened:
            self.opened.add(feedback.decision_id)
            self._n_opens[send.arm] += 1

    def latency_ms(self, percentile: float) -> float | None:
        """Return a percentile of event to decision over the run after warm-up, ms."""
        if not self._latency_ms:
            return None
        return float(np.percentile(np.array(self._latency_ms), percentile))

    @property
    def n_latencies(self) -> int:
        """Return how many decisions the latency rests on."""
        return len(self._latency_ms)

    def rate(self, arm: str) -> Rate:
        """Return the opens among an arm's sends."""
        return Rate(self._n_sends[arm], self._n_opens[arm])

    def late_rate(self, arm: str) -> Rate:
        """Return the opens among the later half of an arm's sends."""
        ids = [decision_id for decision_id, send in self.sends.items() if send.arm == arm]
        late = ids[len(ids) // 2 :]
        return Rate(len(late), sum(decision_id in self.opened for decision_id in late))

    def purchases_per_user(self) -> tuple[float | None, float | None]:
        """Return purchases a user among those pushed to, and among those held out."""

        def mean(users: set[str]) -> float | None:
            return sum(self._purchases[user] for user in users) / len(users) if users else None

        return mean(self._pushed), mean(self._held_out)


def lift(policy: Rate, random: Rate, seed: int) -> tuple[float | None, list[float] | None]:
    """Return policy's open rate / random's - 1, and its 95% interval by parametric bootstrap.

    None where random had no opens: the ratio has no meaning yet.

    >>> value, interval = lift(Rate(4_000, 800), Rate(500, 50), seed=1)
    >>> round(value, 6), interval[0] > 0
    (1.0, True)
    >>> lift(Rate(10, 2), Rate(0, 0), seed=1)
    (None, None)
    """
    if not policy.sends or not random.opens:
        return None, None
    rng = np.random.default_rng(seed)
    p = rng.binomial(policy.sends, policy.opens / policy.sends, _BOOTSTRAPS) / policy.sends
    r = rng.binomial(random.sends, random.opens / random.sends, _BOOTSTRAPS) / random.sends
    # A draw without opens is as good as half an open: the ratio stays finite, the tail long.
    draws = p / np.maximum(r, 0.5 / random.sends) - 1
    value = policy.opens / policy.sends / (random.opens / random.sends) - 1
    return value, [float(edge) for edge in np.percentile(draws, [2.5, 97.5])]
