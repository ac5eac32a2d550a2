"""Training the value of send and hold from a log: double Q-learning, conservative, resumable.

Reads   `models.value_data.Steps`.
Emits   a file for `models.value`.
Owns    the network, the loss, early stopping on users kept aside, and checkpoints.

Nothing is tried out: the log is all there is. The loss of a step (s, a, r, g, s') is

    1/2 (Q(s, a) - r - g Q'(s', argmax_b Q(s', b)))^2      double Q: one chooses, Q' says
    + conservatism (log sum_b exp Q(s, b) - Q(s, a))       CQL: what the log did not do is worse
    + 1/2 [a = send] (own(s) - earned)^2

Q' trails Q as a moving average, and is what is kept. The second term moves Q(s, a) by
conservatism (1 - p(a | s) / b(a | s)) for the softmax p of Q and the log's share b: an action that
the log hardly took where s is so is held for worse than it looked, which draws the price of a
push towards what the log did.

The same steps, seed and threads give the same bytes on one CPU, also where training was stopped
and went on from its checkpoint.

References
----------
van Hasselt, Guez & Silver, "Deep Reinforcement Learning with Double Q-learning", AAAI 2016.
Kumar, Zhou, Tucker & Levine, "Conservative Q-Learning for Offline RL", NeurIPS 2020, CQL(H).
"""

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.optimization import deterministic
from models.value import ADVANTAGE, OUTPUTS, OWN, VALUE, Layers, write_value
from models.value_data import Steps

_JUDGED_AT_ONCE: Final = 8_192  # steps


class CheckpointError(Exception):
    """The checkpoint is of another run; the message says what to do."""


@dataclass(frozen=True)
class ValueTraining:
    """How to train; chosen in the simulator on seeds that `bench.value` does not use."""

    hidden: tuple[int, ...] = (64, 32)
    conservatism: float = 0.003  # reward units; 0: plain double Q
    epochs: int = 20  # at most
    warm_up: int = 8  # epochs before it may end: until then what follows travels back
    patience: int = 4  # epochs that are no better than one before
    batches: int = 100  # of an epoch, drawn with replacement: time does not hang on the log's size
    batch_size: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    target_rate: float = 0.05  # share of Q that Q' takes over after each batch
    kept_aside: float = 0.2  # share of users that it stops by
    threads: int = 1


class At(NamedTuple):
    """How far training is."""

    epoch: int
    epochs: int  # at most
    error: float  # root mean square on the users kept aside, reward units


class Trained(NamedTuple):
    """What training made."""

    version: str
    metrics: dict[str, float]


class ValueNet(nn.Module):
    """The network: states (B, C) to `models.value.OUTPUTS` (B, 3)."""

    def __init__(self, n_columns: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (n_columns, *hidden)
        inner = (part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU()))
        self.last = nn.Linear(sizes[-1], len(OUTPUTS))
        self.layers = nn.Sequential(*inner, self.last)

    def forward(self, states: Tensor) -> Tensor:
        """Return the outputs, shape (B, 3)."""
        outputs: Tensor = self.layers(states)
        return outputs

    def weights(self) -> Layers:
        """Return the weights as `models.value` reads them."""
        linear = [part for part in self.layers if isinstance(part, nn.Linear)]
        return Layers(
            [np.ascontiguousarray(part.weight.detach().float().numpy().T) for part in linear],
            [part.bias.detach().float().numpy()[None].copy() for part in linear],
        )


def q_of(outputs: Tensor) -> Tensor:
    """Return Q of hold and send, (B, 2), of a network's outputs."""
    value, half = outputs[:, VALUE, None], outputs[:, ADVANTAGE, None] / 2
    return torch.cat([value - half, value + half], dim=1)  # (B, 2)


