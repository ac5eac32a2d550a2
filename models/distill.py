"""Distillation: what a teacher thinks of each training example, as the student's loss takes it.

Reads   training windows, and trained teachers.
Emits   `models.student.TeacherLogits` of a batch, for `models.train.train_student`.
Owns    which candidates the student is told of.

Of each example the student hears about the teacher's best items and about some of the rest, drawn
evenly: the best say what goes with what, the rest that the tail is low, all of it. Both softmaxes
run over these candidates alone, so that what is imitated is the order and the distances among
them; the true next item has the other share of the loss, over all items.

Where an item is had once, what a user had is no candidate either: the teacher was not told that it
is wrong (`models.teacher_loss`), and nobody asks.

Beside that the student is asked to hold what the teacher's vectors of users hold, which is more
than its order of some items (`models.student.unmatched`).

Items that nobody met in training are no candidates: the teacher knows their text alone, as the
student does, and has nothing to tell of them.

References
----------
Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (the teacher's vectors, by a map).
Tang and Wang, "Ranking Distillation", KDD 2018 (the teacher's first K).
Lee et al., "Dual Correction Strategy for Ranking Distillation", CIKM 2021 (and some of the rest).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.dataset import Windows, pasts_of
from models.features import scale_context
from models.softmax import NEVER, ruled_out
from models.student import TeacherLogits
from models.teacher import Teacher

_BLOCK: Final = 512  # examples asked at a time: bounds memory at 512 x N scores


@dataclass(frozen=True)
class Distillation:
    """What the student hears of the teacher; chosen on the validation of ml-latest-small.

    Told of 100 and 100 with 0.8 of the loss, the student was no better than one that trained as
    long without (.0493 of both, three seeds without and one so; .0523 with these, three seeds).
    """

    top: int = 400  # the teacher's best items of an example
    tail: int = 400  # drawn from the rest
    temperature: float = 1.0
    share: float = 0.5  # of the loss; the rest is the true next item
    matching: float = 1.0  # what matching the vectors of users counts for, beside that; 0: nothing
    linear: float = 0.0  # logits for a weight from item to item (`models.linear_guide`); 0: unheard


class TeacherGuide:
    """Asks a teacher about the examples of a batch; pass it to `train_student(teacher=...)`.

    Parameters
    ----------
    teachers
        Trained, on the same items. Of several each batch hears one, by turns: over the batches
        the student follows their mean, which is better than each, for the price of one.
    texts
        Of the items, float32, shape (N, TEXT_DIM), as the teacher was trained with.
    known
        Rows that were met in training, int64, sorted, shape (S,).
    seed
        Of what is drawn from the tail.
    repeats
        As the teacher was trained (`TeacherTraining.repeats`).

    Notes
    -----
    A causal teacher costs one pass over the batch. A bidirectional one is asked for every example
    by itself, T times as much: what comes later must not be seen.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        texts: NDArray[np.float32],
        known: NDArray[np.int64],
        *,
        config: Distillation | None = None,
        seed: int = 0,
        repeats: bool = True,
    ) -> None:
        self._repeats = repeats
        self._config = config or Distillation()
        self._rng = np.random.default_rng(seed)
        self._device = next(teachers[0].parameters()).device
        self._known = torch.from_numpy(known).to(self._device)
        given = torch.from_numpy(texts).to(self._device)
        with torch.no_grad():
            self._teachers = [(own.eval(), own.item_table(given)) for own in teachers]
        self._n_asked = 0

    @torch.no_grad()
    def __call__(self, batch: Windows) -> TeacherLogits:
        """Return candidates and logits of the positions with a weight, in their order.

        They lie where the teacher does.
        """
        teacher, table = self._teachers[self._n_asked % len(self._teachers)]
        self._n_asked += 1
        ask = self._causal if teacher.is_causal else self._one_by_one
        users = ask(teacher, table, batch)  # (E, M)
        answers = table[self._known]  # (S, M)
        had = torch.split(self._had(batch), _BLOCK)
        asked = zip(torch.split(users, _BLOCK), had, strict=True)
        blocks = [self._chosen(*own, answers) for own in asked]
        places, logits = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        told, config = self._known[places], self._config
        matched = users if config.matching else None
        return TeacherLogits(
            told, logits, config.temperature, config.share, matched, config.matching
        )

    def _had(self, batch: Windows) -> Tensor:
        """Return the rows that are no candidates of an example, padded with 0, shape (E, T)."""
        which, at = batch.asked()
        if self._repeats:
            return torch.zeros((len(which), 1), dtype=torch.int64, device=self._device)
        return torch.from_numpy(pasts_of(batch.rows, which, at)).to(self._device)

    def _chosen(self, users: Tensor, had: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
        """Return places in `known` and logits, shape (E, top + tail) or all S, of some users."""
        logits = users @ answers.T  # (E, S)
        logits[tuple(ruled_out(had, self._known))] = NEVER
        n_known, top, tail = len(answers), self._config.top, self._config.tail
        if n_known <= top + tail:
            return torch.arange(n_known, device=self._device).expand(len(users), -1), logits
        best = logits.topk(top, dim=1).indices  # (E, top)
        is_best = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, best, value=True)
        # At most `top` of these are among the best, so `tail` others are left for everybody.
        drawn = self._rng.permutation(n_known)[: top + tail]
        rest = torch.from_numpy(drawn).to(self._device)
        order = is_best[:, rest].byte().argsort(dim=1, stable=True)[:, :tail]  # (E, tail)
        places = torch.cat((best, rest[order]), dim=1)
        return places, logits.gather(1, places)

    def _causal(self, teacher: Teacher, table: Tensor, batch: Windows) -> Tensor:
        columns = (batch.rows, batch.types, batch.gaps, batch.ages)
        rows, types, gaps, ages = self._tensors(*columns)
        states = teacher.states(table, rows, types, gaps, ages)  # (B, T, hidden + factors)
        which, at = self._tensors(*batch.asked())
        return teacher.users(states[which, at], self._contexts(batch), ages[which, at])

    def _one_by_one(self, teacher: Teacher, table: Tensor, batch: Windows) -> Tensor:
        which, last = batch.asked()  # (E,) each
        length = batch.rows.shape[1]
        at = last[:, None] - length + 1 + np.arange(length)  # (E, T), its history to the right
        is_there, at = at >= 0, np.maximum(at, 0)
        columns = (batch.rows, batch.types, batch.gaps, batch.ages)
        own = [np.where(is_there, column[which[:, None], at], 0) for column in columns]
        contexts = self._contexts(batch)
        found = []
        for start in range(0, len(which), _BLOCK):
            part = slice(start, start + _BLOCK)
            rows, types, gaps, ages = self._tensors(*(column[part] for column in own))
            states = teacher.states(table, rows, types, gaps, ages)[:, -1]
            context = None if contexts is None else contexts[part]
            found.append(teacher.users(states, context, ages[:, -1]))
        return torch.cat(found)

    def _contexts(self, batch: Windows) -> Tensor | None:
        if batch.contexts is None:
            return None
        return torch.from_numpy(scale_context(batch.contexts[batch.asked()])).to(self._device)

    def _tensors(self, *columns: NDArray[np.int64]) -> list[Tensor]:
        return [torch.from_numpy(column).to(self._device) for column in columns]
