"""What the teacher learns the next item by: the softmax, whole or sampled, or gBCE.

Reads   user vectors of examples, the items' table, and what came next.
Emits   the sum of the examples' losses, each by its weight.
Owns    which items an example is told were wrong.

Where nobody has an item twice, what a user had is no wrong answer: it is not asked about either. A
softmax that counts it as wrong teaches the opposite of what is wanted, for the items that a user
had are most like the one that comes next, and tied vectors push these away with them. So
`had` leaves it out. This matters most where items start from a factorisation: what a user
had is what it scores highest.

The sum, not the mean: parts of a batch, on several processes or one after the other, then add up
to the same loss.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.softmax import NEVER, cross_entropy_sum, ruled_out
from models.student import Negatives


def softmax_loss(
    users: Tensor,
    table: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    among: Tensor,
    negatives: Negatives | None = None,
    had: Tensor | None = None,
) -> Tensor:
    """Return the weighted sum of cross-entropies of E examples.

    Parameters
    ----------
    users
        User vectors, float32, shape (E, M).
    table
        Item vectors, shape (N + 1, M); row 0 is padding and never an answer.
    targets, weights
        The true rows, int64, and what each counts for, float32, shape (E,).
    among
        The rows that could be answers, int64, sorted, with all targets, shape (S,). Items that
        nobody has met yet must not be learned as wrong answers.
    negatives
        None takes the softmax over all of `among`; else over the target and the sample,
        corrected for how often the sampling draws each item (Yi et al. 2019, eq. 6).
    had
        Rows that are no wrong answers of an example, padded with 0, int64, shape (E, T). Not
        heeded among sampled negatives, which rarely hold them.

    Examples
    --------
    >>> table = torch.tensor([[0.0], [0.0], [9.0], [0.0]])
    >>> one = torch.ones(1)
    >>> among, target = torch.tensor([1, 2, 3]), torch.tensor([1])
    >>> round(float(softmax_loss(one[:, None], table, target, one, among=among)), 2)
    9.0
    >>> had = torch.tensor([[0, 2]])
    >>> round(float(softmax_loss(one[:, None], table, target, one, among=among, had=had)), 2)
    0.69
    """
    if negatives is None:
        items, places = F.embedding(among, table), torch.searchsorted(among, targets)
        ruled = None
        if had is not None:
            ruled = ruled_out(had.masked_fill(had == targets[:, None], 0), among)
        return cross_entropy_sum(users, items, places, weights, ruled=ruled)
    right = (users * F.embedding(targets, table)).sum(-1) - negatives.log_q[targets]  # (E,)
    wrong = users @ F.embedding(negatives.rows, table).T - negatives.log_q[negatives.rows]
    wrong = wrong.masked_fill(negatives.rows == targets[:, None], NEVER)  # (E, S)
    losses = torch.logsumexp(torch.cat((right[:, None], wrong), 1).float(), 1) - right
    return (losses * weights).sum()


def gbce_loss(
    users: Tensor,
    table: Tensor,
    targets: Tensor,
    weights: Tensor,
    negatives: Tensor,
    *,
    n_items: int,
    calibration: float,
    offset: Tensor | None = None,
) -> Tensor:
    """Return the weighted sum of generalised binary cross-entropies (Petrov and Macdonald, eq. 12).

    Parameters
    ----------
    users, table, targets, weights
        As in `softmax_loss`.
    negatives
        Rows drawn evenly from the items, int64, shape (S,).
    n_items
        Items that could be drawn.
    calibration
        t: 0 is plain BCE, 1 makes scores probabilities again in spite of the sampling.
    offset
        Added to all scores, shape (1,). Of thousands of items one is right: without it the user
        vectors must first learn to say no to everything. The order of items has no use for it.

    Examples
    --------
    >>> table = torch.tensor([[0.0], [1.0], [-1.0]])
    >>> one = torch.ones(1)
    >>> loss = gbce_loss(torch.ones(1, 1), table, torch.tensor([1]), one, torch.tensor([2]),
    ...                  n_items=2, calibration=0.0)
    >>> round(float(loss), 4)  # -log sigmoid(1) - log(1 - sigmoid(-1))
    0.6265
    """
    share = min(1.0, len(negatives) / max(1, n_items - 1))  # alpha
    power = share * (calibration * (1 - 1 / share) + 1 / share)  # beta
    right = (users * F.embedding(targets, table)).sum(-1).float()  # (E,)
    wrong = (users @ F.embedding(negatives, table).T).float()  # (E, S)
    if offset is not None:
        right, wrong = right + offset, wrong + offset
    each = F.softplus(wrong).masked_fill(negatives == targets[:, None], 0.0)
    losses = power * F.softplus(-right) + each.sum(-1)
    return (losses * weights).sum()