def train_value(
    steps: Steps,
    path: Path,
    *,
    config: ValueTraining | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_progress: Callable[[At], None] | None = None,
) -> Trained:
    """Train on a log, and write the file.

    Parameters
    ----------
    steps
        From `models.value_data.steps`.
    path
        Of the file to write.
    seed
        Of weights, of who is kept aside, and of the order of batches.
    checkpoint
        Written after each epoch, and gone on from where it is there.

    Raises
    ------
    ValueError
        If the log holds no known push or no known hold: there is nothing to compare.
    CheckpointError
        If the checkpoint is of other steps, settings or seed.

    Notes
    -----
    About 0.2 s an epoch, whatever the log's size; memory: the steps, once.
    """
    config = config or ValueTraining()
    known = steps.actions[steps.is_known]
    if not 0 < known.sum() < len(known):
        raise ValueError(
            f"of {len(steps.actions)} decisions {len(known)} are old enough to know what came of "
            f"them, and {int(known.sum())} of those sent: both kinds are needed, and a longer log"
        )
    with deterministic(seed, config.threads):
        run = _Run(steps, config, seed)
        if checkpoint is not None and checkpoint.exists():
            run.load(checkpoint)
        metrics = run.fit(checkpoint, on_progress or (lambda _: None))
    return Trained(write_value(path, run.best.weights(), metrics), metrics)


def users_aside(steps: Steps, config: ValueTraining, seed: int) -> NDArray[np.bool_]:
    """Return who is kept aside in training: shape (U,), U at least the number of users."""
    n_users = int(steps.users.max(initial=-1)) + 1
    return np.random.default_rng([seed, 1]).random(n_users) < config.kept_aside


class _Batch(NamedTuple):
    """B steps, and the states that they lead to."""

    states: Tensor  # (B, C)
    actions: Tensor  # (B, 1)
    earned: Tensor  # (B,)
    rewards: Tensor  # (B,)
    discounts: Tensor  # (B,)
    following: Tensor  # (B, C)


