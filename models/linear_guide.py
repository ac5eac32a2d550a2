"""Distillation with what items say of each other: weights from item to item beside the teachers.

Reads   what the teachers tell of a batch, and histories before a moment.
Emits   `models.student.TeacherLogits`, as the teachers alone would.
Owns    how such weights are heard.

A network of some columns finds what many users show; weights from item to item (`models.linear`)
also know the pairs that few of them do, and order by both is better than by either. The student
hears the sum of the logits.

What a user's own events said to the weights they would say back as a certainty: in training the
item that came next is known to them. So each user hears weights that were made of others
(cross-fitting): users are dealt into folds by lot, and a fold hears what the other folds say.

On online-retail, by baskets, students that heard them at 8 logits for a weight of 1 were better by
2.3% on the validation and 2.3% on the test (three seeds, the same teachers); on ml-latest-small by
0.5% and -0.5% (`bench/RESULTS.md`).

References
----------
Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019 (the weights).
Cheng et al., "Wide & Deep Learning for Recommender Systems", DLRS 2016 (both, summed).
Dao et al., "Knowledge Distillation as Semiparametric Inference", ICLR 2021 (cross-fitting).
"""

from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.dataset import Histories, Windows
from models.linear import fading_pasts, item_weights, matrix_of
from models.llm_guide import Guide
from models.student import TeacherLogits
from models.student_start import wanted

_FOLDS: Final = 5
_BLOCK: Final = 512  # examples at a time: bounds memory at 512 x N scores


class CrossFitted(NamedTuple):
    """Weights from item to item by folds of the U users, each of all users but the fold's own."""

    folds: NDArray[np.int64]  # of each user, shape (U,)
    matrices: list[Any]  # by fold, sparse, shape (N, N)


def cross_fitted(histories: Histories, n_items: int, until_s: int, seed: int) -> CrossFitted:
    """Return weights of what was wanted before a moment, as often as there are folds.

    `seed` deals the users. Each fold costs what `models.linear.item_weights` does: all five of
    online-retail, 3,900 items, take 6 s.
    """
    users, rows = wanted(histories, until_s)
    folds = np.random.default_rng(seed).integers(0, _FOLDS, len(histories.user_ids))
    matrices = []
    for fold in range(_FOLDS):
        others = folds[users] != fold
        matrices.append(matrix_of(item_weights(users[others], rows[others], n_items, seed)))
    return CrossFitted(folds, matrices)


class LinearGuide:
    """A guide in which weights from item to item are added to what the teachers say.

    Parameters
    ----------
    guide
        Of the teachers (`models.distill.TeacherGuide`).
    weights
        From `cross_fitted`, of the histories that the batches are made of.
    loudness
        Logits for a weight of 1.

    Notes
    -----
    470 examples with 800 candidates each, over 3,900 items, cost 9 ms of CPU.
    """

    def __init__(self, guide: Guide, weights: CrossFitted, loudness: float) -> None:
        self._guide = guide
        self._weights = weights
        self._loudness = loudness

    def __call__(self, batch: Windows) -> TeacherLogits:
        """Return candidates and logits of the positions with a weight, in their order."""
        told = self._guide(batch)
        which, at = batch.asked()  # (E,) each
        folds = self._weights.folds[batch.users[which]]
        candidates = told.candidates.cpu().numpy()
        added = np.zeros(candidates.shape, np.float32)  # (E, Kt)
        for fold, matrix in enumerate(self._weights.matrices):
            own = np.flatnonzero(folds == fold)
            for start in range(0, len(own), _BLOCK):
                part = own[start : start + _BLOCK]
                rows, types = batch.rows[which[part]], batch.types[which[part]]
                pasts = fading_pasts(rows, types, at[part], matrix.shape[0])
                scores = (pasts @ matrix).toarray()  # (b, N)
                added[part] = np.take_along_axis(scores, candidates[part] - 1, axis=1)
        more = torch.from_numpy(self._loudness * added).to(told.logits.device)
        return told._replace(logits=told.logits + more)
