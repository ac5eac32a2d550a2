"""Decisions of users in a row, as steps of a process: what the value of a push is learned from.

Reads   decisions (send or hold) with what each push earned, and when sessions began.
Emits   `Steps`: state, action, reward until the next decision, and that decision.
Owns    what a step earns, how time is discounted, and when what follows is known.

A step lasts from a decision to the user's next one, hours or days: a semi-Markov process. What
comes t days after a decision counts 2 ** (-t / half_life_days). Who opts out, or stays away, comes
to no decision any more: their sessions count to the log's end, and nothing follows.

A step counts as known if the log goes on for `ahead_days` after its decision, whatever came of
it. A step that ended sooner counts no earlier: else those that ended badly, and those that never
ended, would be left out in unlike shares. Younger steps serve as what comes next.

References
----------
Sutton, Precup & Singh, "Between MDPs and semi-MDPs", Artificial Intelligence 112, 1999.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_DAY_MS: Final = 86_400_000


@dataclass(frozen=True)
class Worth:
    """What counts in the long run, beside what pushes earn themselves."""

    session: float = 0.2  # reward units, of one session, whatever brought it
    half_life_days: float = (
        14.0  # short beside what a user may come to be worth, long beside fatigue
    )
    ahead_days: float = 7.0


class Decided(NamedTuple):
    """N logged decisions of the policy, in any order."""

    users: NDArray[np.int64]  # shape (N,), numbers of users from 0
    times_ms: NDArray[np.int64]  # shape (N,)
    states: NDArray[np.float32]  # shape (N, C), the policy's context columns as logged
    sent: NDArray[np.bool_]  # shape (N,)
    earned: NDArray[np.float64]  # shape (N,), of a push itself, as `learn` adds it up; of a hold 0
    probabilities: NDArray[np.float64]  # shape (N,), of sending anything, by the logging policy


class Steps(NamedTuple):
    """N steps, by user and time. Memory: 4 C + 58 bytes a step."""

    users: NDArray[np.int64]  # shape (N,)
    states: NDArray[np.float32]  # shape (N, C)
    actions: NDArray[np.int64]  # shape (N,), models.value.HOLD or SEND
    probabilities: NDArray[np.float64]  # shape (N,), of sending, by the logging policy
    earned: NDArray[np.float64]  # shape (N,), by the push itself
    rewards: NDArray[np.float64]  # shape (N,), until the next decision, as of this one
    discounts: NDArray[np.float64]  # shape (N,), of the next decision; 0 where there is none
    nexts: NDArray[np.int64]  # shape (N,), its row; where there is none the step's own
    is_known: NDArray[np.bool_]  # shape (N,), to learn from
    order: NDArray[np.int64]  # shape (N,), row of `Decided` that each step is

    def of_users(self, is_in: NDArray[np.bool_]) -> "Steps":
        """Return the steps of the users for whom `is_in`, shape (U,), holds."""
        kept = is_in[self.users]
        row = kept.cumsum() - 1
        found = Steps(*(column[kept] for column in self))  # type: ignore[arg-type]
        return found._replace(nexts=row[found.nexts])


def steps(
    decided: Decided,
    session_users: NDArray[np.int64],
    session_ms: NDArray[np.int64],
    end_ms: int,
    worth: Worth | None = None,
) -> Steps:
    """Return the users' decisions as steps.

    Parameters
    ----------
    decided
        The log of decisions.
    session_users, session_ms
        Who began a session and when, shape (S,), any order. A session counts to the user's last
        decision before it; one that began before the first decision to none.
    end_ms
        Until when the log goes.
    worth
        What counts how much.

    Examples
    --------
    >>> day = 86_400_000
    >>> log = Decided(np.array([0, 0]), np.array([1, 3]) * day, np.zeros((2, 1), np.float32),
    ...               np.array([True, False]), np.array([1.0, 0.0]), np.array([0.5, 0.5]))
    >>> found = steps(log, np.array([0, 0]), np.array([2, 5]) * day, end_ms=20 * day,
    ...               worth=Worth(session=0.5, half_life_days=1.0))
    >>> found.rewards.tolist(), found.discounts.tolist(), found.nexts.tolist()
    ([1.25, 0.125], [0.25, 0.0], [1, 1])
    """
    worth = worth or Worth()
    order = np.lexsort((decided.times_ms, decided.users))
    users, times_ms = decided.users[order], decided.times_ms[order]
    rows = np.arange(len(order))
    has_next = np.zeros(len(order), np.bool_)
    has_next[:-1] = users[1:] == users[:-1]
    nexts = np.where(has_next, np.minimum(rows + 1, max(len(order) - 1, 0)), rows)
    days = (times_ms[nexts] - times_ms) / _DAY_MS
    rewards = decided.earned[order].astype(np.float64)
    _add_sessions(rewards, users, times_ms, (session_users, session_ms), worth)
    return Steps(
        users=users,
        states=decided.states[order],
        actions=decided.sent[order].astype(np.int64),
        probabilities=decided.probabilities[order],
        earned=decided.earned[order],
        rewards=rewards,
        discounts=np.where(has_next, np.exp2(-days / worth.half_life_days), 0.0),
        nexts=nexts,
        is_known=times_ms + worth.ahead_days * _DAY_MS <= end_ms,
        order=order,
    )


def _add_sessions(
    rewards: NDArray[np.float64],
    users: NDArray[np.int64],
    times_ms: NDArray[np.int64],
    sessions: tuple[NDArray[np.int64], NDArray[np.int64]],
    worth: Worth,
) -> None:
    """Add to each step's reward the sessions that began in it."""
    session_users, session_ms = sessions
    both = np.concatenate([times_ms, session_ms])
    first, span = (int(both.min()), int(np.ptp(both)) + 1) if len(both) else (0, 1)
    moments = users * span + (times_ms - first)  # rising: a user's decisions stand together
    begun = session_users * span + (session_ms - first)
    at = np.searchsorted(moments, begun, side="left") - 1
    is_in = at >= 0
    is_in[is_in] = users[at[is_in]] == session_users[is_in]
    at, begun_ms = at[is_in], session_ms[is_in]
    days = (begun_ms - times_ms[at]) / _DAY_MS
    np.add.at(rewards, at, worth.session * np.exp2(-days / worth.half_life_days))
