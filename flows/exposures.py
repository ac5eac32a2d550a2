"""Who was in which arm of an experiment, and what they did: its evidence.

Reads   decisions, their answers and events, as `flows.exposure_logs` finds them.
Emits   `Exposed`: users as arrays, in the order of their first exposure.
Owns    what exposure is, which span of a user's time counts, and whether the log is complete.

A user is exposed by the first decision at which their arm could make a difference: whoever may not
be sent to at all decides nothing by being in an arm. `decide` logs the arm with every decision,
those of the holdout too, so exposure needs no log of its own. From then on a user's time counts
for `span_ms`, whatever is sent or not: what happens later depends on the arm.

    |-- activity before --|exposed|---- span: sends, answers, events ----|-- answers still --|over
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from operators.campaigns import HOLDOUT
from operators.eligibility import NO_CHANNEL, NO_CONSENT, OPTED_OUT
from operators.messages import CampaignRewards
from operators.rewards import OUTCOMES, UNDELIVERED, RewardRules

# What is counted of each user. Of the answers only the first of a kind to a push counts.
ANSWERS: Final = {
    "opened": "opens",
    "clicked": "clicks",
    "converted": "conversions",
    "dismissed": "dismissals",
    "opted_out": "opt_outs",
}
ACTS: Final = {"purchase": "purchases"}
METRICS: Final = ("reward", "sends", *ANSWERS.values(), *ACTS.values(), "events")
_UNREACHED: Final = frozenset((NO_CONSENT, OPTED_OUT, NO_CHANNEL))  # before arms are looked at
# Answers to pushes that are not in the log: a few may be another team's tests.
MOST_ORPHANS: Final = 0.01
_DAY_MS: Final = 86_400_000


class Decided(NamedTuple):
    """What an experiment needs of a decision."""

    decision_id: str
    user_id: str
    time_ms: int
    outcome: str
    reason: str
    is_dry_run: bool
    campaign_id: str
    arm: str


class Answer(NamedTuple):
    """What an experiment needs of feedback."""

    decision_id: str
    type: str
    time_ms: int
    value: float | None


class Log(NamedTuple):
    """Where the messages are; each call reads them from the start, in any order."""

    decisions: Callable[[], Iterable[Decided]]
    answers: Callable[[], Iterable[Answer]]
    acts: Callable[[], Iterable[tuple[str, str, int]]]  # user_id, type, time


class Span(NamedTuple):
    """Which time counts, milliseconds."""

    since_ms: int  # exposures before are not of the experiment
    until_ms: int  # nothing from here on is looked at
    span_ms: int  # of each user, from their first exposure on
    before_ms: int  # of each user, before it
    answer_ms: int  # after the span, in which its pushes may still be answered


class Own(NamedTuple):
    """What is of the experiment, and how."""

    names: list[str]  # of its arms
    campaigns: Mapping[str, CampaignRewards | None]  # what pushes earn, by campaign_id
    arm_of: Callable[[str, str], str]  # user_id, campaign_id -> the arm by the user's hash
    rules: RewardRules


class _Send(NamedTuple):
    """A push, before its answers are known."""

    user_id: str
    time_ms: int
    campaign_id: str
    kinds: set[str]  # answers that count
    values: list[float]  # of conversions


class Exposed(NamedTuple):
    """N users in the order of their first exposure."""

    arms: NDArray[np.int64]  # shape (N,), into the names of the arms
    first_ms: NDArray[np.int64]  # shape (N,)
    is_over: NDArray[np.bool_]  # shape (N,): the user's time, answers and all
    before: NDArray[np.float64]  # shape (N,), events before the exposure
    metrics: dict[str, NDArray[np.float64]]  # shape (N,) each, by the names of `METRICS`
    faults: list[str]  # why exposure is not complete; [] where it is


def read(log: Log, own: Own, span: Span) -> Exposed:
    """Read a log: its decisions first, then answers, then events.

    Memory: about 0.5 kB a user and 0.7 kB a push.
    """
    users = _Users(own, span)
    for decided in log.decisions():
        users.on_decision(decided)
    for answer in log.answers():
        users.on_answer(answer)
    counts = users.counts()
    users.add_pushes(counts)
    before = np.zeros(len(users.first_ms))
    for user_id, kind, time_ms in log.acts():
        users.on_act(user_id, kind, time_ms, counts, before)
    return users.exposed(counts, before)


class _Users:
    """Users by number, in the order in which the log has them."""

    def __init__(self, own: Own, span: Span) -> None:
        self._own, self._span = own, span
        self._first: dict[str, Decided] = {}  # by user_id
        self._sends: dict[str, _Send] = {}  # by decision_id
        self._others: set[str] = set()  # that may be answered and are not looked at
        self._wrong: Counter[str] = Counter()
        # Of decisions and answers: an event's own time may be far ahead, and no decision follows.
        self._began_ms, self._newest_ms = span.until_ms, 0
        self._n_answers = self._n_orphans = 0
        self._numbers: dict[str, int] = {}
        self.first_ms: list[int] = []

    def on_decision(self, decided: Decided) -> None:
        """Take a decision; the users' first ones are known once all are in."""
        if decided.time_ms >= self._span.until_ms:
            return
        self._newest_ms = max(self._newest_ms, decided.time_ms)
        self._began_ms = min(self._began_ms, decided.time_ms)
        is_send = decided.outcome == "send" and not decided.is_dry_run
        if not is_send and decided.outcome in ("send", "defer"):
            self._others.add(decided.decision_id)
        is_own = decided.campaign_id in self._own.campaigns
        if not is_own or decided.time_ms < self._span.since_ms:
            if is_send:
                self._others.add(decided.decision_id)
            return
        self._check(decided)
        if decided.reason in _UNREACHED:
            return
        first = self._first.get(decided.user_id)
        if first is None or _order(decided) < _order(first):
            self._first[decided.user_id] = decided
        if is_send:
            push = _Send(decided.user_id, decided.time_ms, decided.campaign_id, set(), [])
            self._sends[decided.decision_id] = push

    def _check(self, decided: Decided) -> None:
        if decided.arm not in self._own.names:
            self._wrong["decisions without an arm of the experiment"] += 1
        elif decided.arm != self._own.arm_of(decided.user_id, decided.campaign_id):
            self._wrong["decisions in another arm than the split says that is in force"] += 1
        if decided.arm == HOLDOUT and decided.outcome in ("send", "defer"):
            self._wrong["sends to the holdout"] += 1

    def on_answer(self, answer: Answer) -> None:
        """Take an answer, after all decisions."""
        if answer.time_ms >= self._span.until_ms:
            return
        self._newest_ms = max(self._newest_ms, answer.time_ms)
        self._n_answers += 1
        push = self._sends.get(answer.decision_id)
        if push is not None:
            self._take(answer, push)
        elif answer.decision_id not in self._others and answer.time_ms >= self._began_ms + _DAY_MS:
            self._n_orphans += 1

    def _take(self, answer: Answer, push: _Send) -> None:
        rules, own = self._own.rules, self._own.campaigns[push.campaign_id]
        is_late = answer.type in OUTCOMES and (
            answer.time_ms >= push.time_ms + rules.credit_of(answer.type, own)
        )
        if not is_late:
            push.kinds.add(answer.type)
            if answer.type == "converted" and answer.value is not None:
                push.values.append(answer.value)

    def counts(self) -> dict[str, NDArray[np.float64]]:
        """Give the users their numbers, and return a zero for each."""
        ordered = sorted(self._first.values(), key=_order)
        self._numbers = {decided.user_id: n for n, decided in enumerate(ordered)}
        self.first_ms = [decided.time_ms for decided in ordered]
        return {name: np.zeros(len(ordered)) for name in METRICS}

    def add_pushes(self, counts: dict[str, NDArray[np.float64]]) -> None:
        """Count the pushes within each user's span, and what came of them."""
        for push in self._sends.values():
            number = self._numbers[push.user_id]
            if push.time_ms >= self.first_ms[number] + self._span.span_ms:
                continue
            counts["sends"][number] += 1
            counts["reward"][number] += self._reward(push)
            for kind in push.kinds & ANSWERS.keys():
                counts[ANSWERS[kind]][number] += 1

    def _reward(self, push: _Send) -> float:
        """Return what a push earned, as `learn` comes to it once all is known."""
        if not push.kinds.isdisjoint(UNDELIVERED) and push.kinds.isdisjoint(OUTCOMES):
            return 0.0
        value = push.values[0] if push.values else 0.0
        own = self._own.campaigns[push.campaign_id]
        return self._own.rules.worth(push.kinds, value, own)

    def on_act(
        self,
        user_id: str,
        kind: str,
        time_ms: int,
        counts: dict[str, NDArray[np.float64]],
        before: NDArray[np.float64],
    ) -> None:
        """Count an event of before a user's exposure, or within the span after it."""
        number = self._numbers.get(user_id)
        if number is None or time_ms >= self._span.until_ms:
            return
        since_ms = time_ms - self.first_ms[number]
        if -self._span.before_ms <= since_ms < 0:
            before[number] += 1
        elif 0 <= since_ms < self._span.span_ms:
            counts["events"][number] += 1
            if kind in ACTS:
                counts[ACTS[kind]][number] += 1

    def exposed(
        self, counts: dict[str, NDArray[np.float64]], before: NDArray[np.float64]
    ) -> Exposed:
        """Return what was read."""
        by_arm = {name: code for code, name in enumerate(self._own.names)}
        found = [
            (by_arm.get(self._first[user].arm, -1), self.first_ms[number])
            for user, number in self._numbers.items()
        ]
        arms, first_ms = np.array(found, np.int64).reshape(-1, 2).T
        over_ms = first_ms + self._span.span_ms + self._span.answer_ms
        is_known = arms >= 0  # the others are told of in the faults
        return Exposed(
            arms[is_known],
            first_ms[is_known],
            (over_ms <= self._newest_ms)[is_known],
            before[is_known],
            {name: values[is_known] for name, values in counts.items()},
            self._faults(),
        )

    def _faults(self) -> list[str]:
        faults = [f"{n:,} {what}" for what, n in sorted(self._wrong.items())]
        if self._n_orphans > MOST_ORPHANS * max(self._n_answers, 1):
            share = self._n_orphans / self._n_answers
            faults.append(f"{share:.1%} of the answers are to pushes that are not in the log")
        return faults


def _order(decided: Decided) -> tuple[int, str]:
    return decided.time_ms, decided.decision_id
