"""Training the fusion of modes: items that users have together come to lie together.

Reads   histories, and the items' vectors by mode.
Emits   a fusion file (`models.fusion`) and what it measured on a later stretch of time.
Owns    the network as torch sees it, the pairs, and the loss.

A *pair* is two items of one user within a session: an invoice, a visit. The loss asks for the
second among those of the whole batch, from the first, and the other way round. Items are in a
batch as often as they are popular, and each logit may be corrected by how often (Yi et al. 2019,
eq. 6): corrected whole, a vector says what is wanted beside an item, popularity included; not
corrected, it says which items belong together, and an item that nobody met yet is not put behind.

At each meeting an item loses some of its modes by chance, so that a text alone, or an image
alone, lands where the whole item would: the partner is the same. The network starts from the
main directions of the catalogue (`Fusion.fitted`), which is what it has to beat: by the rule of
`models.fusion_judge`, on a stretch of time of its own, or the start is what is kept.

Time is cut as in `models.train`, and the same input, seed and thread count give the same file.
`FusionNet` is a module like any other: a student or teacher may train it as its item encoder.

References
----------
van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018.
Neverova et al., "ModDrop: adaptive multi-modal gesture recognition", TPAMI 2016.
Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations",
RecSys 2019.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.dataset import TARGET_WEIGHT, Histories, time_split
from models.evaluate import next_item_metrics, next_item_ranks
from models.fusion import MODES, Fusion, ModeVectors, ModeWeights, unit_rows
from models.fusion_judge import (
    Choice,
    Judge,
    content_scores,
    new_targets,
    split_targets,
    thinned,
)
from models.optimization import deterministic, rate
from models.train import Progress, TrainResult

_MAX_SCALE: Final = 50.0  # of cosines in the loss: beyond, one wrong pair decides a batch
_FIRST_SCALE: Final = 10.0
_MASKED: Final = -1e9
_GATE_FASTER: Final = 10.0  # at the rate of the projections it hardly leaves its even start


@dataclass(frozen=True)
class FusionConfig:
    """How to train; chosen on the validation of the data of `bench.fusion`, warm and cold alike."""

    epochs: int = 6  # at most
    patience: int = 2  # epochs without a larger gain
    batch_size: int = 512  # pairs, each the wrong answer of all others
    learning_rate: float = 2e-3
    popularity: float = 0.25  # share of the correction: 0 is best for cold items, 1 for warm ones
    mode_dropout: float = 0.3  # chance that an item loses a mode, where another is left
    session_gap_s: int = 1_800  # seconds between two events of one session, at most
    span: int = 20  # events between the two of a pair, at most: long sessions drift
    pairs: int = 50_000  # of an epoch, at most: 2 s on one core
    validation: float = 0.1  # share of events
    test: float = 0.1  # share of events, the newest
    max_requests: int = 2_000  # of validation, warm and cold items each, and of test
    threads: int = 1


class FusionNet(nn.Module):
    """The network of `models.fusion`, with gradients.

    Parameters
    ----------
    start
        Where the weights begin; the centres stay as they are.
    """

    def __init__(self, start: Fusion) -> None:
        super().__init__()
        self.projections = nn.ParameterList(
            nn.Parameter(torch.from_numpy(mode.projection.copy())) for mode in start.modes
        )
        self.means = [torch.from_numpy(mode.mean.copy()) for mode in start.modes]
        self.gate = nn.Parameter(torch.from_numpy(start.gate.copy()))
        self.log_scale = nn.Parameter(torch.tensor(np.log(_FIRST_SCALE), dtype=torch.float32))

    def forward(self, vectors: list[Tensor], there: Tensor) -> Tensor:
        """Return items' vectors, shape (B, TEXT_DIM).

        `vectors` has one (B, D) a mode, rows of length 1 or zeros; `there`, float32 of shape
        (B, 3), is 1 for the modes to use.
        """
        parts = [
            F.normalize((x - mean) @ projection, dim=-1)  # (B, TEXT_DIM)
            for x, mean, projection in zip(vectors, self.means, self.projections, strict=True)
        ]
        stacked = torch.stack(parts, dim=1) * there[:, :, None]  # (B, 3, TEXT_DIM)
        inputs = torch.cat((stacked.flatten(1), there), dim=1)  # (B, 3 TEXT_DIM + 3)
        logits = (inputs @ self.gate).masked_fill(there == 0, _MASKED)  # (B, 3)
        shares = torch.softmax(logits, dim=1)
        return F.normalize((shares[:, :, None] * stacked).sum(dim=1), dim=-1)

    def loss(self, left: Tensor, right: Tensor, items: Tensor, log_q: Tensor) -> Tensor:
        """Return the cross-entropy of each pair's other half among the batch's, both ways.

        `left` and `right` have shape (B, TEXT_DIM), `items`, int64 of shape (B, 2), says which
        items they are, and `log_q` (N,) what is taken from the logit of each.
        """
        scale = self.log_scale.exp().clamp(max=_MAX_SCALE)
        cosines = scale * left @ right.T  # (B, B)
        first, second = items[:, 0], items[:, 1]
        own = torch.eye(len(items), dtype=torch.bool)
        # An item is no wrong answer to itself, nor to a pair that it is the right answer of.
        to_right = (second == second[:, None]) | (second == first[:, None])
        to_left = (first == first[:, None]) | (first == second[:, None])
        answers = torch.arange(len(items))
        return F.cross_entropy(
            (cosines - log_q[second]).masked_fill(to_right & ~own, _MASKED), answers
        ) + F.cross_entropy(
            (cosines.T - log_q[first]).masked_fill(to_left & ~own, _MASKED), answers
        )

    def to_fusion(self, encoders: Mapping[str, str] | None = None) -> Fusion:
        """Return the weights as they stand, for serving."""
        modes = [
            ModeWeights(mean.numpy().copy(), projection.detach().numpy().copy())
            for mean, projection in zip(self.means, self.projections, strict=True)
        ]
        return Fusion(modes, self.gate.detach().numpy().copy(), encoders)


class Pairs(NamedTuple):
    """What pairs are drawn from: wanted items, session after session, and each one's partners."""

    items: NDArray[np.int64]  # shape (W,), item numbers from 0
    first: NDArray[np.int64]  # shape (W,), position of the first that may be the partner
    last: NDArray[np.int64]  # shape (W,), position of the last one, itself where it is alone


