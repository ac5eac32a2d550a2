"""What the student knows before its first step: popularity, and what goes together.

Reads   histories before a moment.
Emits   factors of items; the student's parameters are set.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.dataset import TARGET_WEIGHT, Histories
from models.factors import item_factors
from models.student import Student

# What goes together is known from the start: its parameters learn slowly.
SEEDED: Final = ("ids.weight", "pool.weight")
_SEEDED_LOGITS: Final = 30.0  # of what a user is sure to want: products of factors are 0 to 1
_QUIET: Final = 0.1  # the rest of the network begins with a tenth of its usual say


def seed_popularity(student: Student, counts: NDArray[np.float64]) -> None:
    """Give items met in training the log of their count, centred, as popularity.

    Items not met get no vector of their own: their text speaks for them, as for an item that
    comes after training.
    """
    is_known = counts[1:] > 0
    logs = np.log1p(counts[1:])
    logs -= logs[is_known].mean() if is_known.any() else 0.0
    with torch.no_grad():
        student.ids.weight[:, -1] = torch.from_numpy(logs.astype(np.float32))
        student.ids.weight *= torch.from_numpy(is_known[:, None])


def factors_of(
    histories: Histories, n_items: int, width: int, until_s: int, seed: int
) -> NDArray[np.float64]:
    """Return factors of items by what was wanted before a time, shape (N, width)."""
    return item_factors(*wanted(histories, until_s), n_items, width=width, seed=seed)


def wanted(
    histories: Histories, until_s: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return users and items, from 0, of what was wanted before a time, or at all."""
    is_past = TARGET_WEIGHT[histories.types] > 0
    if until_s is not None:
        is_past &= histories.time_s < until_s
    users = np.repeat(np.arange(len(histories.user_ids)), np.diff(histories.offsets))
    return users[is_past], histories.rows[is_past] - 1


def seed_factors(student: Student, factors: NDArray[np.float64]) -> None:
    """Let the items' own vectors and the plain part of the user's begin as a factorisation.

    The last column stays the popularity, which the factors know already: it begins without a say.
    """
    own = student.ids.weight
    is_known = factors.any(axis=1)
    if not is_known.any():
        return
    length = float(np.linalg.norm(factors[is_known], axis=1).mean())
    with torch.no_grad():
        own[:, :-1] = torch.from_numpy((factors / length).astype(np.float32))
        student.pool.weight[:-1, :-1] = torch.eye(own.shape[1] - 1) * _SEEDED_LOGITS * length**2
        student.user_out.bias[-1] = 0.0
        for layer in (student.text, student.user_out, student.request_out):
            layer.weight *= _QUIET
