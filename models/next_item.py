"""How good models are at the next item: full ranking, several models on the same requests.

Reads   scores of all items at moments of users, whatever gives them.
Emits   metrics as means over requests, with intervals by the bootstrap over users.
Owns    which items are ranked, and how the baselines of `models.baselines` are asked.

All items are ranked, never a sample. **Ties count against the model** (`models.evaluate`): an
item's rank is one more than the number of others that score at least as high. Lists, for coverage
and novelty, settle ties by the items' order, which has nothing to do with what users did.

Unless repeats are asked for, what a user had before is left out of the ranking, for every model,
and so are the requests whose answer it is: a film is rated once.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.baselines import Baseline, Interactions, matrix_of
from models.candidate_metrics import Mean, Resampling, coverage, novelty
from models.dataset import TARGET_WEIGHT, Histories, Requests, requests_at, targets_between
from models.evaluate import ranks

CUTS: Final = (5, 10, 20)
_BLOCK: Final = 256  # requests scored at a time: bounds memory at 256 x N scores
_DAY_S: Final = 86_400

Rows = NDArray[np.int64]
Floats = NDArray[np.floating]
Score = Callable[[Rows], Floats]  # events (B,) -> scores of all N items at that moment, (B, N)


class Exam(NamedTuple):
    """The requests that all models answer."""

    histories: Histories
    events: Rows  # what came next, shape (P,)
    repeats: bool  # whether items that the user had are ranked too


class Answers(NamedTuple):
    """A model's answers."""

    rank: Rows  # of the item that came next, shape (P,)
    lists: Rows  # item rows, best first, 0 where nothing is left, shape (P, max(CUTS))


def exam(
    histories: Histories,
    since_s: int,
    until_s: int | None,
    *,
    repeats: bool,
    limit: int,
) -> Exam:
    """Return at most `limit` requests whose answers fell in [since_s, until_s), evenly strided."""
    events = targets_between(histories, since_s, until_s, limit=len(histories.rows))
    if not repeats:
        events = events[~_is_known(histories)[events]]
    if len(events) > limit:
        events = events[np.linspace(0, len(events) - 1, limit).astype(np.int64)]
    return Exam(histories, events, repeats)


def answers(score: Score, exam: Exam) -> Answers:
    """Return where a model ranks what came next, and what it would have shown."""
    found = []
    for start in range(0, len(exam.events), _BLOCK):
        events = exam.events[start : start + _BLOCK]
        scores = np.array(score(events), np.float32)  # (B, N), a copy
        if not exam.repeats:
            owners, rows, _ = pasts(exam.histories, events)
            scores[owners, rows - 1] = -np.inf
        targets = exam.histories.rows[events] - 1
        rank = ranks(scores, np.arange(len(events)), targets)
        found.append(Answers(rank, _lists(scores, max(CUTS))))
    return Answers(*(np.concatenate(column) for column in zip(*found, strict=True)))


def of_requests(score: Callable[[Requests], Floats], histories: Histories) -> Score:
    """Return the score of a model that reads requests."""
    return lambda events: score(requests_at(histories, events))


def of_baseline(baseline: Baseline, histories: Histories, n_items: int) -> Score:
    """Return the score of a fitted baseline, which reads the user's whole past."""

    def score(events: Rows) -> Floats:
        owners, rows, age_s = pasts(histories, events)
        past = _newest(owners, rows, age_s / _DAY_S, len(events))
        return baseline.scores(matrix_of(past, n_items + 1, baseline.half_life))[:, 1:]

    return score


def fit(baseline: Baseline, histories: Histories, n_items: int, *, until_s: int) -> None:
    """Fit a baseline on what was before a moment, seconds."""
    users = np.repeat(np.arange(len(histories.user_ids)), np.diff(histories.offsets))
    is_past = (histories.time_s < until_s) & (TARGET_WEIGHT[histories.types] > 0)
    age_days = (until_s - histories.time_s[is_past]) / _DAY_S
    had = _newest(users[is_past], histories.rows[is_past], age_days, len(histories.user_ids))
    baseline.fit(matrix_of(had, n_items + 1, baseline.half_life))


def pasts(histories: Histories, events: Rows) -> tuple[Rows, Rows, Rows]:
    """Return who (0 to B - 1), which row and how long ago, seconds, of all before each event.

    Only events that say an item was wanted, shape (E,) each, in time order by event.
    """
    users = np.searchsorted(histories.offsets, events, side="right") - 1
    firsts = histories.offsets[users]
    sizes = events - firsts
    owners = np.repeat(np.arange(len(events)), sizes)
    at = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    at = at + np.repeat(firsts, sizes)
    is_wanted = TARGET_WEIGHT[histories.types[at]] > 0
    owners, at = owners[is_wanted], at[is_wanted]
    return owners, histories.rows[at], histories.time_s[events][owners] - histories.time_s[at]