def train_fusion(
    histories: Histories,
    vectors: ModeVectors,
    *,
    path: Path,
    encoders: Mapping[str, str] | None = None,
    config: FusionConfig | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Train a fusion and write its file.

    Parameters
    ----------
    histories
        From `models.dataset.build_histories`.
    vectors
        Of the items, N rows in the order of the histories' `item_ids`.
    path
        Where the file goes (`fusion.pff`); replaced in one step.
    encoders
        What made the vectors, by mode; the file keeps it, and loading compares it.
    on_progress
        Called after each step; early stopping may end before `total`.

    Returns
    -------
    TrainResult
        `version` is the fusion's id. `metrics` has how far it went from its start, as `share` (0:
        training did not help, and the start is what the file holds), what it gained in NDCG@100
        before the test (`warm_gain`, `cold_gain`), and NDCG@10 and hit rates on the newest
        stretch of time, of items that are new to the user: of the fusion, of its start
        (`start_`), without each mode (`without_`), and for items that nobody met in training
        (`cold_`).

    Raises
    ------
    ValueError
        If no two items were had together before the first cut.
    """
    config = config or FusionConfig()
    cuts = time_split(histories, validation=config.validation, test=config.test)
    start = Fusion.fitted(*vectors, encoders=encoders)
    judge = Judge(start, vectors, histories, *cuts, limit=config.max_requests)
    with deterministic(seed, config.threads):
        net = FusionNet(start)
        trainer = _Trainer(net, histories, vectors, judge, cuts[0], config=config, seed=seed)
        epochs, chosen = trainer.fit(on_progress or (lambda _: None), encoders)
    fusion, gains = chosen.fusion, chosen.gains
    metrics = {"epochs": float(epochs), "share": chosen.share, "tested_from_s": float(cuts[1])}
    metrics |= {"warm_gain": gains.warm.mean, "warm_gain_error": gains.warm.error}
    metrics |= {"cold_gain": gains.cold.mean, "cold_gain_error": gains.cold.error}
    metrics["cold_gain_requests"] = float(gains.cold.n_requests)
    tests = thinned(new_targets(histories, cuts[1], None), config.max_requests)
    metrics |= _test_metrics(start, fusion, vectors, histories, tests)
    _, cold = split_targets(histories, cuts[1], None, cold_s=cuts[0])
    cold = thinned(cold, config.max_requests)
    metrics["cold_requests"] = float(len(cold))
    metrics["cold_hr@100"] = _metrics(fusion, vectors, histories, cold)["hr@100"]
    metrics["start_cold_hr@100"] = _metrics(start, vectors, histories, cold)["hr@100"]
    return TrainResult(path, fusion.save(path), metrics)


class _Trainer:
    """One run of training."""

    def __init__(
        self,
        net: FusionNet,
        histories: Histories,
        vectors: ModeVectors,
        judge: Judge,
        until_s: int,
        *,
        config: FusionConfig,
        seed: int,
    ) -> None:
        self.net, self.judge, self.config = net, judge, config
        self.rng = np.random.default_rng(seed)
        self.units, self.there = _tensors(vectors, [len(mean[0]) for mean in net.means])
        self.pairs = pairs_of(histories, config, until_s=until_s)
        self.has_vector = self.there.any(dim=1).numpy()
        has_other = self.pairs.first < self.pairs.last
        self.anchors = np.flatnonzero(has_other & self.has_vector[self.pairs.items])
        self.n_steps = -(-min(len(self.anchors), config.pairs) // config.batch_size)
        self.total = config.epochs * self.n_steps
        if not self.total:
            raise ValueError("no two items in one session before the validation: nothing to learn")
        counts = np.bincount(self.pairs.items[self.anchors], minlength=len(self.there))
        # An item that is a partner alone counts half: a logarithm needs more than 0.
        log_q = config.popularity * np.log(np.maximum(counts, 0.5) / counts.sum())
        self.log_q = torch.from_numpy(log_q.astype(np.float32))
        slower = [weights for weights in net.parameters() if weights is not net.gate]
        groups: list[dict[str, Any]] = [
            {"params": [net.gate], "lr": _GATE_FASTER * config.learning_rate},
            {"params": slower},
        ]
        self.optimizer = torch.optim.Adam(groups, lr=config.learning_rate)
        warmup = max(1, self.total // 20)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: rate(step, warmup, self.total)
        )

    def fit(
        self, on_progress: Callable[[Progress], None], encoders: Mapping[str, str] | None
    ) -> tuple[int, Choice]:
        """Train until no epoch gains more; return how many ran, and the best that came by."""
        best, best_epoch, done = self.judge.choose(self.net.to_fusion(encoders)), 0, 0
        for epoch in range(1, self.config.epochs + 1):
            for items in self._batches():
                loss = self._step(torch.from_numpy(items))
                done += 1
                on_progress(Progress(done, self.total, epoch, loss, best.gains.total))
            found = self.judge.choose(self.net.to_fusion(encoders))
            if best_epoch == 0 or found.value > best.value:
                best, best_epoch = found, epoch
            if epoch - best_epoch >= self.config.patience:
                break
        return epoch, best

    def _batches(self) -> Iterator[NDArray[np.int64]]:
        """Yield the item numbers of pairs, shape (B, 2), each epoch with new partners."""
        chosen = self.rng.permutation(self.anchors)[: self.config.pairs]
        first, last = self.pairs.first[chosen], self.pairs.last[chosen]
        others = first + (self.rng.random(len(chosen)) * (last - first)).astype(np.int64)
        others += others >= chosen  # any place but its own
        items = np.stack((self.pairs.items[chosen], self.pairs.items[others]), axis=1)  # (P, 2)
        items = items[(items[:, 0] != items[:, 1]) & self.has_vector[items[:, 1]]]
        for start in range(0, len(items), self.config.batch_size):
            yield items[start : start + self.config.batch_size]

    def _step(self, items: Tensor) -> float:
        left, right = (self.net(*self._met(items[:, side])) for side in (0, 1))
        loss = self.net.loss(left, right, items, self.log_q)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())

    def _met(self, items: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return items' vectors and the modes that they keep this time, one at least."""
        there = self.there[items]  # (B, 3)
        chance = torch.rand(there.shape) * there
        is_kept = (chance >= self.config.mode_dropout) | (
            chance == chance.amax(dim=1, keepdim=True)
        )
        return [unit[items] for unit in self.units], there * is_kept


