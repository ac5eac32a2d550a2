"""Training the student: from histories of events to a model file.

Reads   histories, the items' ids and texts.
Emits   a model file and what it measured against popularity on a later stretch of time.
Owns    the training loop: batches, optimiser, early stopping.

Time is cut twice: the model trains on targets before the first cut, stops by the stretch
between the cuts, and is measured once on the stretch after the second. Requests of the test
see all events before them, as serving does; the weights do not.

The stretch between the cuts also says what retrieves: the network, or weights from item to item
(`models.linear`) where they find clearly more (`models.retrieval`). The scores are the network's
in either case.

It runs on a GPU where there is one; what is returned is on the CPU. Trained on a CPU, the same
input, seed and thread count give the same file, byte for byte, on one machine.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.checkpoint import write_model
from models.dataset import (
    Histories,
    Requests,
    Windows,
    had_before,
    n_windows,
    pasts_of,
    popularity,
    targets_between,
    time_split,
    training_windows,
)
from models.evaluate import next_item_metrics, next_item_ranks, of_new
from models.export import export_student
from models.fading_weights import FadingWeights, copied, put
from models.features import scale_context
from models.linear import item_weights
from models.linear_weights import ItemWeights
from models.optimization import deterministic, optimization
from models.retrieval import is_linear_better
from models.student import Negatives, Student, StudentConfig, TeacherLogits, next_item_loss
from models.student_outcomes import PushOutcomes
from models.student_scores import catalogue_scores
from models.student_start import SEEDED, factors_of, seed_factors, seed_popularity, wanted
from models.text import encode_texts

FULL_SOFTMAX_ONCE: Final = 10_000  # items
_CLIP_NORM: Final = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are tuned on ml-latest-small (`bench/student.py --train`)."""

    student: StudentConfig = field(default_factory=StudentConfig)
    epochs: int = 16  # at most
    patience: int = 3  # epochs without a better validation NDCG@10
    batch_size: int = 32  # windows of T targets
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    taught_dropout: float = 0.1  # of a student with a teacher, who keeps it from learning by heart
    averaging: float = 0.98  # of the weights' average: what a step keeps of it; 0: no average
    validation: float = 0.1  # share of events
    test: float = 0.1  # share of events, the newest
    repeats: bool = True  # False: an item is had once, and what a user had is no wrong answer
    baskets: bool = False  # whether all of one second is asked for before its first
    max_requests: int = 2_000  # of the validation; the test takes five times as many
    full_softmax_items: int = 4_000  # beyond, `negatives` are drawn instead
    negatives: int = 2_048
    threads: int = 1  # more slow it down where other processes want the cores

    @property
    def asked(self) -> dict[str, bool]:
        """What `targets_between` is told of the questions."""
        return {"repeats": self.repeats, "baskets": self.baskets}

    def once(self) -> "TrainConfig":
        """Return the same for data where an item is had once.

        The softmax is whole up to `FULL_SOFTMAX_ONCE` items: a sample leaves nothing out.
        """
        n_items = max(self.full_softmax_items, FULL_SOFTMAX_ONCE)
        return replace(self, repeats=False, full_softmax_items=n_items)


class Progress(NamedTuple):
    """How far training is: steps done of at most `total`, and the newest numbers."""

    done: int
    total: int
    epoch: int
    loss: float
    ndcg: float  # validation NDCG@10 of the epoch before, 0 in the first


class Fitted(NamedTuple):
    """A student as trained, before it is a file."""

    student: Student
    metrics: dict[str, float]
    linear: ItemWeights | None  # of the N items; None where the network itself retrieves


class TrainResult(NamedTuple):
    """What training made."""

    path: Path
    version: str
    metrics: dict[str, float]


# Called for each batch; may return what a teacher thinks of the batch's examples (E, in the
# order of the positions with a weight).
Teacher = Callable[[Windows], TeacherLogits | None]


def train_student(
    histories: Histories,
    item_ids: Sequence[str],
    item_texts: Sequence[str],
    *,
    path: Path,
    config: TrainConfig | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    teacher: Teacher | None = None,
    outcomes: PushOutcomes | None = None,
) -> TrainResult:
    """Train a student and write its file.

    Parameters
    ----------
    histories
        From `models.dataset.build_histories` with the same `item_ids`.
    item_ids, item_texts
        The catalogue as trained on, parallel; texts as `models.text.item_text` joins them.
    path
        Where the model file goes (`student.pfm`); replaced in one step.
    seed
        Of weights, order of batches and dropout.
    on_progress
        Called after each step; early stopping may end before `total`.
    teacher
        Turns training into distillation; see `models.student.TeacherLogits`.
    outcomes
        Of pushes: the student learns from them, too, and is judged by later ones.

    Raises
    ------
    ValueError
        If there are no events to train on before the first cut.
    """
    fitted = fit_student(
        histories,
        encode_texts(list(item_texts)),
        config=config,
        seed=seed,
        on_progress=on_progress,
        teacher=teacher,
        outcomes=outcomes,
    )
    model = export_student(fitted.student, item_ids, fitted.metrics, fitted.linear)
    return TrainResult(path, write_model(path, model), fitted.metrics)


