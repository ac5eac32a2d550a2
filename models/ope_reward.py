"""What an arm would have earned, by ridge regression that never judges what it was fitted to.

Reads   `models.ope_log.BanditLog`.
Emits   an expected reward for each arm of each decision.
Owns    the folds: a decision's arms are valued by a model of the other folds' groups.

Without that a model would have seen the noise of the reward that it is to explain, and the
doubly robust estimates would be drawn to their own mistakes. Groups and not decisions are dealt
out, for a user's decisions resemble each other.

The model is linear, without an intercept of its own: the design brings a column of ones, and an
arm whose row is zeros, such as "send nothing", is worth exactly 0.
"""

from typing import Final

import numpy as np

from models.ope_log import BanditLog, Codes, Floats

FOLDS: Final = 5
RIDGES: Final = (1.0, 10.0, 100.0, 1_000.0)  # in rows of size 1; the best on other folds is taken


def cross_fitted(log: BanditLog, *, folds: int = FOLDS, seed: int = 1) -> Floats:
    """Return the expected reward of every arm, shape (M,), within the log's range of rewards.

    Parameters
    ----------
    log
        With at least two groups.
    folds
        How many parts the groups are dealt out to, > 1; of fewer groups each is a part.
    seed
        Of the deal.

    Notes
    -----
    O(M D + folds D^3) time, O(N D) memory.

    Examples
    --------
    >>> from models.ope_log import alike
    >>> cross_fitted(alike(2, [0.5] * 100)).round(3)[:2].tolist()
    [0.494, 0.494]
    """
    fold_of = deal(log.groups, folds, seed)
    x = np.array([log.rows(n)[log.chosen[n] - log.offsets[n]] for n in range(log.n)])  # (N, D)
    models = _fit(x, log.rewards, fold_of)
    values = np.concatenate([log.rows(n) @ models[fold_of[n]] for n in range(log.n)])
    clipped: Floats = values.clip(*log.reward_range)
    return clipped


def deal(groups: Codes, folds: int, seed: int) -> Codes:
    """Return the fold of each decision: groups are dealt out at random, in equal numbers.

    >>> deal(np.array([7, 7, 8, 9]), 2, seed=1).tolist()
    [0, 0, 1, 0]
    """
    names, place = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise ValueError("a reward model needs decisions of two groups at least")
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of: Codes = (order % min(folds, len(names)))[place]
    return fold_of


def _fit(x: Floats, y: Floats, fold_of: Codes) -> list[Floats]:
    """Return each fold's model, fitted to the others, all with the ridge that errs least."""
    folds = [fold_of == fold for fold in range(fold_of.max() + 1)]
    grams = [x[own].T @ x[own] for own in folds]
    moments = [x[own].T @ y[own] for own in folds]
    gram, moment = sum(grams), sum(moments)
    best: tuple[float, list[Floats]] | None = None
    for ridge in RIDGES:
        penalty = ridge * np.eye(x.shape[1])
        models = [
            np.linalg.solve(gram - own + penalty, moment - part)
            for own, part in zip(grams, moments, strict=True)
        ]
        error = sum(
            float(np.square(y[own] - x[own] @ model).sum())
            for own, model in zip(folds, models, strict=True)
        )
        if best is None or error < best[0]:
            best = error, models
    assert best is not None  # noqa: S101  # RIDGES is not empty
    return best[1]