def pairs_of(histories: Histories, config: FusionConfig, *, until_s: int) -> Pairs:
    """Return the events before `until_s` and which others of their session are within the span.

    Only types that say the item is wanted count (`models.dataset.TARGET_WEIGHT`).

    >>> from models.dataset import build_histories
    >>> histories = build_histories(["u"] * 4, ["a", "b", "c", "a"], [6] * 4, [0, 5, 9, 9_000],
    ...                             item_ids=["a", "b", "c"])
    >>> [column.tolist() for column in pairs_of(histories, FusionConfig(span=1), until_s=10_000)]
    [[0, 1, 2, 0], [0, 0, 1, 3], [1, 2, 2, 3]]
    """
    users = np.repeat(np.arange(len(histories.user_ids)), np.diff(histories.offsets))
    is_start = np.ones(len(users), np.bool_)
    is_start[1:] = (np.diff(users) > 0) | (np.diff(histories.time_s) > config.session_gap_s)
    is_wanted = (TARGET_WEIGHT[histories.types] > 0) & (histories.time_s < until_s)
    events = np.flatnonzero(is_wanted)
    sessions = np.cumsum(is_start)[events]  # (W,), sorted
    at = np.arange(len(events))
    first = np.maximum(np.searchsorted(sessions, sessions, side="left"), at - config.span)
    last = np.minimum(np.searchsorted(sessions, sessions, side="right") - 1, at + config.span)
    return Pairs(histories.rows[events] - 1, first, last)


