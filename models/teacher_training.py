"""Training the teacher: from histories to the best epoch's weights, resumable at every epoch.

Reads   histories, where time is cut, and the items' text vectors.
Emits   a teacher.
Owns    the loop, and early stopping by NDCG@10 between the cuts.

The same input, seed and threads give the same weights on one CPU, whether the run went through or
was stopped and went on (`models.teacher_checkpoint`). Started by `torchrun` it is one of several
processes (`models.parallel`): all draw the same batches from the same generator, each takes its
part, and the losses equal those of a single process, but for the order of sums and for dropout,
which each draws by itself.

What is judged and kept is a fading average of the weights (`models.fading_weights`). SASRec, the
baseline, is trained by the same loop (`TeacherConfig.sasrec`), so that what is compared is the
model, not the care taken of it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.dataset import (
    Histories,
    Requests,
    Windows,
    gap_buckets,
    had_before,
    n_windows,
    pasts_of,
    popularity,
    targets_between,
    time_bucket,
    training_windows,
)
from models.evaluate import next_item_metrics, next_item_ranks, of_new
from models.fading_weights import FadingWeights, copied, put
from models.features import scale_context
from models.optimization import deterministic, optimization
from models.parallel import Group, joined, unsynced, whole, wrapped
from models.student import Negatives
from models.teacher import Columns, Teacher, TeacherConfig, Told
from models.teacher_checkpoint import CheckpointError, Checkpoints, fingerprint
from models.teacher_loss import gbce_loss, softmax_loss
from models.teacher_start import SEEDED, start
from models.train import Progress

__all__ = ["CheckpointError", "TaughtTeacher", "TeacherTraining", "teacher_scores", "train_teacher"]

_CLIP_NORM: Final = 1.0


@dataclass(frozen=True)
class TeacherTraining:
    """How to train; chosen on the validation of ml-latest-small (`pushflow evaluate models`)."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    loss: Literal["softmax", "gbce"] = "softmax"
    repeats: bool = True  # False: an item is had once, and what a user had is no wrong answer
    baskets: bool = False  # whether all of one second is asked for before its first; causal ones
    epochs: int = 16  # at most
    patience: int = 3  # epochs without a better validation NDCG@10
    batch_size: int = 32  # windows of T targets, over all processes
    accumulate: int = 1  # parts in which a process takes its share of a batch: less memory
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    averaging: float = 0.98  # of the weights' average: what a step keeps of it; 0: no average
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on a GPU that can
    sharded: bool = False  # among several processes: FSDP in place of DDP
    max_requests: int = 2_000  # of the validation
    full_softmax_items: int = 20_000  # beyond, or with gbce, `negatives` are drawn instead
    negatives: int = 2_048
    calibration: float = 0.75  # of gbce, as its authors have it
    threads: int = 1


class TaughtTeacher(NamedTuple):
    """What training made."""

    teacher: Teacher
    metrics: dict[str, float]  # epochs run, validation NDCG@10 of the best


