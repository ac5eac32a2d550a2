"""The action set: which of a trigger's candidates the policy chooses among.

Reads   the student's scores of the candidates, which come in their own order.
Emits   the places of the best, best first.
Owns    how the two orders become one, and the places that are kept for what is explored.

Reciprocal-rank fusion: the policy gets what either order is sure of. On online-retail, as the job
was when this was chosen, one of the first ten was in the next invoice in 35.9% of cases so, and in
30.0% by the student's order alone (`python -m bench.retail`).
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled

Rows = NDArray[np.int64]

_RRF: Final = 60
_OWN_WEIGHT: Final = 2.0  # of the candidates' own order; the student's has 1


@compiled()
def _best_first(values: NDArray[np.floating]) -> Rows:
    """Return the places of values, the largest first; equal ones keep their order."""
    order = np.empty(len(values), np.int64)
    for k in range(len(values)):  # sorted by insertion: there are a hundred at most
        at = k
        while at > 0 and values[order[at - 1]] < values[k]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = k
    return order


@compiled("int64[::1](float32[::1], boolean[::1], int64, int64)")
def best_places(
    scores: NDArray[np.float32], is_explored: NDArray[np.bool_], n_explored: int, size: int
) -> Rows:
    """Return the places of the action set among K candidates, best first.

    Parameters
    ----------
    scores
        The student's, in the candidates' own order, best first; shape (K,).
    is_explored
        Which candidates are there to be explored, shape (K,).
    n_explored
        Places that these take, as far as there are so many, 0 to `size`.
    size
        Places at most.

    Examples
    --------
    >>> scores = np.float32([0.1, 0.4, 0.3, 0.2])
    >>> best_places(scores, np.zeros(4, np.bool_), 0, 3).tolist()
    [1, 0, 2]
    >>> best_places(scores, np.array([False, False, False, True]), 1, 3).tolist()
    [1, 0, 3]
    """
    worth = np.empty(len(scores))
    by_student = _best_first(scores)
    for rank in range(len(scores)):
        k = by_student[rank]
        worth[k] = 1 / (_RRF + rank) + _OWN_WEIGHT / (_RRF + k)
    n_first = min(n_explored, is_explored.sum())  # places that only these take
    n_others = size - n_first
    best = np.empty(min(size, len(scores)), np.int64)
    n_best = 0
    for k in _best_first(worth):
        if is_explored[k] and n_first > 0:
            n_first -= 1
        elif n_others > 0:
            n_others -= 1
        else:
            continue
        best[n_best] = k
        n_best += 1
    return best
