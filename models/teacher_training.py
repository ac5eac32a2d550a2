"""Training the teacher: from histories to the best epoch's weights, resumable at every epoch.

Reads   histories, where time is cut, and the items' text vectors.
Emits   a teacher.
Owns    the loop, early stopping by NDCG@10 between the cuts, and checkpoints.

The same input, seed and threads give the same weights on one CPU, whether the run went through or
was stopped and went on: a checkpoint holds the state of every generator beside the weights. One
that was made with other data, settings or seed is refused.

SASRec, the baseline, is trained by the same loop (`TeacherConfig.sasrec`), so that what is
compared is the model, not the care taken of it.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    training_windows,
)
from models.evaluate import next_item_metrics, next_item_ranks
from models.factors import item_factors
from models.features import scale_context
from models.optimization import optimization
from models.student import Negatives, next_item_loss
from models.teacher import Teacher, TeacherConfig, gbce_loss
from models.train import Progress, deterministic

_CLIP_NORM: Final = 1.0
_SEEDED: Final = ("factors", "pool")  # what goes together is known from the start
_SEEDED_LOGITS: Final = 30.0  # of what a user is sure to want: products of factors are 0 to 1


class CheckpointError(Exception):
    """The checkpoint is of another run; the message says what to do."""


@dataclass(frozen=True)
class TeacherTraining:
    """How to train; chosen on the validation of ml-latest-small (`pushflow evaluate models`)."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    loss: Literal["softmax", "gbce"] = "softmax"
    epochs: int = 16  # at most
    patience: int = 3  # epochs without a better validation NDCG@10
    batch_size: int = 32  # windows of T targets
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
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
        If there are no events to train on before the first cut.
    CheckpointError
        If the checkpoint is of other data, settings or seed.
    """
    config = config or TeacherTraining()
    with deterministic(seed, config.threads):
        teacher = Teacher(config.teacher, len(texts))
        run = _Run(teacher, histories, texts, cuts, config=config, seed=seed)
        if checkpoint is not None and checkpoint.exists():
            run.load(checkpoint)
        metrics = run.fit(checkpoint, on_progress or (lambda _: None))
    return TaughtTeacher(teacher, metrics)


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
    ) -> None:
        self.histories, self.config, self.cuts = histories, config, cuts
        self.fingerprint = _fingerprint(histories, texts, cuts, config, seed)
        self.rng = np.random.default_rng(seed)
        counts = popularity(histories, len(texts), until_s=cuts[0])
        self.known = np.flatnonzero(counts)  # rows met in training, S of them
        self.draw = np.sqrt(counts[self.known])  # between uniform and popularity
        self.draw /= self.draw.sum()
        _start(teacher, histories, counts, until_s=cuts[0], seed=seed)
        self.teacher = teacher.to(_device())
        self.texts = torch.from_numpy(texts).to(_device())
        self.is_known = torch.from_numpy(counts[1:, None] > 0).to(_device())  # (N, 1)
        n_batches = -(-n_windows(histories, until_s=cuts[0]) // config.batch_size)
        self.total = config.epochs * n_batches
        self.optimizer, self.schedule = optimization(
            teacher,
            _SEEDED,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            n_steps=self.total,
        )
        self.validation = targets_between(histories, *cuts, limit=config.max_requests)
        self.done, self.epoch, self.ndcg = 0, 0, 0.0
        self.best, self.best_epoch = -1.0, 0
        self.best_weights: dict[str, Tensor] = {}

    def fit(
        self, checkpoint: Path | None, on_progress: Callable[[Progress], None]
    ) -> dict[str, float]:
        """Train to the best epoch; return what it reached."""
        while self.epoch < self.config.epochs and not self._has_enough():
            self.epoch += 1
            self.teacher.train()
            for batch in training_windows(
                self.histories,
                until_s=self.cuts[0],
                batch_size=self.config.batch_size,
                rng=self.rng,
            ):
                loss = self._step(batch)
                self.done += 1
                at = min(self.done, self.total)
                on_progress(Progress(at, self.total, self.epoch, loss, self.ndcg))
            if not self.done:
                raise ValueError("no events before the validation's start: nothing to train on")
            self._judge()
            if checkpoint is not None:
                self.save(checkpoint)
        self.teacher.load_state_dict(self.best_weights)
        self.teacher.eval()
        return {"epochs": float(self.epoch), "validation_ndcg@10": max(self.best, 0.0)}

    def _has_enough(self) -> bool:
        return self.epoch - self.best_epoch >= self.config.patience

    def _judge(self) -> None:
        score = teacher_scores(self.teacher, self.texts.cpu().numpy())
        rank = next_item_ranks(score, self.histories, self.validation)
        self.ndcg = next_item_metrics(rank)["ndcg@10"]
        if self.ndcg > self.best or not len(self.validation):  # nothing to stop by: the last
            self.best, self.best_epoch = self.ndcg, self.epoch
            weights = self.teacher.state_dict()
            self.best_weights = {name: own.clone() for name, own in weights.items()}

    def _step(self, batch: Windows) -> float:
        teacher, config = self.teacher, self.config
        kept = torch.rand(len(self.texts), 1) >= config.teacher.id_dropout
        table = teacher.item_table(self.texts, keep_ids=(kept.to(_device()) & self.is_known) * 1.0)
        rows, types, gaps, ages, targets, weights = (
            torch.from_numpy(column).to(_device())
            for column in (
                *(batch.rows, batch.types, batch.gaps),
                *(batch.ages, batch.targets, batch.weights),
            )
        )
        asked = weights > 0  # (B, T), E of them
        hidden = None
        if not teacher.is_causal:
            hidden = torch.rand(asked.shape).to(_device()) < config.teacher.mask_share
            hidden[:, -1] = True
            asked = asked & hidden
        states = teacher.states(table, rows, types, gaps, ages, asked=hidden)  # (B, T, H + M)
        users = teacher.users(states[asked], self._contexts(batch, asked), ages[asked])
        loss = self._loss(users, table, targets[asked], weights[asked])
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(teacher.parameters(), _CLIP_NORM)
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())

    def _loss(self, users: Tensor, table: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        config = self.config
        if config.loss == "gbce":
            wrong = torch.from_numpy(self.rng.choice(self.known, config.negatives)).to(_device())
            return gbce_loss(
                users,
                table,
                targets,
                weights,
                wrong,
                n_items=len(self.known),
                calibration=config.calibration,
            )
        among = torch.from_numpy(self.known).to(_device())
        negatives = self._negatives(len(table))
        return next_item_loss(users, table, targets, weights, among=among, negatives=negatives)

    def _negatives(self, n_rows: int) -> Negatives | None:
        if len(self.known) <= self.config.full_softmax_items:
            return None
        size = self.config.negatives
        rows = self.rng.choice(self.known, size, p=self.draw)
        log_q = np.zeros(n_rows, np.float32)
        log_q[self.known] = np.log(size * self.draw)
        return Negatives(*(torch.from_numpy(column).to(_device()) for column in (rows, log_q)))

    def _contexts(self, batch: Windows, asked: Tensor) -> Tensor | None:
        config = self.config.teacher
        if batch.contexts is None or not config.reads_events:
            return None
        scaled = torch.from_numpy(scale_context(batch.contexts[asked.cpu().numpy()]))  # (E, C)
        is_kept = torch.rand(len(scaled), 1) >= config.context_dropout
        return (scaled * is_kept).to(_device())

    def save(self, path: Path) -> None:
        """Write all that the next epoch depends on, in one step (rename)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.new")
        held = {
            "fingerprint": self.fingerprint,
            "counts": (self.done, self.epoch, self.ndcg, self.best, self.best_epoch),
            "weights": self.teacher.state_dict(),
            "best_weights": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "numpy_rng": json.dumps(self.rng.bit_generator.state),
        }
        if torch.cuda.is_available():
            held["cuda_rng"] = torch.cuda.get_rng_state()
        torch.save(held, unfinished)
        unfinished.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises
        ------
        CheckpointError
            If it is of another run.
        """
        held: dict[str, Any] = torch.load(path, map_location=_device(), weights_only=True)
        if held["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"{path} was made with other data, settings or another seed. Delete it to start "
                "anew, or give the ones it was made with."
            )
        self.done, self.epoch, self.ndcg, self.best, self.best_epoch = held["counts"]
        self.teacher.load_state_dict(held["weights"])
        self.best_weights = held["best_weights"]
        self.optimizer.load_state_dict(held["optimizer"])
        self.schedule.load_state_dict(held["schedule"])
        torch.set_rng_state(held["torch_rng"].cpu())
        self.rng.bit_generator.state = json.loads(held["numpy_rng"])
        if "cuda_rng" in held and torch.cuda.is_available():
            torch.cuda.set_rng_state(held["cuda_rng"].cpu())


def teacher_scores(
    teacher: Teacher, texts: NDArray[np.float32]
) -> Callable[[Requests], NDArray[np.float32]]:
    """Return a function that scores the whole catalogue for requests, shape (B, N)."""
    teacher.eval()
    device = next(teacher.parameters()).device
    with torch.no_grad():
        table = teacher.item_table(torch.from_numpy(texts).to(device))  # (N + 1, M)

    def score(requests: Requests) -> NDArray[np.float32]:
        with torch.no_grad():
            users = request_users(teacher, table, requests)
            scores: NDArray[np.float32] = (users @ table[1:].T).cpu().numpy()
        return scores

    return score


def request_users(teacher: Teacher, table: Tensor, requests: Requests) -> Tensor:
    """Return the user vectors of requests, shape (B, M)."""
    rows = requests.rows
    ages = np.where(rows > 0, time_bucket(requests.age_s), 0)
    gaps = gap_buckets(rows, requests.age_s)
    columns = (rows, requests.types, gaps, ages, scale_context(requests.contexts))
    own_rows, types, own_gaps, own_ages, contexts = (
        torch.from_numpy(column).to(table.device) for column in columns
    )
    states = teacher.states(table, own_rows, types, own_gaps, own_ages)
    return teacher.users(states[:, -1], contexts, own_ages[:, -1])


def _start(
    teacher: Teacher,
    histories: Histories,
    counts: NDArray[np.float64],
    *,
    until_s: int,
    seed: int,
) -> None:
    """Let the network's last column begin as popularity, and the factors as a factorisation."""
    is_known = counts[1:] > 0
    logs = np.log1p(counts[1:])
    logs -= logs[is_known].mean() if is_known.any() else 0.0
    own, factors = teacher.ids.weight, teacher.factors
    with torch.no_grad():
        own[:, -1] = torch.from_numpy(logs.astype(np.float32))
        own *= torch.from_numpy(is_known[:, None])
    if not teacher.config.factors:
        return
    is_past = (histories.time_s < until_s) & (TARGET_WEIGHT[histories.types] > 0)
    users = np.repeat(np.arange(len(histories.user_ids)), np.diff(histories.offsets))
    rows, width = histories.rows[is_past] - 1, teacher.config.factors
    found = item_factors(users[is_past], rows, len(own), width=width, seed=seed)
    has_some = found.any(axis=1)
    if not has_some.any():
        return
    length = float(np.linalg.norm(found[has_some], axis=1).mean())
    with torch.no_grad():
        factors.copy_(torch.from_numpy((found / length).astype(np.float32)))
        teacher.pool.copy_(torch.eye(width) * _SEEDED_LOGITS * length**2)
        teacher.user_out.bias[-1] = 0.0  # the factors know popularity already


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _fingerprint(
    histories: Histories,
    texts: NDArray[np.float32],
    cuts: tuple[int, int],
    config: TeacherTraining,
    seed: int,
) -> str:
    """Return a hash of all that decides what training makes, but for the machine."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([asdict(config), cuts, seed]).encode())
    for column in (histories.offsets, histories.rows, histories.types, histories.time_s, texts):
        digest.update(np.ascontiguousarray(column).tobytes())
    if histories.contexts is not None:
        digest.update(histories.contexts.tobytes())
    return digest.hexdigest()