def fit_student(
    histories: Histories,
    texts: NDArray[np.float32],
    *,
    config: TrainConfig | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    teacher: Teacher | None = None,
    outcomes: PushOutcomes | None = None,
) -> Fitted:
    """Train a student; as `train_student`, but for the items' text vectors, shape (N, TEXT_DIM)."""
    config = config or TrainConfig()
    n_items = len(texts)
    cuts = time_split(histories, validation=config.validation, test=config.test)
    with deterministic(seed, config.threads):
        dropout = config.student.dropout if teacher is None else config.taught_dropout
        student = Student(replace(config.student, dropout=dropout), n_items)
        seed_popularity(student, popularity(histories, n_items, until_s=cuts[0]))
        seeds = factors_of(histories, n_items, config.student.width - 1, cuts[0], seed)
        seed_factors(student, seeds)
        trainer = _Trainer(student, histories, texts, cuts, config=config, seed=seed)
        trainer.outcomes = outcomes
        epochs = trainer.fit(on_progress or (lambda _: None), teacher)
        metrics = {
            "epochs": float(epochs),
            "trained_until_s": float(cuts[0]),
            "tested_from_s": float(cuts[1]),
            **_test_metrics(student, histories, texts, cuts, config),
            **(outcomes.metrics(student, trainer.texts) if outcomes else {}),
        }
        network = catalogue_scores(student, texts)
        weights = item_weights(*wanted(histories, cuts[0]), n_items, seed)
        is_linear, found = is_linear_better(
            network, weights, histories, cuts, limit=config.max_requests
        )
        metrics.update(found)
    linear = None
    if is_linear:  # made anew of all that is known: nothing is measured by them any more
        linear = item_weights(*wanted(histories, None), n_items, seed)
    return Fitted(student.cpu(), metrics, linear)


def recover_student(
    student: Student,
    histories: Histories,
    texts: NDArray[np.float32],
    *,
    config: TrainConfig,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    teacher: Teacher | None = None,
) -> None:
    """Train a student further, in place, to its best epoch by the validation.

    `config.student` is not read: the sizes are the student's own.
    """
    cuts = time_split(histories, validation=config.validation, test=config.test)
    with deterministic(seed, config.threads):
        trainer = _Trainer(student, histories, texts, cuts, config=config, seed=seed)
        trainer.fit(on_progress or (lambda _: None), teacher)
    student.cpu()


