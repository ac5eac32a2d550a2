"""Judging a trained fusion: what it has gained on the one it started from, cold items apart.

Reads   histories and the items' vectors by mode, of a stretch of time after the training.
Emits   by how much a fusion ranks better than the start, and how sure that is.
Owns    how content is asked for, and the rule by which a trained fusion is kept, in part or at all.

Behaviour says much of items that many had, and little of the *cold* ones, which nobody had before
the stretch; and these are what content is for. So a trained fusion is kept where both together
gain by more than two standard errors (one would often be passed by chance, for many are tried),
cold ones gain, and warm ones do not lose by more than one. Where few ask for cold items, warm ones
decide.

Between the start and the end of training lies a line of fusions: each projection and the gate
weighted in part. A place on it often keeps what training found, and of the start what training
had forgotten (Wortsman et al. 2022), so a few are tried. Of those about equally good the one
nearest to the end is taken: the modes lie closer together there, which a query by text needs to
find an item that has only an image, and which no request here asks for.

References
----------
Wortsman et al., "Robust Fine-Tuning of Zero-Shot Models", CVPR 2022.
"""

from collections.abc import Callable
from math import hypot
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.dataset import Histories, Requests, popularity, targets_between
from models.evaluate import next_item_ranks
from models.features import TEXT_DIM
from models.fusion import Fusion, ModeVectors, ModeWeights

SHARES: Final = (1.0, 0.75, 0.5, 0.25)  # of the way from the start that are tried
LEAST_COLD: Final = 50  # requests for cold items that may decide
_N_RECENT: Final = 20  # items of a history that ask, as in models.sources.ContentSource
_DEPTH: Final = 100  # ranks that count: at 10 hardly a cold item is seen


class Gain(NamedTuple):
    """Mean NDCG@100 beyond the start's, over requests, and the standard error of the difference."""

    mean: float
    error: float
    n_requests: int


class Gains(NamedTuple):
    """What a fusion gained, items that somebody had before and those nobody had."""

    warm: Gain
    cold: Gain

    @property
    def is_kept(self) -> bool:
        """Whether to keep the fusion rather than the start."""
        is_sure = self.total > 2 * self.error
        if self.cold.n_requests < LEAST_COLD:
            return is_sure
        return is_sure and self.cold.mean > 0 and self.warm.mean > -self.warm.error

    @property
    def total(self) -> float:
        """Warm and cold alike, however many ask for which; warm alone where few ask for cold."""
        return self.warm.mean + (self.cold.mean if self.cold.n_requests >= LEAST_COLD else 0.0)

    @property
    def error(self) -> float:
        """The standard error of `total`."""
        is_cold = self.cold.n_requests >= LEAST_COLD
        return hypot(self.warm.error, self.cold.error if is_cold else 0.0)


class Choice(NamedTuple):
    """A fusion on the way from the start to the end of training, 0 to 1, and what it gains."""

    fusion: Fusion
    share: float
    gains: Gains

    @property
    def value(self) -> tuple[bool, float]:
        """What the better of two choices has more of."""
        return self.gains.is_kept, self.gains.total


class Judge:
    """Compares fusions with the one they started from, on the events of a stretch of time.

    Parameters
    ----------
    start
        What is to be beaten.
    since_s, until_s
        The stretch, seconds. Cold is what nobody had before it.
    limit
        Requests of warm items at most, and as many of cold ones.

    Notes
    -----
    A user's requests are no independent witnesses, so the standard error is that of users'
    sums. About 0.1 ms a request of 10,000 items.
    """

    def __init__(
        self,
        start: Fusion,
        vectors: ModeVectors,
        histories: Histories,
        since_s: int,
        until_s: int | None,
        *,
        limit: int,
    ) -> None:
        self._start, self._vectors, self._histories = start, vectors, histories
        warm, cold = split_targets(histories, since_s, until_s, cold_s=since_s)
        self.warm, self.cold = thinned(warm, limit), thinned(cold, limit)
        self._at_start = [self._ndcg(start, events) for events in (self.warm, self.cold)]

    def gains(self, fusion: Fusion) -> Gains:
        """Return what a fusion gained on the start."""
        found = []
        for events, before in zip((self.warm, self.cold), self._at_start, strict=True):
            users = np.searchsorted(self._histories.offsets, events, side="right")
            found.append(_gain(self._ndcg(fusion, events) - before, users))
        return Gains(*found)

    def choose(self, end: Fusion) -> Choice:
        """Return a fusion on the way to `end` that is to be kept, or the start.

        Where none is, the gains are those of the best all the same, to say why.
        """
        ways = [(between(self._start, end, share), share) for share in SHARES]
        tried = [Choice(fusion, share, self.gains(fusion)) for fusion, share in ways]
        best = max(tried, key=lambda choice: choice.value)
        if not best.gains.is_kept:
            return Choice(self._start, 0.0, best.gains)
        least = best.gains.total - best.gains.error
        return next(c for c in tried if c.gains.is_kept and c.gains.total >= least)

    def _ndcg(self, fusion: Fusion, events: NDArray[np.int64]) -> NDArray[np.float64]:
        score = content_scores(fusion.fuse(*self._vectors))
        rank = next_item_ranks(score, self._histories, events)
        return np.where(rank <= _DEPTH, 1.0 / np.log2(1.0 + rank), 0.0)


