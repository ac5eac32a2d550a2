"""What the teacher knows before its first step: popularity, and what goes together.

Reads   histories before a moment.
Emits   nothing; the teacher's parameters are set.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.dataset import TARGET_WEIGHT, Histories
from models.factors import item_factors
from models.teacher import Teacher

SEEDED: Final = ("factors", "pool")  # parameters that are known from the start, and learn slowly
_SEEDED_LOGITS: Final = 30.0  # of what a user is sure to want: products of factors are 0 to 1


def start(
    teacher: Teacher,
    histories: Histories,
    counts: NDArray[np.float64],
    *,
    until_s: int,
    seed: int,
) -> None:
    """Let the network's last column begin as popularity, and the factors as a factorisation.

    Parameters
    ----------
    counts
        Of each row before `until_s`, as `models.dataset.popularity` has them, shape (N + 1,).
    until_s
        Seconds; nothing from then on is looked at.
    seed
        Of the factorisation.
    """
    is_known = counts[1:] > 0
    logs = np.log1p(counts[1:])
    logs -= logs[is_known].mean() if is_known.any() else 0.0
    own, factors = teacher.ids.weight, teacher.factors
    with torch.no_grad():
        own[:, -1] = torch.from_numpy(logs.astype(np.float32))
        own *= torch.from_numpy(is_known[:, None])
        # One of the known items is right: the offset says so, the vectors need not.
        teacher.offset.fill_(-float(np.log(max(1, int(is_known.sum())))))
    if not teacher.config.factors:
        return
    is_past = (histories.time_s < until_s) & (TARGET_WEIGHT[histories.types] > 0)
    users = np.repeat(np.arange(len(histories.user_ids)), np.diff(histories.offsets))
    rows, width = histories.rows[is_past] - 1, teacher.config.factors
    found = item_factors(users[is_past], rows, len(own), width=width, seed=seed)
    has_some = found.any(axis=1)
    if not has_some.any():
        return
    length = float(np.linalg.norm(found[has_some], axis=1).mean())
    with torch.no_grad():
        factors.copy_(torch.from_numpy((found / length).astype(np.float32)))
        teacher.pool.copy_(torch.eye(width) * _SEEDED_LOGITS * length**2)
        teacher.user_out.bias[-1] = 0.0  # the factors know popularity already
