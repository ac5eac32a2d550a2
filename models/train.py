"""Training the student: from histories of events to a model file.

Reads   histories, the items' ids and texts.
Emits   a model file and what it measured against popularity on a later stretch of time.
Owns    the training loop: batches, optimiser, early stopping.

Time is cut twice: the model trains on targets before the first cut, stops by the stretch
between the cuts, and is measured once on the stretch after the second. Requests of the test
see all events before them, as serving does; the weights do not.

The stretch between the cuts also says what retrieves: the network, or factors alone where they
find clearly more (`models.retrieval`). The scores are the network's in either case.

The same input, seed and thread count give the same file, byte for byte, on one machine.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.checkpoint import write_model
from models.dataset import (
    TARGET_WEIGHT,
    Histories,
    Requests,
    Windows,
    gap_buckets,
    n_windows,
    popularity,
    targets_between,
    time_bucket,
    time_split,
    training_windows,
)
from models.evaluate import next_item_metrics, next_item_ranks
from models.export import export_student
from models.factors import item_factors
from models.features import scale_context
from models.optimization import optimization
from models.retrieval import is_plain_better
from models.student import Negatives, Student, StudentConfig, TeacherLogits, next_item_loss
from models.text import encode_texts

_CLIP_NORM: Final = 1.0
# What goes together is known from the start: its parameters learn at this share of the rate.
_SEEDED: Final = ("ids.weight", "pool.weight")
_SEEDED_LOGITS: Final = 30.0  # of what a user is sure to want: products of factors are 0 to 1
_QUIET: Final = 0.1  # the rest of the network begins with a tenth of its usual say


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are tuned on ml-latest-small (`bench/student.py --train`)."""

    student: StudentConfig = field(default_factory=StudentConfig)
    epochs: int = 16  # at most
    patience: int = 3  # epochs without a better validation NDCG@10
    batch_size: int = 32  # windows of T targets
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    validation: float = 0.1  # share of events
    test: float = 0.1  # share of events, the newest
    max_requests: int = 2_000  # of the validation; the test takes five times as many
    full_softmax_items: int = 4_000  # beyond, `negatives` are drawn instead
    negatives: int = 2_048
    threads: int = 1  # more slow it down where other processes want the cores