def _gain(difference: NDArray[np.float64], users: NDArray[np.int64]) -> Gain:
    n = len(difference)
    if not n:
        return Gain(0.0, 0.0, 0)
    mean = float(difference.mean())
    by_user = np.bincount(users, difference - mean)
    return Gain(mean, float(np.sqrt((by_user**2).sum())) / n, n)


def between(start: Fusion, end: Fusion, share: float) -> Fusion:
    """Return the fusion at a share of the way from `start` to `end`, 0 to 1.

    >>> rng = np.random.default_rng(0)
    >>> start, end = Fusion.untrained(64), Fusion.fitted(rng.normal(size=(99, 64)))
    >>> between(start, end, 0.0).id == start.id, between(start, end, 1.0).id == end.id
    (True, True)
    """

    def mixed(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
        return (np.float32(1.0 - share) * a + np.float32(share) * b).astype(np.float32)

    modes = [
        ModeWeights(mixed(a.mean, b.mean), mixed(a.projection, b.projection))
        for a, b in zip(start.modes, end.modes, strict=True)
    ]
    return Fusion(modes, mixed(start.gate, end.gate), end.encoders)


def split_targets(
    histories: Histories, since_s: int, until_s: int | None, *, cold_s: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return events in [since_s, until_s) of items new to a user with a history: warm, then cold.

    Cold items are those that nobody wanted before `cold_s`.
    """
    events = new_targets(histories, since_s, until_s)
    counts = popularity(histories, int(histories.rows.max(initial=0)), until_s=cold_s)
    is_cold = counts[histories.rows[events]] == 0
    return events[~is_cold], events[is_cold]


def new_targets(histories: Histories, since_s: int, until_s: int | None) -> NDArray[np.int64]:
    """Return events in [since_s, until_s) of items that are new to a user with a history."""
    events = targets_between(histories, since_s, until_s, limit=len(histories.rows))
    users = np.searchsorted(histories.offsets, events, side="right") - 1
    owners = np.repeat(np.arange(len(histories.user_ids)), np.diff(histories.offsets))
    pair = owners * (histories.rows.max(initial=0) + 1) + histories.rows
    _, first_of_pair = np.unique(pair, return_index=True)
    is_first = np.zeros(len(pair), np.bool_)
    is_first[first_of_pair] = True
    return events[is_first[events] & (events > histories.offsets[users])]


def thinned(events: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return at most `limit` events, evenly strided.

    >>> thinned(np.arange(9), 3).tolist()
    [0, 4, 8]
    """
    if len(events) <= limit:
        return events
    return events[np.linspace(0, len(events) - 1, limit).astype(np.int64)]


def content_scores(table: NDArray[np.float32]) -> Callable[[Requests], NDArray[np.float32]]:
    """Return a function that scores items by the mean direction of a history's newest ones.

    `table` has the N items' vectors, shape (N, TEXT_DIM). What is in the history gets -inf.
    """
    padded = np.vstack((np.zeros((1, TEXT_DIM), np.float32), table))  # (N + 1, TEXT_DIM)

    def score(requests: Requests) -> NDArray[np.float32]:
        users = padded[requests.rows[:, -_N_RECENT:]].sum(axis=1)  # (B, TEXT_DIM)
        scores: NDArray[np.float32] = users @ padded.T  # (B, N + 1)
        np.put_along_axis(scores, requests.rows, -np.inf, axis=1)
        return scores[:, 1:]

    return score
