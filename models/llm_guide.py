"""Distillation with a language model's say: a few examples hear it in place of the teacher.

Reads   what the sequence teacher tells of a batch, and labels that passed the gate.
Emits   `models.student.TeacherLogits`, as the teacher alone would.
Owns    how labels join.

An example is known by its newest items, which is all that the language model was told. Its
candidates take the places of the teacher's, over and over until all are filled: repeats move
neither what is learned from them, for both softmaxes repeat them alike, nor the shape. Among the
candidates may be items that nobody met: there the student learns from the text what the teacher
could not tell.
"""

from collections.abc import Callable

import numpy as np
import torch

from models.dataset import Windows
from models.llm_labels import PROMPT_ITEMS, Labels
from models.student import TeacherLogits

Guide = Callable[[Windows], TeacherLogits]


class LabelledGuide:
    """A teacher's guide in which labelled examples hear the language model.

    Parameters
    ----------
    guide
        Of the sequence teacher (`models.distill.TeacherGuide`).
    labels
        From `models.llm_labels.load_labels`.

    Attributes
    ----------
    n_heard
        Examples so far that a label was found for.

    Notes
    -----
    A batch costs a look-up an example, about 1 us. Memory: 8 (PROMPT_ITEMS + K) bytes a label.
    """

    def __init__(self, guide: Guide, labels: Labels) -> None:
        self._guide = guide
        self._labels = labels
        self._place_of = {key.tobytes(): place for place, key in enumerate(labels.keys)}
        self.n_heard = 0

    def __call__(self, batch: Windows) -> TeacherLogits:
        """Return candidates and logits of the positions with a weight, in their order."""
        told = self._guide(batch)
        which, last = batch.asked()  # (E,) each
        at = last[:, None] + np.arange(1 - PROMPT_ITEMS, 1)
        keys = np.where(at >= 0, batch.rows[which[:, None], np.maximum(at, 0)], 0)
        places = np.array([self._place_of.get(key.tobytes(), -1) for key in keys], np.int64)
        heard = np.flatnonzero(places >= 0)
        self.n_heard += len(heard)
        if not len(heard):
            return told
        own = np.arange(told.candidates.shape[1]) % self._labels.candidates.shape[1]
        candidates, logits = told.candidates.clone(), told.logits.clone()
        picked = places[heard]
        at_heard = torch.from_numpy(heard).to(logits.device)
        candidates[at_heard] = torch.from_numpy(self._labels.candidates[picked][:, own]).to(
            logits.device
        )
        logits[at_heard] = torch.from_numpy(self._labels.logits[picked][:, own]).to(logits.device)
        return told._replace(candidates=candidates, logits=logits)