class _Trainer:
    """One run of training; `fit` leaves the best epoch's weights in the student."""

    def __init__(
        self,
        student: Student,
        histories: Histories,
        texts: NDArray[np.float32],
        cuts: tuple[int, int],
        *,
        config: TrainConfig,
        seed: int,
    ) -> None:
        self.histories, self.config, self.cuts = histories, config, cuts
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.student = student.to(self.device)
        self.texts = self._tensor(texts)
        self.rng = np.random.default_rng(seed)
        n_batches = -(-n_windows(histories, until_s=cuts[0]) // config.batch_size)
        self.total = config.epochs * n_batches
        self.optimizer, self.schedule = optimization(
            student,
            SEEDED,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            n_steps=self.total,
        )
        counts = popularity(histories, len(texts), until_s=cuts[0])
        self.known = np.flatnonzero(counts)  # rows met in training, S of them
        self.among = self._tensor(self.known)
        self.is_known = self._tensor(counts[1:, None] > 0)  # (N, 1)
        self.draw = np.sqrt(counts[self.known])  # between uniform and popularity
        self.draw /= self.draw.sum()
        self.validation = targets_between(
            histories, *cuts, limit=config.max_requests, **config.asked
        )
        self.done = 0
        self.outcomes: PushOutcomes | None = None
        self.average = FadingWeights(student, config.averaging)

    def fit(self, on_progress: Callable[[Progress], None], teacher: Teacher | None) -> int:
        """Train to the best epoch; return how many epochs ran."""
        best, best_weights, best_epoch, ndcg = -1.0, None, 0, 0.0
        outcomes = self.outcomes
        for epoch in range(1, self.config.epochs + 1):
            self.student.train()
            for batch in self._batches():
                loss = self._step(batch, teacher(batch) if teacher else None)
                self.average.follow(self.done)
                self.done += 1
                at = min(self.done, self.total)
                on_progress(Progress(at, self.total, epoch, loss, ndcg))
            if self.done == 0:
                raise ValueError("no events before the validation's start: nothing to train on")
            with self.average.put():
                ndcg = self._validation_ndcg()
                worth = ndcg * (outcomes.worth(self.student, self.texts) if outcomes else 1.0)
                if worth > best or not len(self.validation):  # nothing to stop by: keep the last
                    best, best_epoch, best_weights = worth, epoch, copied(self.student)
            if epoch - best_epoch >= self.config.patience:
                break
        if best_weights is not None:
            put(self.student, best_weights)
        return epoch

    def _batches(self) -> Iterator[Windows]:
        config = self.config
        for batch in training_windows(
            self.histories,
            until_s=self.cuts[0],
            batch_size=config.batch_size,
            rng=self.rng,
            baskets=config.baskets,
        ):
            if config.repeats:
                yield batch
            else:
                yield batch._replace(weights=batch.weights * ~had_before(batch))

    def _validation_ndcg(self) -> float:
        score = catalogue_scores(self.student, self.texts)
        kept = score if self.config.repeats else of_new(score)
        rank = next_item_ranks(kept, self.histories, self.validation, baskets=self.config.baskets)
        return next_item_metrics(rank)["ndcg@10"]

    def _step(self, batch: Windows, teacher: TeacherLogits | None) -> float:
        student = self.student
        picked, asked = batch.weights > 0, batch.asked()  # (B, T), E of them
        is_kept = self._drawn(len(self.texts)) >= student.config.id_dropout
        table = student.item_table(self.texts, keep_ids=(is_kept & self.is_known).float())
        rows, types, gaps = map(self._tensor, (batch.rows, batch.types, batch.gaps))
        states = student.encode(table, rows, types, gaps)  # (B, T, 2W)
        contexts = self._contexts(batch, asked)
        ages = self._tensor(batch.ages[asked])
        users = student.users(states[tuple(map(self._tensor, asked))], contexts, ages)
        had = None
        if not self.config.repeats:
            had = self._tensor(pasts_of(batch.rows, *asked))  # (E, T)
        loss = next_item_loss(
            users,
            table,
            self._tensor(batch.targets[picked]),
            self._tensor(batch.weights[picked]),
            among=self.among,
            negatives=self._negatives(),
            had=had,
            teacher=None if teacher is None else teacher.on(self.device),
        )
        if self.outcomes is not None:
            loss = loss + self.outcomes.loss(student, table)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(student.parameters(), _CLIP_NORM)
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())

    def _contexts(self, batch: Windows, asked: tuple[NDArray[np.int64], ...]) -> Tensor | None:
        if batch.contexts is None:
            return None
        scaled = self._tensor(scale_context(batch.contexts[asked]))  # (E, C)
        return scaled * (self._drawn(len(scaled)) >= self.student.config.context_dropout)

    def _drawn(self, n: int) -> Tensor:
        """Return n numbers of [0, 1), shape (n, 1); the same ones on any device."""
        return torch.rand(n, 1).to(self.device)

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _negatives(self) -> Negatives | None:
        if len(self.known) <= self.config.full_softmax_items:
            return None
        size = self.config.negatives
        rows = self.rng.choice(self.known, size, p=self.draw)
        log_q = np.zeros(len(self.texts) + 1, np.float32)
        log_q[self.known] = np.log(size * self.draw)
        return Negatives(self._tensor(rows), self._tensor(log_q))


def _test_metrics(
    student: Student,
    histories: Histories,
    texts: NDArray[np.float32],
    cuts: tuple[int, int],
    config: TrainConfig,
) -> dict[str, float]:
    """Return the student's test metrics and, prefixed, popularity's on the same requests.

    Popularity counts up to the test, past the end of the student's own training.
    """
    limit = 5 * config.max_requests
    events = targets_between(histories, cuts[1], None, limit=limit, **config.asked)
    counts = popularity(histories, len(texts), until_s=cuts[1])
    is_cold = popularity(histories, len(texts), until_s=cuts[0])[histories.rows[events]] == 0

    def by_count(requests: Requests) -> NDArray[np.float64]:
        return np.broadcast_to(counts[1:], (len(requests.rows), len(texts)))

    def ranked(score: Callable[[Requests], NDArray[np.floating]]) -> NDArray[np.int64]:
        kept = score if config.repeats else of_new(score)
        return next_item_ranks(kept, histories, events, baskets=config.baskets)

    rank, popular = ranked(catalogue_scores(student, texts)), ranked(by_count)
    return {
        **next_item_metrics(rank),
        "test_requests": float(len(events)),
        "cold_requests": float(is_cold.sum()),
        "cold_hr@100": next_item_metrics(rank[is_cold])["hr@100"],
        **{f"popularity_{name}": value for name, value in next_item_metrics(popular).items()},
    }
