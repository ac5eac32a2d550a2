"""The teacher's second stage: what becomes of a push, learned from those that were sent.

Reads   a teacher trained on histories, the histories, and the log of pushes.
Emits   probabilities that a push is opened, converts, is dismissed, or loses the user.
Owns    the four heads, and how teacher and heads are tuned together.

Four tasks share what the teacher knows of user and item: opens are many and opt-outs rare, so the
rare ones learn from what the frequent ones shape. A head reads the user's vector times the item's,
column by column, both vectors, and the context that the policy saw, from its log.

What is judged comes later than what is learned from, and a head is compared with the mere base
rate: the log-loss of each says whether its probabilities are worth anything. The log holds what a
policy chose. `by_chance` weighs each push by 1 / propensity, in learning and in judging, as if arms
had been sent at random; weights are cut, which trades variance for a bias toward the policy.

A run that was stopped goes on from its checkpoint, written after each epoch, to the same weights.

References
----------
Caruana, "Multitask Learning", Machine Learning 1997.
Ionides, "Truncated Importance Sampling", JCGS 2008.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from models.arms import N_POLICY_CONTEXT
from models.dataset import Histories, Requests, gap_buckets, requests_when, time_bucket
from models.features import scale_context
from models.optimization import deterministic
from models.push_log import OUTCOMES, PushLog
from models.teacher import Columns, Teacher
from models.teacher_checkpoint import CheckpointError

_MOST_WEIGHT: Final = 10.0  # of a push, in units of the mean
_BLOCK: Final = 256  # pushes asked at a time
_CLIP_NORM: Final = 1.0


@dataclass(frozen=True)
class OutcomeTraining:
    """How to tune."""

    width: int = 64  # of what the heads share
    epochs: int = 10  # at most
    patience: int = 2  # epochs without a lower validation loss
    batch_size: int = 64
    learning_rate: float = 2e-3
    teacher_rate: float = 0.1  # share of it for the teacher, which knows much already
    validation: float = 0.2  # share of pushes, the newest
    dropout: float = 0.1
    by_chance: bool = False  # weigh pushes by 1 / propensity
    threads: int = 1


class Outcomes(nn.Module):
    """A teacher with a head for each of `OUTCOMES`.

    Examples
    --------
    >>> from models.teacher import TeacherConfig
    >>> tuned = Outcomes(Teacher(TeacherConfig(), n_items=2), OutcomeTraining())
    >>> users = items = torch.zeros(3, 128)
    >>> tuned(users, items, torch.zeros(3, N_POLICY_CONTEXT)).shape  # logits
    torch.Size([3, 4])
    """

    def __init__(self, teacher: Teacher, config: OutcomeTraining) -> None:
        super().__init__()
        self.config = config
        self.teacher = teacher
        columns = teacher.config.width + teacher.config.factors  # M
        self.norm = nn.LayerNorm(3 * columns)
        self.shared = nn.Linear(3 * columns + N_POLICY_CONTEXT, config.width)
        self.heads = nn.Linear(config.width, len(OUTCOMES))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, users: Tensor, items: Tensor, contexts: Tensor) -> Tensor:
        """Return logits (E, 4) of users and items (E, M) and policy contexts (E, C)."""
        both = self.norm(torch.cat((users * items, users, items), dim=1))  # (E, 3M)
        shared = F.relu(self.shared(torch.cat((both, contexts), dim=1)))  # (E, width)
        logits: Tensor = self.heads(self.dropout(shared))
        return logits


class Tuned(NamedTuple):
    """What tuning made."""

    model: Outcomes
    metrics: dict[str, float]  # log-loss of each outcome on the newest pushes, and of base rates


class Tuning(NamedTuple):
    """How far tuning is."""

    epoch: int
    epochs: int  # at most
    loss: float  # mean log-loss on the newest pushes


def tune_outcomes(
    teacher: Teacher,
    histories: Histories,
    texts: NDArray[np.float32],
    item_ids: Sequence[str],
    log: PushLog,
    *,
    config: OutcomeTraining | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_progress: Callable[[Tuning], None] | None = None,
) -> Tuned:
    """Tune a copy of a teacher on pushes of items that it knows.

    Parameters
    ----------
    teacher, texts, item_ids
        As `models.teacher_training.train_teacher` had them.
    histories
        Of the same items; each push is judged by what its user had done before it.
    log
        The older pushes train, the newest stop and judge.
    seed
        Of the heads, order of pushes and dropout.
    checkpoint
        Written after each epoch, and gone on from where it is there.
    on_progress
        Called after each epoch, once what it makes is safe.

    Raises
    ------
    ValueError
        If there are fewer than ten pushes of known items.
    CheckpointError
        If the checkpoint is of another teacher, log, settings or seed.
    """
    config = config or OutcomeTraining()
    row_of = {item_id: row for row, item_id in enumerate(item_ids, start=1)}
    rows = np.array([row_of.get(log.item_ids[arm], 0) for arm in log.chosen], np.int64)
    kept = np.flatnonzero(rows)
    if len(kept) < 10:
        raise ValueError(f"{len(kept)} pushes of known items are too few to tune on")
    with deterministic(seed, config.threads):
        model = Outcomes(deepcopy(teacher).cpu(), config)
        run = _Tuning(
            model, histories, texts, log=log, rows=rows, kept=kept, config=config, seed=seed
        )
        return run.fit(checkpoint, on_progress or (lambda _: None))


def outcome_logits(
    model: Outcomes,
    texts: Tensor,
    asked: Requests,
    rows: NDArray[np.int64],
    contexts: NDArray[np.float32],
) -> Tensor:
    """Return logits of `OUTCOMES`, shape (E, 4), of pushing items to users.

    Parameters
    ----------
    texts
        Of the teacher's items, float32, shape (N, TEXT_DIM).
    asked
        The users as they are at the moment of each push.
    rows
        Of the items pushed, from 1, shape (E,).
    contexts
        What the policy sees, columns of `models.arms.POLICY_CONTEXT`, shape (E, C).
    """
    told = model.teacher(
        texts, _columns(asked), contexts=torch.from_numpy(scale_context(asked.contexts))
    )
    items = F.embedding(torch.from_numpy(rows), told.table)
    logits: Tensor = model(told.users, items, torch.from_numpy(contexts))
    return logits


class _Tuning:
    """One run of tuning."""

    def __init__(
        self,
        model: Outcomes,
        histories: Histories,
        texts: NDArray[np.float32],
        *,
        log: PushLog,
        rows: NDArray[np.int64],
        kept: NDArray[np.int64],
        config: OutcomeTraining,
        seed: int,
    ) -> None:
        self.model, self.histories, self.log, self.rows = model, histories, log, rows
        self.texts, self.config = torch.from_numpy(texts), config
        self.rng = np.random.default_rng(seed)
        self.fingerprint = self._fingerprint(seed)
        n_past = len(kept) - max(1, round(len(kept) * config.validation))
        self.past, self.later = kept[:n_past], kept[n_past:]  # the log is in time order
        weights = 1 / np.maximum(log.propensities, 1e-6) if config.by_chance else np.ones(len(rows))
        weights = weights / weights[self.past].mean()
        self.weights = np.minimum(weights, _MOST_WEIGHT).astype(np.float32)
        # One more of each kind: a rate of nought would be refuted by a single push.
        own = self.weights[self.past, None].astype(np.float64)
        n_of = (log.outcomes[self.past] * own).sum(axis=0)
        self.base = (n_of + 1) / (own.sum() + 2)  # (4,)
        with torch.no_grad():
            model.heads.bias.copy_(torch.from_numpy(np.log(self.base / (1 - self.base))))
        fast = [own for name, own in model.named_parameters() if not name.startswith("teacher.")]
        groups: list[dict[str, Any]] = [
            {"params": fast},
            {
                "params": [*model.teacher.parameters()],
                "lr": config.teacher_rate * config.learning_rate,
            },
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        self.epoch, self.best_epoch = 0, 0
        self.best, self.best_weights = float(self._loss_of_later().mean()), self._copied()

    def fit(self, checkpoint: Path | None, on_progress: Callable[[Tuning], None]) -> Tuned:
        """Tune to the epoch that knows later pushes best."""
        config = self.config
        if checkpoint is not None:
            self._load(checkpoint)
        while self.epoch < config.epochs and self.epoch - self.best_epoch < config.patience:
            self.epoch += 1
            self.model.train()
            order = self.rng.permutation(self.past)
            for start in range(0, len(order), config.batch_size):
                self._step(order[start : start + config.batch_size])
            loss = float(self._loss_of_later().mean())
            if loss < self.best:
                self.best, self.best_epoch, self.best_weights = loss, self.epoch, self._copied()
            if checkpoint is not None:
                self._save(checkpoint)
            on_progress(Tuning(self.epoch, config.epochs, loss))
        self.model.load_state_dict(self.best_weights)
        losses = self._loss_of_later()
        happened = self.log.outcomes[self.later]
        plain = self._mean(-np.where(happened, np.log(self.base), np.log(1 - self.base)))
        metrics = {
            "epochs": float(self.epoch),
            "pushes": float(len(self.past)),
            "pushes_later": float(len(self.later)),
        }
        for place, name in enumerate(OUTCOMES):
            metrics[f"{name}_log_loss"] = float(losses[place])
            metrics[f"{name}_log_loss_of_base_rate"] = float(plain[place])
        return Tuned(self.model.eval(), metrics)

    def _save(self, path: Path) -> None:
        """Write all that the next epoch depends on, in one step (rename)."""
        held = {
            "fingerprint": self.fingerprint,
            "counts": (self.epoch, self.best_epoch, self.best),
            "weights": self._copied(),
            "best_weights": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "numpy_rng": json.dumps(self.rng.bit_generator.state),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.new")
        torch.save(held, unfinished)
        unfinished.replace(path)

    def _load(self, path: Path) -> None:
        """Go on from the checkpoint where there is one."""
        if not path.exists():
            return
        held: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if held["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"{path} was made with another teacher, log, settings or seed. Delete it to start "
                "anew, or give the ones it was made with."
            )
        self.epoch, self.best_epoch, self.best = held["counts"]
        self.model.load_state_dict(held["weights"])
        self.best_weights = held["best_weights"]
        self.optimizer.load_state_dict(held["optimizer"])
        torch.set_rng_state(held["torch_rng"])
        self.rng.bit_generator.state = json.loads(held["numpy_rng"])

    def _fingerprint(self, seed: int) -> str:
        """Return a hash of all that decides what tuning makes, but for the machine."""
        log, told, model = self.log, self.histories, self.model
        digest = hashlib.blake2b(digest_size=16)
        said = [asdict(self.config), asdict(model.teacher.config), seed]
        digest.update(json.dumps([*said, log.user_ids, told.user_ids]).encode())
        columns = [told.offsets, told.rows, told.types, told.time_s, self.texts.numpy()]
        columns += [self.rows, log.decided_ms, log.contexts, log.propensities, log.outcomes]
        columns += [own.numpy() for own in model.teacher.state_dict().values()]
        if told.contexts is not None:
            columns.append(told.contexts)
        for column in columns:
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def _copied(self) -> dict[str, Tensor]:
        return {name: own.clone() for name, own in self.model.state_dict().items()}

    def _step(self, pushes: NDArray[np.int64]) -> None:
        happened = torch.from_numpy(self.log.outcomes[pushes].astype(np.float32))
        losses = F.binary_cross_entropy_with_logits(
            self._logits(pushes), happened, reduction="none"
        )  # (E, 4)
        loss = (losses.sum(dim=1) * torch.from_numpy(self.weights[pushes])).mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP_NORM)
        self.optimizer.step()

    def _loss_of_later(self) -> NDArray[np.float64]:
        """Return the log-loss of each outcome on the newest pushes, shape (4,)."""
        self.model.eval()
        found = []
        for start in range(0, len(self.later), _BLOCK):
            pushes = self.later[start : start + _BLOCK]
            happened = torch.from_numpy(self.log.outcomes[pushes].astype(np.float32))
            with torch.no_grad():
                logits = self._logits(pushes)
            found.append(
                F.binary_cross_entropy_with_logits(logits, happened, reduction="none").numpy()
            )
        return self._mean(np.concatenate(found))

    def _mean(self, losses: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the weighted mean of the newest pushes' losses, shape (4,)."""
        weights = self.weights[self.later].astype(np.float64)
        mean: NDArray[np.float64] = np.average(losses, axis=0, weights=weights)
        return mean

    def _logits(self, pushes: NDArray[np.int64]) -> Tensor:
        """Return logits (E, 4) of pushes, by what was known when they were decided."""
        asked = requests_when(
            self.histories,
            [self.log.user_ids[push] for push in pushes],
            self.log.decided_ms[pushes] // 1_000,
        )
        return outcome_logits(
            self.model, self.texts, asked, self.rows[pushes], self.log.contexts[pushes]
        )


def _columns(asked: Requests) -> Columns:
    ages = np.where(asked.rows > 0, time_bucket(asked.age_s), 0)
    held = (asked.rows, asked.types, gap_buckets(asked.rows, asked.age_s), ages)
    return Columns(*(torch.from_numpy(own) for own in held))