def _metrics(
    fusion: Fusion, vectors: ModeVectors, histories: Histories, events: NDArray[np.int64]
) -> dict[str, float]:
    rank = next_item_ranks(content_scores(fusion.fuse(*vectors)), histories, events)
    return next_item_metrics(rank)


def _test_metrics(
    start: Fusion,
    fusion: Fusion,
    vectors: ModeVectors,
    histories: Histories,
    events: NDArray[np.int64],
) -> dict[str, float]:
    found = {**_metrics(fusion, vectors, histories, events), "test_requests": float(len(events))}
    found["start_ndcg@10"] = _metrics(start, vectors, histories, events)["ndcg@10"]
    known = [mode for mode, dim in zip(MODES, fusion.dims, strict=True) if dim]
    for mode in known if len(known) > 1 else ():
        without = vectors._replace(**{mode: None})
        found[f"without_{mode}_ndcg@10"] = _metrics(fusion, without, histories, events)["ndcg@10"]
    return found


def _tensors(vectors: ModeVectors, dims: list[int]) -> tuple[list[Tensor], Tensor]:
    """Return unit rows (N, D) a mode, empty where unknown, and which are there (N, 3)."""
    n_items = next(len(x) for x in vectors if x is not None)
    units = [torch.zeros((n_items, dim)) for dim in dims]
    there = torch.zeros((n_items, len(MODES)))
    for m, x in enumerate(vectors):
        if x is not None and dims[m]:
            unit, is_there = unit_rows(x)
            units[m] = torch.from_numpy(unit.astype(np.float32))
            there[:, m] = torch.from_numpy(is_there.astype(np.float32))
    return units, there
