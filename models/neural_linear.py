"""Neural-linear columns: what the student makes of a user and an item, for a linear learner.

Reads   the student's vectors of users and items.
Emits   `models.arms.N_NEURAL` columns of each arm.
Owns    the projection.

The student scores an item by its vector's product with the user's: the sum over coordinates of
u_i v_i. That sum is an arm's `score_z` already. Here the summands stay apart, as far as few
columns can tell them: a fixed random projection mixes them into `N_NEURAL` numbers, and the
Bayesian learner weighs these anew by what pushes earn.

This is the last layer of the student and no deeper one; it is not trained for rewards. Another
student's coordinates mean something else, so what was learned of these columns is void when a
student is replaced, until as much was learned again: a half-life lets it fade.

References: Riquelme et al., "Deep Bayesian bandits showdown", ICLR 2018; Li et al., "Very sparse
random projections", KDD 2006, of which this is the dense kind.
"""

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.arms import DECIMALS, LIMIT, N_NEURAL

_SEED: Final = 20_011  # with another one, learned columns would mean something else


def neural_columns(users: NDArray[np.float32], items: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the columns of K arms for each of S users, float32, shape (S, K, N_NEURAL).

    Parameters
    ----------
    users
        Shape (S, M), of any length.
    items
        Shape (S, K, M); a row of zeros, an item without a vector, has zeros.

    Notes
    -----
    Lengths are left out: `score_z` has them. A column is about 1 in size. No row depends on the
    others, nor on BLAS. About 40 us for 20 arms of 64 coordinates.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> users = rng.normal(size=(2, 8)).astype(np.float32)
    >>> items = rng.normal(size=(2, 3, 8)).astype(np.float32)
    >>> columns = neural_columns(users, items)
    >>> columns.shape == (2, 3, N_NEURAL)
    True
    >>> bool((neural_columns(users[1:], items[1:]) == columns[1:]).all())
    True
    """
    product = _unit(users)[:, None, :] * _unit(items)  # (S, K, M)
    columns: NDArray[np.float64] = np.einsum("skm,mc->skc", product, _projection(users.shape[-1]))
    return columns.clip(-LIMIT, LIMIT).round(DECIMALS).astype(np.float32)


@cache
def _projection(dim: int) -> NDArray[np.float64]:
    """Return signs, scaled so that a column of the product of two unit vectors is about 1."""
    signs = np.random.RandomState(_SEED).randint(0, 2, size=(dim, N_NEURAL)) * 2.0 - 1.0
    return np.asarray(signs * np.sqrt(dim), np.float64)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    length = np.sqrt(np.einsum("...m,...m->...", wide, wide))[..., None]
    unit: NDArray[np.float64] = np.zeros_like(wide)
    np.divide(wide, length, out=unit, where=length > 0)
    return unit
