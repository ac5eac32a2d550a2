"""Weeks of many users in seconds: a world in which pushes tire, and rests let recover.

Reads   a policy, and what holding is worth.
Emits   what happened by user, and the log that `models.value_data` reads.
Owns    habituation: its ground truth, which the policy has to learn from outcomes.

`flows.simulate` has items, sessions step by step and messages, for days. Here an hour is one step
of arrays over all users, and an item is how well it matches, so that months can be run many times.
Rhythms and places are those of `flows.people`; the policy, its columns and its learner are those
of `decide` and `learn`.

    logit of an open = liking of the user + match of the item + hour of the day - TIRES h
    h                = pushes so far, each halving every REST_DAYS
    logit of leaving = LEAVES + LEAVES_TIRED h, for a push that was not opened

An opened push brings a session. Own sessions come whether or not there was a push, but who has
left pushes comes less: KEPT of their sessions remain.

All chance of an hour is drawn for all users before anybody acts, from the seed and the hour: two
policies on one seed meet the same users with the same luck.
"""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.people import PLACES, People
from flows.shop import Shop
from models.arm_features import arm_features
from models.arms import N_POLICY_CONTEXT, design, policy_context
from models.features import COLUMN, N_CONTEXT
from models.learner import RewardLearner
from models.policy import AuditedPolicy, sample
from models.posterior import Posterior, merge
from models.value import ValueFunction
from models.value_data import Decided
from operators.messages import Caps

START_MS: Final = 1_772_409_600_000  # Monday, 2 March 2026, 00:00 UTC
_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 86_400_000
_WEEK_HOURS: Final = 168

ARMS: Final = 3
TIRES: Final = 0.35
REST_DAYS: Final = 3.0
LIKING: Final = (-0.2, 0.7)  # mean and deviation over users: a rested user opens 45 in 100
MATCH: Final = 0.5
HOUR: Final = 0.3  # times log(activity)
LEAVES: Final = -6.5
LEAVES_TIRED: Final = 0.45
KEPT: Final = 0.5
_DISMISSES: Final = 0.15  # of pushes that were not opened
_IDLE_ASKS: Final = 1.0  # a day, of those without a session: the trigger "idle"
_CAPS: Final = Caps()
_DECAY_7D: Final = 2.0 ** (-1 / _WEEK_HOURS)  # an hour's, of opens and dismissals
_PRIOR: Final = 1.0

MakePolicy = Callable[[Posterior], AuditedPolicy]


class Earns(NamedTuple):
    """What outcomes are worth, as the settings `rewards` have it."""

    opened: float = 1.0
    dismissed: float = -0.3
    opted_out: float = -5.0
    no_response: float = -0.05


class Seen(NamedTuple):
    """What the policy saw at one decision, and made of it."""

    x: NDArray[np.float64]  # shape (K, D)
    shares: NDArray[np.float64]  # shape (K + 1,)
    chosen: int


class Played(NamedTuple):
    """What happened in a run; U users, N decisions."""

    pushes: NDArray[np.int64]  # shape (U,)
    opens: NDArray[np.int64]  # shape (U,)
    sessions: NDArray[np.int64]  # shape (U,), own ones and those of opens
    has_left: NDArray[np.bool_]  # shape (U,), opted out
    earned: NDArray[np.float64]  # shape (U,), by pushes, undiscounted
    decided: Decided  # users in order of time
    seen: list[Seen]  # at each decision, where asked for
    session_users: NDArray[np.int64]  # shape (S,)
    session_ms: NDArray[np.int64]  # shape (S,)
    end_ms: int
    learner: RewardLearner


class _Asked(NamedTuple):
    """Who may be pushed this hour, A of them."""

    users: NDArray[np.int64]  # shape (A,)
    is_idle: NDArray[np.bool_]  # shape (A,), asked for no session but for its absence
    match: NDArray[np.float64]  # shape (A, K)