class Progress(NamedTuple):
    """How far training is: steps done of at most `total`, and the newest numbers."""

    done: int
    total: int
    epoch: int
    loss: float
    ndcg: float  # validation NDCG@10 of the epoch before, 0 in the first


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

    Raises
    ------
    ValueError
        If there are no events to train on before the first cut.
    """
    config = config or TrainConfig()
    texts = encode_texts(list(item_texts))
    cuts = time_split(histories, validation=config.validation, test=config.test)
    with deterministic(seed, config.threads):
        student = Student(config.student, len(item_ids))
        _seed_popularity(student, popularity(histories, len(item_ids), until_s=cuts[0]))
        seeds = _factors(histories, len(item_ids), config.student.width - 1, cuts[0], seed)
        _seed_factors(student, seeds)
        trainer = _Trainer(student, histories, texts, cuts, config=config, seed=seed)
        epochs = trainer.fit(on_progress or (lambda _: None), teacher)
        metrics = {
            "epochs": float(epochs),
            "trained_until_s": float(cuts[0]),
            "tested_from_s": float(cuts[1]),
            **_test_metrics(student, histories, texts, cuts, config),
        }
        network = catalogue_scores(student, texts)
        plain, found = is_plain_better(network, seeds, histories, cuts, limit=config.max_requests)
        metrics.update(found)
    factors = None
    if plain:  # made anew of all that is known: nothing is measured by them any more
        whole = _factors(histories, len(item_ids), config.student.width, None, seed)
        factors = whole.astype(np.float32)
    model = export_student(student, item_ids, metrics, factors)
    return TrainResult(path, write_model(path, model), metrics)


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
        self.student, self.histories, self.config, self.cuts = student, histories, config, cuts
        self.texts = torch.from_numpy(texts)
        self.rng = np.random.default_rng(seed)
        n_batches = -(-n_windows(histories, until_s=cuts[0]) // config.batch_size)
        self.total = config.epochs * n_batches
        self.optimizer, self.schedule = optimization(
            student,
            _SEEDED,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            n_steps=self.total,
        )
        counts = popularity(histories, len(texts), until_s=cuts[0])
        self.known = np.flatnonzero(counts)  # rows met in training, S of them
        self.is_known = torch.from_numpy(counts[1:, None] > 0)  # (N, 1)
        self.draw = np.sqrt(counts[self.known])  # between uniform and popularity
        self.draw /= self.draw.sum()
        self.validation = targets_between(histories, *cuts, limit=config.max_requests)

    def fit(self, on_progress: Callable[[Progress], None], teacher: Teacher | None) -> int:
        """Train to the best epoch; return how many epochs ran."""
        best, best_state, best_epoch, done, ndcg = -1.0, None, 0, 0, 0.0
        for epoch in range(1, self.config.epochs + 1):
            self.student.train()
            for batch in training_windows(
                self.histories,
                until_s=self.cuts[0],
                batch_size=self.config.batch_size,
                rng=self.rng,
            ):
                loss = self._step(batch, teacher(batch) if teacher else None)
                done += 1
                on_progress(Progress(min(done, self.total), self.total, epoch, loss, ndcg))
            if done == 0:
                raise ValueError("no events before the validation's start: nothing to train on")
            ndcg = self._validation_ndcg()
            if ndcg > best or not len(self.validation):  # nothing to stop by: keep the last
                best, best_epoch = ndcg, epoch
                best_state = {k: v.clone() for k, v in self.student.state_dict().items()}
            if epoch - best_epoch >= self.config.patience:
                break
        if best_state is not None:
            self.student.load_state_dict(best_state)
        return epoch

    def _validation_ndcg(self) -> float:
        score = catalogue_scores(self.student, self.texts.numpy())
        rank = next_item_ranks(score, self.histories, self.validation)
        return next_item_metrics(rank)["ndcg@10"]

    def _step(self, batch: Windows, teacher: TeacherLogits | None) -> float:
        student = self.student
        is_kept = torch.rand(len(self.texts), 1) >= student.config.id_dropout
        table = student.item_table(self.texts, keep_ids=(is_kept & self.is_known).float())
        rows, types, gaps = (torch.from_numpy(x) for x in (batch.rows, batch.types, batch.gaps))
        states = student.encode(table, rows, types, gaps)  # (B, T, W)
        weights = torch.from_numpy(batch.weights)
        picked = weights > 0  # (B, T), E of them
        contexts = self._contexts(batch, picked)
        users = student.users(states[picked], contexts, torch.from_numpy(batch.ages)[picked])
        loss = next_item_loss(
            users,
            table,
            torch.from_numpy(batch.targets)[picked],
            weights[picked],
            among=torch.from_numpy(self.known),
            negatives=self._negatives(),
            teacher=teacher,
        )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(student.parameters(), _CLIP_NORM)
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())

    def _contexts(self, batch: Windows, picked: Tensor) -> Tensor | None:
        if batch.contexts is None:
            return None
        scaled = torch.from_numpy(scale_context(batch.contexts[picked.numpy()]))  # (E, C)
        is_kept = torch.rand(len(scaled), 1) >= self.student.config.context_dropout
        return scaled * is_kept

    def _negatives(self) -> Negatives | None:
        if len(self.known) <= self.config.full_softmax_items:
            return None
        size = self.config.negatives
        rows = self.rng.choice(self.known, size, p=self.draw)
        log_q = np.zeros(len(self.texts) + 1, np.float32)
        log_q[self.known] = np.log(size * self.draw)
        return Negatives(torch.from_numpy(rows), torch.from_numpy(log_q))


def catalogue_scores(
    student: Student, texts: NDArray[np.float32]
) -> Callable[[Requests], NDArray[np.float32]]:
    """Return a function that scores the whole catalogue for requests, shape (B, N)."""
    student.eval()
    with torch.no_grad():
        table = student.item_table(torch.from_numpy(texts))  # (N + 1, W)

    def score(requests: Requests) -> NDArray[np.float32]:
        rows, gaps = requests.rows, gap_buckets(requests.rows, requests.age_s)
        ages = np.where(rows[:, -1] > 0, time_bucket(requests.age_s[:, -1]), 0)
        inputs = (torch.from_numpy(x) for x in (rows, requests.types, gaps))
        contexts = torch.from_numpy(scale_context(requests.contexts))
        with torch.no_grad():
            newest = student.encode(table, *inputs)[:, -1]  # (B, W)
            users = student.users(newest, contexts, torch.from_numpy(ages))
            scores: NDArray[np.float32] = (users @ table[1:].T).numpy()
        return scores

    return score


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
    events = targets_between(histories, cuts[1], None, limit=5 * config.max_requests)
    counts = popularity(histories, len(texts), until_s=cuts[1])
    is_cold = popularity(histories, len(texts), until_s=cuts[0])[histories.rows[events]] == 0
    rank = next_item_ranks(catalogue_scores(student, texts), histories, events)
    popular = next_item_ranks(
        lambda requests: np.broadcast_to(counts[1:], (len(requests.rows), len(texts))),
        histories,
        events,
    )
    return {
        **next_item_metrics(rank),
        "test_requests": float(len(events)),
        "cold_requests": float(is_cold.sum()),
        "cold_hr@100": next_item_metrics(rank[is_cold])["hr@100"],
        **{f"popularity_{name}": value for name, value in next_item_metrics(popular).items()},
    }


def _seed_popularity(student: Student, counts: NDArray[np.float64]) -> None:
    """Give items met in training the log of their count, centred, as popularity.

    Items not met get no vector of their own: their text speaks for them, as for an item that
    comes after training.
    """
    is_known = counts[1:] > 0
    logs = np.log1p(counts[1:])
    logs -= logs[is_known].mean() if is_known.any() else 0.0
    with torch.no_grad():
        student.ids.weight[:, -1] = torch.from_numpy(logs.astype(np.float32))
        student.ids.weight *= torch.from_numpy(is_known[:, None])


def _factors(
    histories: Histories, n_items: int, width: int, until_s: int | None, seed: int
) -> NDArray[np.float64]:
    """Return factors of items by what was wanted before a time, or at all, shape (N, width)."""
    is_past = TARGET_WEIGHT[histories.types] > 0
    if until_s is not None:
        is_past &= histories.time_s < until_s
    users = np.repeat(np.arange(len(histories.user_ids)), np.diff(histories.offsets))
    rows = histories.rows[is_past] - 1
    return item_factors(users[is_past], rows, n_items, width=width, seed=seed)


def _seed_factors(student: Student, factors: NDArray[np.float64]) -> None:
    """Let the items' own vectors and the plain part of the user's begin as a factorisation.

    The last column stays the popularity, which the factors know already: it begins without a say.
    """
    own = student.ids.weight
    is_known = factors.any(axis=1)
    if not is_known.any():
        return
    length = float(np.linalg.norm(factors[is_known], axis=1).mean())
    with torch.no_grad():
        own[:, :-1] = torch.from_numpy((factors / length).astype(np.float32))
        student.pool.weight[:-1, :-1] = torch.eye(own.shape[1] - 1) * _SEEDED_LOGITS * length**2
        student.user_out.bias[-1] = 0.0
        for layer in (student.text, student.user_out, student.request_out):
            layer.weight *= _QUIET


@contextmanager
def deterministic(seed: int, threads: int) -> Iterator[None]:
    """Seed torch and fix its threads for a while; give the caller's back."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