def values(rank: Rows) -> dict[str, NDArray[np.float64]]:
    """Return what each request is worth by every metric, shape (P,).

    With one right item a request recall is the hit rate, and NDCG is 1 / log2(1 + rank).

    >>> found = values(np.array([1, 3, 30]))
    >>> [found[name].round(3).tolist() for name in ("hr@5", "ndcg@5", "mrr@5")]
    [[1.0, 1.0, 0.0], [1.0, 0.5, 0.0], [1.0, 0.333, 0.0]]
    """
    found = {}
    for cut in CUTS:
        is_hit = rank <= cut
        found[f"hr@{cut}"] = is_hit.astype(np.float64)
        found[f"ndcg@{cut}"] = is_hit / np.log2(1.0 + rank)
        found[f"recall@{cut}"] = is_hit.astype(np.float64)
        found[f"mrr@{cut}"] = is_hit / rank
    return found


class Judge:
    """Means and intervals of models on one exam; all meet the same resamples of its users.

    Parameters
    ----------
    exam
        The requests.
    known_s
        Seconds: novelty counts who had an item before then.
    n_items
        N.
    seed
        Of the resamples.
    """

    def __init__(self, exam: Exam, *, known_s: int, n_items: int, seed: int) -> None:
        histories = exam.histories
        users = np.searchsorted(histories.offsets, exam.events, side="right") - 1
        _, self._user = np.unique(users, return_inverse=True)
        self._resampling = Resampling(self._user, seed)
        owners = np.repeat(np.arange(len(histories.user_ids)), np.diff(histories.offsets))
        is_past = histories.time_s < known_s
        pairs = np.unique(np.stack((owners[is_past], histories.rows[is_past]), axis=1), axis=0)
        self._had = np.bincount(pairs[:, 1], minlength=n_items + 1)
        self._n_users = len(np.unique(pairs[:, 0]))
        self._n_items = n_items

    def means(self, runs: Sequence[Answers]) -> dict[str, Mean]:
        """Return each metric of a model, the mean of its runs with several seeds."""
        return {name: self._resampling.mean(found) for name, found in _mean_of(runs).items()}

    def gain(self, ours: Sequence[Answers], theirs: Sequence[Answers], metric: str) -> Mean:
        """Return by how much a model beats another on the same requests, with its interval."""
        return self._resampling.mean(_mean_of(ours)[metric] - _mean_of(theirs)[metric])

    def spread(self, runs: Sequence[Answers], k: int) -> dict[str, float]:
        """Return coverage and novelty of the first k, the mean of a model's runs."""
        return {
            f"coverage@{k}": float(np.mean([coverage(r.lists, k, self._n_items) for r in runs])),
            f"novelty@{k}": float(
                np.mean([novelty(r.lists, k, self._had, self._n_users) for r in runs])
            ),
        }


def _mean_of(runs: Sequence[Answers]) -> dict[str, NDArray[np.float64]]:
    each = [values(run.rank) for run in runs]
    return {name: np.mean([found[name] for found in each], axis=0) for name in each[0]}


def _is_known(histories: Histories) -> NDArray[np.bool_]:
    """Return whether the user had an event's item before, shape (E,)."""
    users = np.repeat(np.arange(len(histories.user_ids)), np.diff(histories.offsets))
    pairs = np.stack((users, histories.rows), axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)
    is_known = np.ones(len(users), np.bool_)
    is_known[first] = False
    return is_known


def _newest(owners: Rows, rows: Rows, age_days: Floats, n_owners: int) -> Interactions:
    """Return one entry an owner and row, the youngest; entries come in time order by owner."""
    pairs = np.stack((owners, rows), axis=1)[::-1]
    _, first = np.unique(pairs, axis=0, return_index=True)
    at = len(owners) - 1 - first
    return Interactions(owners[at], rows[at], age_days[at].astype(np.float64), n_owners)


def _lists(scores: NDArray[np.float32], k: int) -> Rows:
    k = min(k, scores.shape[1])
    least = np.partition(scores, -k, axis=1)[:, -k]  # (B,)
    lists = np.zeros((len(scores), k), np.int64)
    for own, low, out in zip(scores, least, lists, strict=True):
        (at,) = np.nonzero((own >= low) & (own > -np.inf))
        at = at[np.argsort(-own[at], kind="stable")][:k]
        out[: len(at)] = at + 1
    return lists
