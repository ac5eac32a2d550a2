"""Retrieval by what goes together alone: a user is the fading sum of their items' factors.

Reads   rows of histories and factors of items (`models.factors`).
Emits   users' vectors, to be multiplied by the factors.

Where orders are large and order in them says little, a network that learns the next item finds
less of a user's next order than this does. Training measures which finds more, and the student's
file holds the factors where they do (`models.train`).
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.dataset import TARGET_WEIGHT
from models.features import HISTORY
from models.item_vectors import widened

FADING: Final = 0.99  # a place: the oldest of 50 items says 0.6 of the newest


def plain_users(
    vectors: NDArray[np.floating], rows: NDArray[np.int64], types: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the users' vectors, float32, shape (B, M).

    Parameters
    ----------
    vectors
        Factors of items below a row of zeros, shape (N + 1, M).
    rows, types
        Of histories, oldest first, padded with 0 on the left, shape (B, T). What a user took back
        says nothing.

    Notes
    -----
    Added up place by place, so that a user's bytes do not depend on who is beside them. 8 µs a
    user in a batch of 32.

    Examples
    --------
    >>> rows, types = np.zeros((1, HISTORY), np.int64), np.ones((1, HISTORY), np.int64)
    >>> rows[0, -2:] = 1, 2
    >>> plain_users(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), rows, types).round(2).tolist()
    [[0.99, 1.0]]
    """
    items = widened(vectors[np.where(TARGET_WEIGHT[types] > 0, rows, 0)])  # (B, T, M)
    users = np.zeros((len(rows), vectors.shape[1]), np.float32)
    for place in range(HISTORY):
        users += items[:, place] * np.float32(FADING ** (HISTORY - 1 - place))
    return users
