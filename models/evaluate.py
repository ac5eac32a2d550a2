"""How good a ranking is: hits, recall, precision, NDCG and MRR over the whole catalogue.

Reads   scores of all items for each request, and which items were the right ones.
Emits   means over requests.
Owns    the rule for ties.

**Ties count against the ranker**: an item's rank is one more than the number of other items
that score at least as high. A model that gives everything the same score ranks last, not by
luck of the sort, and popularity is not helped by the many items with the same count. Scores
that are not numbers rank last.

The whole catalogue is ranked, never a sample of negatives: sampled metrics can order models
the other way round (Krichene and Rendle, KDD 2020).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.dataset import Histories, Requests, basket_starts, requests_at

CUTS: Final = (10, 100)
_BLOCK: Final = 256  # requests scored at a time: bounds memory at 256 x N scores


def ranks(
    scores: NDArray[np.floating], rows: NDArray[np.int64], items: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the rank, from 1, of `items[i]` among the scores of request `rows[i]`.

    `scores` has shape (B, N); `rows` and `items` are parallel, shape (P,).

    >>> scores = np.array([[3.0, 1.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    >>> ranks(scores, np.array([0, 0, 1]), np.array([0, 3, 2])).tolist()
    [2, 3, 4]
    """
    known = np.where(np.isnan(scores), -np.inf, scores)
    own = known[rows, items]
    # The item itself is among those counted, so ranks start from 1.
    rank: NDArray[np.int64] = np.count_nonzero(known[rows] >= own[:, None], axis=1)
    return rank


def ranking_metrics(
    scores: NDArray[np.floating],
    relevant: Sequence[Iterable[int]],
    *,
    cuts: Sequence[int] = CUTS,
) -> dict[str, float]:
    """Return hr, ndcg, recall and precision at each cut, and mrr, as means over requests.

    Parameters
    ----------
    scores
        Of all items, higher is better, shape (B, N); -inf leaves an item out.
    relevant
        For each request the columns of its right items, each once, at least one.

    Notes
    -----
    With one right item a request, recall is the hit rate, and NDCG is 1 / log2(1 + rank).
    With several, the ideal DCG of NDCG@k has as many right items as fit into k.

    Examples
    --------
    >>> scores = np.array([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    >>> found = ranking_metrics(scores, [[2], [0, 2]], cuts=(2,))
    >>> found["hr@2"], found["recall@2"], found["mrr"]
    (1.0, 0.75, 0.75)
    """
    sizes = np.array([len(list(items)) for items in relevant], np.int64)  # (B,)
    if len(sizes) != len(scores) or not len(sizes) or not sizes.all():
        raise ValueError("every request needs one right item or more")
    rows = np.repeat(np.arange(len(sizes)), sizes)
    columns = np.array([item for items in relevant for item in items], np.int64)
    return _metrics_from_ranks(ranks(scores, rows, columns), rows, sizes, cuts=cuts)


def _metrics_from_ranks(
    rank: NDArray[np.int64],
    rows: NDArray[np.int64],
    sizes: NDArray[np.int64],
    *,
    cuts: Sequence[int] = CUTS,
) -> dict[str, float]:
    """Return the metrics of ranks (P,) of requests `rows` (P,), with `sizes` (B,) right items."""
    n_requests = len(sizes)
    metrics: dict[str, float] = {}
    for cut in cuts:
        is_hit = rank <= cut
        hits = np.bincount(rows, is_hit, n_requests)
        gains = np.bincount(rows, is_hit / np.log2(1.0 + rank), n_requests)
        ideal = np.cumsum(1.0 / np.log2(2.0 + np.arange(cut)))[np.minimum(sizes, cut) - 1]
        metrics[f"hr@{cut}"] = float((hits > 0).mean())
        metrics[f"ndcg@{cut}"] = float((gains / ideal).mean())
        metrics[f"recall@{cut}"] = float((hits / sizes).mean())
        metrics[f"precision@{cut}"] = float((hits / cut).mean())
    best = np.zeros(n_requests)
    np.maximum.at(best, rows, 1.0 / rank)
    metrics["mrr"] = float(best.mean())
    return metrics


def next_item_ranks(
    score: Callable[[Requests], NDArray[np.floating]],
    histories: Histories,
    events: NDArray[np.int64],
    *,
    baskets: bool = False,
) -> NDArray[np.int64]:
    """Return the rank of each target event's item by a model, shape (P,).

    `score` takes requests of B users and returns scores of all N items, shape (B, N), item row
    1 first. It sees each user's events before the target, or with `baskets` before the first of
    its basket, whenever the model was trained.
    """
    found = [np.empty(0, np.int64)]
    asked = basket_starts(histories)[events] if baskets else events
    for start in range(0, len(events), _BLOCK):
        part = slice(start, start + _BLOCK)
        scores = score(requests_at(histories, asked[part]))
        targets = histories.rows[events[part]]
        found.append(ranks(scores, np.arange(len(targets)), targets - 1))
    return np.concatenate(found)


def of_new(
    score: Callable[[Requests], NDArray[np.floating]],
) -> Callable[[Requests], NDArray[np.floating]]:
    """Return a score that ranks last what the request's window holds."""

    def found(asked: Requests) -> NDArray[np.floating]:
        scores = np.array(score(asked))
        owner, place = np.nonzero(asked.rows)
        scores[owner, asked.rows[owner, place] - 1] = -np.inf
        return scores

    return found


def next_item_metrics(rank: NDArray[np.int64], *, cuts: Sequence[int] = CUTS) -> dict[str, float]:
    """Return hr and ndcg at each cut, and mrr, of one right item a request; zeros without any.

    >>> next_item_metrics(np.array([1, 3]), cuts=(2,))
    {'hr@2': 0.5, 'ndcg@2': 0.5, 'mrr': 0.667}
    """
    names = [*(f"{kind}@{cut}" for cut in cuts for kind in ("hr", "ndcg")), "mrr"]
    if not len(rank):
        return dict.fromkeys(names, 0.0)
    ones = np.ones(len(rank), np.int64)
    metrics = _metrics_from_ranks(rank, np.arange(len(rank)), ones, cuts=cuts)
    return {name: metrics[name] for name in names}
