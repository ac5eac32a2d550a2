"""How good models are at the next item: full ranking, several models on the same requests.

Reads   scores of all items at moments of users, whatever gives them.
Emits   metrics as means over requests, with intervals by the bootstrap over users.
Owns    which items are ranked, and how the baselines of `models.baselines` are asked.

All items are ranked, never a sample. **Ties count against the model** (`models.evaluate`): an
item's rank is one more than the number of others that score at least as high. Lists, for coverage
and novelty, settle ties by the items' order, which has nothing to do with what users did.

Probabilities, for the calibration error, are the softmax of a model's scores over what is ranked,
or of a baseline, whose scores are no logits, their share of the sum.

Unless repeats are asked for, what a user had before is left out of the ranking, for every model,
and so are the requests whose answer it is: a film is rated once.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.baselines import Baseline, Interactions, matrix_of
from models.candidate_metrics import Mean, Resampling, coverage, diversity, novelty
from models.dataset import (
    TARGET_WEIGHT,
    Histories,
    Requests,
    basket_starts,
    requests_at,
    targets_between,
)
from models.evaluate import ranks

CUTS: Final = (5, 10, 20)
_BLOCK: Final = 256  # requests scored at a time: bounds memory at 256 x N scores
_DAY_S: Final = 86_400
_BINS: Final = 10  # of confidence, each with as many requests

Rows = NDArray[np.int64]
Floats = NDArray[np.floating]
Score = Callable[[Rows], Floats]  # events (B,) -> scores of all N items at that moment, (B, N)


class Exam(NamedTuple):
    """The requests that all models answer."""

    histories: Histories
    events: Rows  # what came next, shape (P,)
    asked: Rows  # the event before which it is asked for, shape (P,)
    repeats: bool  # whether items that the user had are ranked too


class Answers(NamedTuple):
    """A model's answers."""

    rank: Rows  # of the item that came next, shape (P,)
    lists: Rows  # item rows, best first, 0 where nothing is left, shape (P, max(CUTS))
    auc: Floats  # share of the other ranked items that score lower, shape (P,)
    confidence: Floats  # probability of the first item by the model, shape (P,)


def exam(
    histories: Histories,
    since_s: int,
    until_s: int | None,
    *,
    repeats: bool,
    limit: int,
    baskets: bool = False,
) -> Exam:
    """Return at most `limit` requests whose answers fell in [since_s, until_s), evenly strided.

    `baskets` asks for every item of a basket, which is what a user did in one second, before its
    first, of users who did something before; else each is asked for right before it.
    """
    events = targets_between(
        histories, since_s, until_s, limit=limit, repeats=repeats, baskets=baskets
    )
    asked = basket_starts(histories)[events] if baskets else events
    return Exam(histories, events, asked, repeats)


def answers(score: Score, exam: Exam, *, is_logit: bool = True) -> Answers:
    """Return where a model ranks what came next, what it would have shown, and how sure it is.

    `is_logit` says whether its scores are logits, else they are counts of a kind.
    """
    found = []
    for start in range(0, len(exam.events), _BLOCK):
        events = exam.events[start : start + _BLOCK]
        asked = exam.asked[start : start + _BLOCK]
        scores = np.array(score(asked), np.float32)  # (B, N), a copy
        if not exam.repeats:
            owners, rows, _ = pasts(exam.histories, asked)
            scores[owners, rows - 1] = -np.inf
        targets = exam.histories.rows[events] - 1
        rank = ranks(scores, np.arange(len(events)), targets)
        n_others = np.maximum(np.count_nonzero(scores > -np.inf, axis=1) - 1, 1)
        sure = _confidence(scores, is_logit=is_logit)
        found.append(Answers(rank, _lists(scores, max(CUTS)), 1 - (rank - 1) / n_others, sure))
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

    With one right item a request recall is the hit rate, NDCG is 1 / log2(1 + rank), and precision
    is a K-th of the hit rate.

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
        found[f"precision@{cut}"] = is_hit / cut
        found[f"f1@{cut}"] = 2 * is_hit / (cut + 1)
    return found | {"mrr": 1 / rank}


def calibration_error(found: Answers, targets: Rows) -> float:
    """Return by how much a model's confidence in its first item differs from how often it is right.

    The mean over ten bins of confidence with as many requests each (expected calibration error).

    >>> run = Answers(np.array([1, 2]), np.array([[3], [3]]), np.ones(2), np.array([0.5, 0.5]))
    >>> calibration_error(run, np.array([3, 4]))
    0.0
    """
    is_right = found.lists[:, 0] == targets
    order = np.argsort(found.confidence, kind="stable")
    error = 0.0
    for own in np.array_split(order, min(_BINS, max(1, len(order) // _BINS))):
        error += abs(float((found.confidence[own] - is_right[own]).sum()))
    return error / max(1, len(order))


class Judge:
    """Means and intervals of models on one exam; all meet the same resamples of its users.

    Parameters
    ----------
    exam
        The requests.
    known_s
        Seconds: novelty counts who had an item before then.
    vectors
        Of the items' contents, shape (N, D): how unlike the items of a list are is measured by
        them.
    seed
        Of the resamples.
    """

    def __init__(self, exam: Exam, *, known_s: int, vectors: Floats, seed: int) -> None:
        histories, n_items = exam.histories, len(vectors)
        self._targets = histories.rows[exam.events]
        self._vectors = np.vstack((np.zeros((1, vectors.shape[1])), vectors))  # (N + 1, D)
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
        """Return coverage, novelty and diversity of the first k, the mean of a model's runs."""
        return {
            f"coverage@{k}": float(np.mean([coverage(r.lists, k, self._n_items) for r in runs])),
            f"novelty@{k}": float(
                np.mean([novelty(r.lists, k, self._had, self._n_users) for r in runs])
            ),
            f"diversity@{k}": float(np.mean([diversity(r.lists, k, self._vectors) for r in runs])),
        }

    def calibration(self, runs: Sequence[Answers]) -> float:
        """Return the calibration error, the mean of a model's runs."""
        return float(np.mean([calibration_error(run, self._targets) for run in runs]))


def _mean_of(runs: Sequence[Answers]) -> dict[str, NDArray[np.float64]]:
    each = [{**values(run.rank), "auc": np.asarray(run.auc, np.float64)} for run in runs]
    return {name: np.mean([found[name] for found in each], axis=0) for name in each[0]}


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


def _confidence(scores: NDArray[np.float32], *, is_logit: bool) -> NDArray[np.float64]:
    """Return the probability of each request's best item, shape (B,)."""
    wide = scores.astype(np.float64)
    best = wide.max(axis=1)
    if is_logit:
        probability: NDArray[np.float64] = 1 / np.exp(wide - best[:, None]).sum(axis=1)
        return probability
    sums = np.maximum(wide, 0.0).sum(axis=1)  # what is left out, at -inf, is 0
    shares: NDArray[np.float64] = np.zeros_like(sums)
    np.divide(np.maximum(best, 0.0), sums, out=shares, where=sums > 0)
    return shares