def train_teacher(
    histories: Histories,
    texts: NDArray[np.float32],
    cuts: tuple[int, int],
    *,
    config: TeacherTraining | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> TaughtTeacher:
    """Train a teacher on targets before the first cut; stop by those between the two.

    Parameters
    ----------
    histories
        From `models.dataset.build_histories`.
    texts
        Of the items in the histories' order, float32, shape (N, TEXT_DIM); zeros where unknown.
    cuts
        Seconds, as `models.dataset.time_split` gives them.
    seed
        Of weights, order of batches, negatives and dropout.
    checkpoint
        Written after each epoch, and gone on from where it is there.
    on_progress
        Called after each step; early stopping may end before `total`.

    Raises
    ------
    ValueError
        If there are no events to train on before the first cut, or baskets are asked of a
        bidirectional backbone.
    CheckpointError
        If the checkpoint is of other data, settings or seed.

    Notes
    -----
    Every process of a group returns the same teacher, whole.
    """
    config = config or TeacherTraining()
    with deterministic(seed, config.threads), joined() as group:
        teacher = Teacher(config.teacher, len(texts))
        if config.baskets and not teacher.is_causal:
            raise ValueError(
                "a bidirectional backbone is asked by an item that it hides, not before a basket: "
                "take a causal one for baskets"
            )
        run = _Run(teacher, histories, texts, cuts, config=config, seed=seed, group=group)
        metrics = run.fit(checkpoint, on_progress or (lambda _: None))
        if group.size > 1 and config.sharded:
            teacher = run.unsharded()
    return TaughtTeacher(teacher.eval(), metrics)


class _Examples(NamedTuple):
    """What a batch asks, before it is divided: all processes draw the same."""

    weights: NDArray[np.float32]  # shape (B, T), 0 where nothing is asked
    hidden: NDArray[np.bool_] | None  # of a bidirectional backbone, shape (B, T)
    has_context: NDArray[np.bool_]  # shape (B, T)
    keep_ids: Tensor  # shape (N, 1)
    negatives: Negatives | None


class _Run:
    """One run of training; `fit` leaves the best epoch's weights in the teacher."""

    def __init__(
        self,
        teacher: Teacher,
        histories: Histories,
        texts: NDArray[np.float32],
        cuts: tuple[int, int],
        *,
        config: TeacherTraining,
        seed: int,
        group: Group,
    ) -> None:
        self.histories, self.config, self.cuts, self.group = histories, config, cuts, group
        self.fingerprint = fingerprint(histories, texts, cuts, config, seed)
        self.rng = np.random.default_rng(seed)
        counts = popularity(histories, len(texts), until_s=cuts[0])
        self.known = np.flatnonzero(counts)  # rows met in training, S of them
        self.draw = np.sqrt(counts[self.known])  # between uniform and popularity
        self.draw /= self.draw.sum()
        start(teacher, histories, counts, until_s=cuts[0], seed=seed)
        self.teacher = teacher.to(group.device)
        self.model = wrapped(self.teacher, group, sharded=config.sharded)
        if group.size > 1:
            torch.manual_seed(seed * 1_000 + group.rank)  # of dropout, each its own
        self.texts = torch.from_numpy(texts).to(group.device)
        self.is_known = counts[1:, None] > 0  # (N, 1)
        self.among = torch.from_numpy(self.known).to(group.device)
        n_batches = -(-n_windows(histories, until_s=cuts[0]) // config.batch_size)
        self.total = config.epochs * n_batches
        self.optimizer, self.schedule = optimization(
            self.teacher,
            SEEDED,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            n_steps=self.total,
        )
        self.validation = targets_between(
            histories,
            *cuts,
            limit=config.max_requests,
            repeats=config.repeats,
            baskets=config.baskets,
        )
        self.done, self.epoch, self.ndcg = 0, 0, 0.0
        self.best, self.best_epoch = -1.0, 0
        self.average = FadingWeights(self.teacher, config.averaging)
        self.best_weights = copied(self.teacher)

    def unsharded(self) -> Teacher:
        """Return the best weights in a teacher of this process alone."""
        found = Teacher(self.config.teacher, len(self.texts)).to(self.group.device)
        with torch.no_grad():
            for name, own in found.named_parameters():
                own.copy_(whole(self.best_weights[name]))
        return found

    def fit(
        self, checkpoint: Path | None, on_progress: Callable[[Progress], None]
    ) -> dict[str, float]:
        """Train to the best epoch; return what it reached."""
        kept = Checkpoints(checkpoint, self) if checkpoint is not None else None
        if kept is not None:
            kept.load()
        while self.epoch < self.config.epochs and not self._has_enough():
            self.epoch += 1
            self._train_epoch(on_progress)
            if not self.done:
                raise ValueError("no events before the validation's start: nothing to train on")
            self._judge()
            if kept is not None:
                kept.save()
        put(self.teacher, self.best_weights)
        return {"epochs": float(self.epoch), "validation_ndcg@10": max(self.best, 0.0)}

    def _train_epoch(self, on_progress: Callable[[Progress], None]) -> None:
        for batch in training_windows(
            self.histories,
            until_s=self.cuts[0],
            batch_size=self.config.batch_size,
            rng=self.rng,
            baskets=self.config.baskets,
        ):
            self.teacher.train()
            loss = self._step(batch)
            self.done += 1
            at = min(self.done, self.total)
            on_progress(Progress(at, self.total, self.epoch, loss, self.ndcg))

    def _has_enough(self) -> bool:
        return self.epoch - self.best_epoch >= self.config.patience

    def _judge(self) -> None:
        """Measure the average of the weights; training goes on from the weights themselves."""
        with self.average.put():
            score = _scores(self.model, self.teacher, self.texts)
            kept = score if self.config.repeats else of_new(score)
            rank = next_item_ranks(
                kept, self.histories, self.validation, baskets=self.config.baskets
            )
            self.ndcg = next_item_metrics(rank)["ndcg@10"]
            if self.ndcg > self.best or not len(self.validation):  # nothing to stop by: the last
                self.best, self.best_epoch = self.ndcg, self.epoch
                self.best_weights = copied(self.teacher)

    def _step(self, batch: Windows) -> float:
        group, config = self.group, self.config
        examples = self._examples(batch)
        total = max(float(examples.weights.sum()), 1e-9)
        parts = np.array_split(np.arange(len(batch.rows)), group.size * config.accumulate)
        mine = parts[group.rank * config.accumulate : (group.rank + 1) * config.accumulate]
        self.optimizer.zero_grad()
        loss = torch.zeros((), device=group.device)
        for place, part in enumerate(mine):
            with unsynced(self.model, is_last=place + 1 == len(mine)):
                own = self._part_loss(batch, examples, part) / total
                (own * group.size).backward()  # type: ignore[no-untyped-call]
            loss += own.detach()
        nn.utils.clip_grad_norm_(self.teacher.parameters(), _CLIP_NORM)
        self.optimizer.step()
        self.schedule.step()
        self.average.follow(self.done)
        return group.total(loss)

    def _examples(self, batch: Windows) -> _Examples:
        config, rng = self.config.teacher, self.rng
        weights, hidden = batch.weights, None
        if not self.config.repeats:
            weights = weights * ~had_before(batch)
        if not self.teacher.is_causal:
            hidden = rng.random(weights.shape) < config.mask_share
            hidden[:, -1] = True
            weights = weights * hidden
        is_kept = rng.random((len(self.texts), 1)) >= config.id_dropout
        return _Examples(
            weights=weights,
            hidden=hidden,
            has_context=rng.random(weights.shape) >= config.context_dropout,
            keep_ids=self._tensor((is_kept & self.is_known).astype(np.float32)),
            negatives=self._negatives(),
        )

    def _part_loss(self, batch: Windows, examples: _Examples, part: NDArray[np.int64]) -> Tensor:
        """Return the sum of losses of some windows of a batch."""
        is_nothing = not len(part)  # still computed: the others wait for this process
        part = np.zeros(1, np.int64) if is_nothing else part
        weights = examples.weights[part] * (0.0 if is_nothing else 1.0)
        picked = examples.weights[part] > 0  # (B, T), E of them
        which, at = np.nonzero(picked)
        asked = which, batch.since[part][which, at]
        names = ("rows", "types", "gaps", "ages")
        columns = Columns(*(self._tensor(getattr(batch, name)[part]) for name in names))
        contexts = None
        if batch.contexts is not None and self.config.teacher.reads_events:
            scaled = scale_context(batch.contexts[part][asked])  # (E, C)
            contexts = self._tensor(scaled * examples.has_context[part][asked][:, None])
        with self._precision():
            told = self.model(
                self.texts,
                columns,
                asked=(self._tensor(asked[0]), self._tensor(asked[1])),
                hidden=None if examples.hidden is None else self._tensor(examples.hidden[part]),
                contexts=contexts,
                keep_ids=examples.keep_ids,
            )
            targets = self._tensor(batch.targets[part][picked])
            had = None if self.config.repeats else self._tensor(pasts_of(batch.rows[part], *asked))
            own = self._tensor(weights[picked].astype(np.float32))
            return self._loss(told, targets, own, had, examples.negatives)

    def _loss(
        self,
        told: Told,
        targets: Tensor,
        weights: Tensor,
        had: Tensor | None,
        negatives: Negatives | None,
    ) -> Tensor:
        if self.config.loss == "gbce" and negatives is not None:
            return gbce_loss(
                told.users,
                told.table,
                targets,
                weights,
                negatives.rows,
                n_items=len(self.known),
                calibration=self.config.calibration,
                offset=told.offset,
            )
        return softmax_loss(
            told.users,
            told.table,
            targets,
            weights,
            among=self.among,
            negatives=negatives,
            had=had,
        )

    def _negatives(self) -> Negatives | None:
        config = self.config
        log_q = np.zeros(len(self.texts) + 1, np.float32)
        if config.loss == "gbce":
            rows = self.rng.choice(self.known, config.negatives)
        elif len(self.known) <= config.full_softmax_items:
            return None
        else:
            rows = self.rng.choice(self.known, config.negatives, p=self.draw)
            log_q[self.known] = np.log(config.negatives * self.draw)
        return Negatives(self._tensor(rows), self._tensor(log_q))

    def _precision(self) -> AbstractContextManager[Any]:
        kind, wanted = self.group.device.type, self.config.precision
        is_able = kind == "cuda" and torch.cuda.is_bf16_supported()
        if wanted == "bfloat16" or (wanted == "auto" and is_able):
            return torch.autocast(kind, torch.bfloat16)
        return nullcontext()

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self.group.device)


def teacher_scores(
    teacher: Teacher, texts: NDArray[np.float32]
) -> Callable[[Requests], NDArray[np.float32]]:
    """Return a function that scores the whole catalogue for requests, shape (B, N)."""
    device = next(teacher.parameters()).device
    return _scores(teacher, teacher, torch.from_numpy(texts).to(device))


def _scores(
    model: nn.Module, teacher: Teacher, texts: Tensor
) -> Callable[[Requests], NDArray[np.float32]]:
    teacher.eval()

    def score(asked: Requests) -> NDArray[np.float32]:
        ages = np.where(asked.rows > 0, time_bucket(asked.age_s), 0)
        held = (asked.rows, asked.types, gap_buckets(asked.rows, asked.age_s), ages)
        columns = Columns(*(torch.from_numpy(own).to(texts.device) for own in held))
        contexts = torch.from_numpy(scale_context(asked.contexts)).to(texts.device)
        with torch.no_grad():
            told = model(texts, columns, contexts=contexts)
            scores: NDArray[np.float32] = (told.users @ told.table[1:].T).cpu().numpy()
        return scores

    return score
