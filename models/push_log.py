"""Pushes as they were decided and answered, as arrays: what learning from outcomes reads.

Owns    the shape of the log; `flows.archived` makes it from files.

Everything in a row was known when the push was decided, but for its reward and outcomes: the
features are those that the policy saw, taken from its log and never computed again.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

OUTCOMES: Final = ("opened", "converted", "dismissed", "opted_out")


class PushLog(NamedTuple):
    """N pushes that were sent and whose time to be answered is over, with M arms in all.

    The arms of push n are `offsets[n]:offsets[n + 1]`, "send nothing" among them. Rows are in the
    order of `decided_ms`. Memory: 4 (C + M / N x A) bytes a push, and its ids.
    """

    decision_ids: list[str]
    user_ids: list[str]
    decided_ms: NDArray[np.int64]  # shape (N,)
    contexts: NDArray[np.float32]  # shape (N, C), columns of models.arms.POLICY_CONTEXT
    offsets: NDArray[np.int64]  # shape (N + 1,)
    item_ids: list[str]  # of the M arms
    features: NDArray[np.float32]  # shape (M, A), columns of models.arms.ARM
    probabilities: NDArray[np.float64]  # shape (M,), of the policy that decided
    chosen: NDArray[np.int64]  # shape (N,), row of the arm that was sent, of the M
    propensities: NDArray[np.float64]  # shape (N,), of that arm
    rewards: NDArray[np.float64]  # shape (N,), as `learn` adds them up
    outcomes: NDArray[np.bool_]  # shape (N, 4), of `OUTCOMES`