class _Run:
    """One run of training; `fit` leaves the best epoch's network in `best`."""

    def __init__(self, steps: Steps, config: ValueTraining, seed: int) -> None:
        self.steps, self.config = steps, config
        self.fingerprint = _fingerprint(steps, config, seed)
        self.rng = np.random.default_rng(seed)
        aside = users_aside(steps, config, seed)[steps.users]
        self.learned = np.flatnonzero(steps.is_known & ~aside)
        self.aside = np.flatnonzero(steps.is_known & aside)
        if not len(self.learned):
            self.learned, self.aside = self.aside, self.learned
        self.net = ValueNet(steps.states.shape[1], config.hidden)
        self._start()
        self.target, self.best = copy.deepcopy(self.net), copy.deepcopy(self.net)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.epoch, self.best_epoch, self.error = 0, 0, 0.0

    def _start(self) -> None:
        """Begin with what is earned on average for ever, and no difference between actions."""
        steps, rows, last = self.steps, self.learned, self.net.last
        lasting = 1.0 - float(steps.discounts[rows].mean())
        pushed = steps.earned[rows][steps.actions[rows] == 1]
        with torch.no_grad():
            last.weight.zero_()
            last.bias.zero_()
            last.bias[VALUE] = float(steps.rewards[rows].mean()) / max(lasting, 0.01)
            last.bias[OWN] = float(pushed.mean()) if len(pushed) else 0.0

    def fit(self, checkpoint: Path | None, on_progress: Callable[[At], None]) -> dict[str, float]:
        """Train to the best epoch; return what it reached."""
        config = self.config
        while self.epoch < config.epochs and self.epoch - self.best_epoch < config.patience:
            self.epoch += 1
            for _ in range(config.batches):
                self._step(self._batch(self.rng.choice(self.learned, config.batch_size)))
            self._judge()
            if checkpoint is not None:
                self.save(checkpoint)
            on_progress(At(self.epoch, config.epochs, self.error))
        return {
            "epochs": float(self.epoch),
            "error": self.error,
            "steps": float(len(self.learned)),
            "sent": float(self.steps.actions[self.learned].mean()),
        }

    def _batch(self, rows: NDArray[np.int64]) -> _Batch:
        steps = self.steps
        floats = (steps.earned, steps.rewards, steps.discounts)
        earned, rewards, discounts = (
            torch.from_numpy(column[rows].astype(np.float32)) for column in floats
        )
        return _Batch(
            torch.from_numpy(steps.states[rows]),
            torch.from_numpy(steps.actions[rows])[:, None],
            earned,
            rewards,
            discounts,
            torch.from_numpy(steps.states[steps.nexts[rows]]),
        )

    def _target_of(self, batch: _Batch) -> Tensor:
        """Return what Q should be, shape (B,): the reward, and Q' of what Q would do next."""
        with torch.no_grad():
            chosen = q_of(self.net(batch.following)).argmax(dim=1, keepdim=True)  # (B, 1)
            following = q_of(self.target(batch.following)).gather(1, chosen)[:, 0]  # (B,)
        return batch.rewards + batch.discounts * following

    def _step(self, batch: _Batch) -> None:
        outputs = self.net(batch.states)  # (B, 3)
        q = q_of(outputs)  # (B, 2)
        taken = q.gather(1, batch.actions)[:, 0]  # (B,)
        loss = (taken - self._target_of(batch)).square().mean() / 2
        loss = loss + self.config.conservatism * (q.logsumexp(dim=1) - taken).mean()
        own = (outputs[:, OWN] - batch.earned).square() * batch.actions[:, 0]
        loss = loss + own.mean() / 2
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        rate = self.config.target_rate
        with torch.no_grad():
            pairs = zip(self.target.parameters(), self.net.parameters(), strict=True)
            for trailing, newest in pairs:
                trailing.lerp_(newest, rate)

    def _judge(self) -> None:
        """Keep Q' if it is nearer than the best so far to what Q should be, by the users aside.

        Both are held against the same: what Q should be grows less alike from step to step as
        training goes on, and so would each one's distance from its own.
        """
        rows = self.aside if len(self.aside) else self.learned
        squares = np.zeros(2)
        for part in np.array_split(rows, -(-len(rows) // _JUDGED_AT_ONCE)):
            batch = self._batch(part)
            with torch.no_grad():
                wanted = self._target_of(batch)
                for n, net in enumerate((self.target, self.best)):
                    taken = q_of(net(batch.states)).gather(1, batch.actions)[:, 0]
                    squares[n] += float((taken - wanted).square().sum())
        newest, best = np.sqrt(squares / len(rows)).tolist()
        self.error = min(newest, best)
        if self.epoch <= self.config.warm_up or newest < best:
            self.error, self.best_epoch = newest, self.epoch
            self.best.load_state_dict(self.target.state_dict())

    def save(self, path: Path) -> None:
        """Write all that the next epoch depends on, in one step (rename)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.new")
        held = {
            "fingerprint": self.fingerprint,
            "at": (self.epoch, self.best_epoch, self.error),
            "networks": [net.state_dict() for net in (self.net, self.target, self.best)],
            "optimizer": self.optimizer.state_dict(),
            "numpy_rng": json.dumps(self.rng.bit_generator.state),
        }
        torch.save(held, unfinished)
        unfinished.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; CheckpointError if it is of another run, or none."""
        try:
            held: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            is_ours = held["fingerprint"] == self.fingerprint
        except (OSError, RuntimeError, LookupError, TypeError, ValueError, EOFError) as error:
            raise CheckpointError(f"{path} is no checkpoint: {error}. Delete it.") from error
        if not is_ours:
            raise CheckpointError(
                f"{path} was made with another log, other settings or another seed. Delete it to "
                "start anew, or give the ones it was made with."
            )
        self.epoch, self.best_epoch, self.error = held["at"]
        for net, weights in zip((self.net, self.target, self.best), held["networks"], strict=True):
            net.load_state_dict(weights)
        self.optimizer.load_state_dict(held["optimizer"])
        self.rng.bit_generator.state = json.loads(held["numpy_rng"])


def _fingerprint(steps: Steps, config: ValueTraining, seed: int) -> str:
    """Return a hash of all that decides what training makes, but for the machine."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([asdict(config), seed]).encode())
    for column in steps:
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