class World:
    """The users and what they do.

    Parameters
    ----------
    n_users
        U, at least 1.
    seed
        Of users and luck.

    Notes
    -----
    Memory: 1.5 kB a user.

    Examples
    --------
    >>> world = World(n_users=200, seed=1)
    >>> asked = sum(len(world.hour().users) for _ in range(48))  # two days
    >>> 300 < asked < 1_200, int(world.pushes.sum())
    (True, 0)
    """

    def __init__(self, n_users: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        people = People(n_users, Shop(24, rng, START_MS), rng, START_MS)
        self._people, self._seed, self._n = people, seed, n_users
        self._liking = rng.normal(*LIKING, n_users)
        self._hour = 0  # the next to be lived through
        self._sent = np.zeros((n_users, _WEEK_HOURS), np.bool_)  # by hour, a ring
        self._own = np.zeros((n_users, 24), np.int64)  # sessions by hour, a ring
        self._last_push = np.full(n_users, -_WEEK_HOURS * 99, np.int64)
        self._opens_decayed, self._dismissals_decayed = np.zeros((2, n_users))
        self.tired = np.zeros(n_users)
        self.pushes, self.opens, self.sessions = np.zeros((3, n_users), np.int64)
        self.has_left = np.zeros(n_users, np.bool_)
        self.session_log: list[tuple[NDArray[np.int64], int]] = []

    @property
    def now_ms(self) -> int:
        """Return the event time of the hour that is being lived through."""
        return START_MS + (self._hour - 1) * _HOUR_MS

    def hour(self) -> _Asked:
        """Let an hour pass; return who may be pushed in it."""
        self._luck = np.random.default_rng([self._seed, 1, self._hour])
        self._hour += 1
        local = np.array([self._people.local_hour(p, self.now_ms) for p in range(len(PLACES))])
        self._local = local[self._people.place]
        self._activity = self._people.activity[np.arange(self._n), self._local]
        self.tired *= 2.0 ** (-1 / (24 * REST_DAYS))
        self._opens_decayed *= _DECAY_7D
        self._dismissals_decayed *= _DECAY_7D
        self._sent[:, self._hour % _WEEK_HOURS] = False
        comes, idles, *self._dice = self._luck.random((5, self._n))
        match = self._luck.standard_normal((self._n, ARMS))
        rate = self._people.sessions_per_day * self._activity / 24
        rate = np.where(self.has_left, KEPT * rate, rate)
        is_here = comes < 1 - np.exp(-rate)
        self._own[:, self._hour % 24] = is_here
        self._begin(is_here)
        is_idle = idles < _IDLE_ASKS * self._activity / 24
        is_idle &= ~self._own.any(axis=1)
        asked = np.flatnonzero((is_here | is_idle) & self._may_be_sent())
        return _Asked(asked, ~is_here[asked], match[asked])

    def _begin(self, is_here: NDArray[np.bool_]) -> None:
        self.sessions += is_here
        self.session_log.append((np.flatnonzero(is_here), self.now_ms))

    def _sent_within(self, hours: int) -> NDArray[np.int64]:
        ring = (self._hour - np.arange(hours)) % _WEEK_HOURS
        return np.asarray(self._sent[:, ring].sum(axis=1), np.int64)

    def _may_be_sent(self) -> NDArray[np.bool_]:
        self._in_1d, self._in_7d = self._sent_within(24), self._sent_within(_WEEK_HOURS)
        gap = self._hour - self._last_push
        is_spaced = gap * 3_600 >= _CAPS.min_gap_seconds
        within = (self._in_1d < _CAPS.per_day) & (self._in_7d < _CAPS.per_week)
        return is_spaced & within & ~self.has_left

    def context(self, user: int, *, is_idle: bool) -> NDArray[np.float64]:
        """Return the policy's context columns of a user who is asked about now."""
        raw = np.zeros(N_CONTEXT)
        day = 2 * math.pi * int(self._local[user]) / 24
        week = 2 * math.pi * (self.now_ms // _DAY_MS % 7) / 7
        own = self._own[user]
        for name, value in (
            ("hour_sin", math.sin(day)),
            ("hour_cos", math.cos(day)),
            ("weekday_sin", math.sin(week)),
            ("weekday_cos", math.cos(week)),
            ("session_events", 0.0 if is_idle else 8.0),
            ("events_sliding_1d", 8.0 * float(own.sum())),
            ("opens_decayed", self._opens_decayed[user]),
            ("dismissals_decayed", self._dismissals_decayed[user]),
        ):
            raw[COLUMN[name]] = value
        return policy_context(
            raw,
            "idle" if is_idle else "session_ended",
            float(self._hour - self._last_push[user]),
            int(self._in_1d[user]),
            int(self._in_7d[user]),
        )

    def push(
        self, users: NDArray[np.int64], match: NDArray[np.float64], earns: Earns
    ) -> NDArray[np.float64]:
        """Send to distinct users an item that matches so well; return what each push earns."""
        if not len(users):
            return np.empty(0)
        logit = self._liking[users] + MATCH * match - TIRES * self.tired[users]
        logit += HOUR * np.log(self._activity[users])
        opens_u, leaves_u, dismisses_u = (dice[users] for dice in self._dice)
        is_open = opens_u < 1 / (1 + np.exp(-logit))
        hazard = 1 / (1 + np.exp(-(LEAVES + LEAVES_TIRED * self.tired[users])))
        leaves = ~is_open & (leaves_u < hazard)
        dismisses = ~is_open & ~leaves & (dismisses_u < _DISMISSES)
        self.tired[users] += 1
        self._sent[users, self._hour % _WEEK_HOURS] = True
        self._last_push[users] = self._hour
        self._opens_decayed[users] += is_open
        self._dismissals_decayed[users] += dismisses
        self.pushes[users] += 1
        self.opens[users] += is_open
        self.has_left[users] |= leaves
        here = np.zeros(self._n, np.bool_)
        here[users[is_open]] = True
        self._begin(here)
        return np.select(
            [is_open, leaves, dismisses],
            [earns.opened, earns.opted_out, earns.dismissed],
            earns.no_response,
        )


def play(
    make_policy: MakePolicy,
    *,
    n_users: int,
    days: int,
    seed: int,
    value: ValueFunction | None = None,
    bar: float = 0.0,
    learner: RewardLearner | None = None,
    earns: Earns | None = None,
    keep_seen: bool = False,
) -> Played:
    """Live through some days under a policy that learns from its own pushes, daily.

    Parameters
    ----------
    make_policy
        Called each morning with the posterior of what was learned.
    value
        What holding is worth; None: 0.
    bar
        Added to the value of "none", reward units.
    learner
        Goes on from what it knows; it is changed.
    keep_seen
        Whether to keep what the policy saw at each decision, 2.5 kB.

    Notes
    -----
    About 60 us a decision, of which a user has 2 a day.
    """
    world, learner, earns = World(n_users, seed), learner or RewardLearner(), earns or Earns()
    log: list[tuple[int, int, NDArray[np.float64], bool, float, float]] = []
    kept: list[Seen] = []
    gained = np.zeros(n_users)
    policy = make_policy(merge([learner.statistics()], _PRIOR))
    for hour in range(24 * days):
        if hour % 24 == 0:
            policy = make_policy(merge([learner.statistics()], _PRIOR))
        asked = world.hour()
        arms = _arms(asked.match)
        chosen = np.full(len(asked.users), ARMS)
        made: list[tuple[NDArray[np.float64], Seen]] = []
        for a, user in enumerate(asked.users.tolist()):
            context = world.context(user, is_idle=bool(asked.is_idle[a]))
            x = design(context, arms[a])  # (K, D)
            none = bar + (value.none_value(context) if value is not None else 0.0)
            judged = policy.judge(x).with_none(none)
            identity = f"{seed}-{hour}-{user}".encode()
            shares = policy.shares(judged, policy.knobs, identity)
            chosen[a] = sample(shares, identity)
            made.append((context, Seen(x, shares, int(chosen[a]))))
        is_sent = chosen < ARMS
        users = asked.users[is_sent]
        own = np.zeros(len(chosen))
        own[is_sent] = world.push(users, asked.match[is_sent, chosen[is_sent]], earns)
        np.add.at(gained, asked.users, own)
        for a, (context, seen) in enumerate(made):
            is_push, sends = bool(is_sent[a]), 1.0 - float(seen.shares[-1])
            log.append((int(asked.users[a]), world.now_ms, context, is_push, own[a], sends))
            if is_push:
                learner.learn(seen.x[seen.chosen], float(own[a]))
        kept += [seen for _, seen in made] if keep_seen else []
    return _played(world, log, kept, gained, learner)


def _arms(match: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the arms' columns, (A, K, columns): how well an item matches is known."""
    zeros = np.zeros(match.shape)
    names = (
        *("popularity", "views", "clicks", "purchases", "pushes", "opens", "favorites"),
        *("age_days", "price", "fused"),
    )
    none: dict[str, Any] = dict.fromkeys(names, zeros)
    return arm_features(
        scores=match, sources=zeros.astype(np.int64), category_affinity=match, **none
    )


def _played(
    world: World,
    log: list[tuple[int, int, NDArray[np.float64], bool, float, float]],
    kept: list[Seen],
    gained: NDArray[np.float64],
    learner: RewardLearner,
) -> Played:
    users, times, contexts, sent, own, sends = zip(*log, strict=True) if log else ((),) * 6
    decided = Decided(
        users=np.array(users, np.int64),
        times_ms=np.array(times, np.int64),
        states=np.array(contexts, np.float32).reshape(-1, N_POLICY_CONTEXT),
        sent=np.array(sent, np.bool_),
        earned=np.array(own, np.float64),
        probabilities=np.array(sends, np.float64),
    )
    who, when = zip(*world.session_log, strict=True)
    return Played(
        world.pushes,
        world.opens,
        world.sessions,
        world.has_left,
        gained,
        decided,
        kept,
        np.concatenate(who),
        np.repeat(np.array(when, np.int64), [len(own) for own in who]),
        world.now_ms + _HOUR_MS,
        learner,
    )
