"""The student: a small causal transformer that says which item a user wants next.

Reads   the last T items with event types and gaps, the context and the trigger's age.
Emits   one user vector a request; a candidate's score is its dot product with an item vector.
Owns    the network and its loss. `models.export` writes the same network as ONNX, a test holds
        the two together; `models.train` trains it.

An item vector is a projection of the item's text plus, where the item was seen in training,
a vector of its own. The own vector is dropped at random in training, so that the projection
learns to stand alone: an item added a second ago is scored by its text. The last column of an
item's vector meets a user column that starts at 1 and so acts as the item's popularity.

Beside the network the user vector has a plain part: the sum of the history's item vectors, fading
by place, through one matrix. Item vectors and this matrix may start as a factorisation
(`models.factors`), so that little data finds what goes with what as well as that does; the network
learns what order, pauses and context add.

Positions are a learned bias for each distance and head (Raffel et al. 2020, section 2.1), not
vectors added to the tokens: keys and values then do not depend on where an item stands, and
may be kept while the window slides. The context enters after the sequence, for the same reason.

References
----------
Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018.
Klenitskiy and Vasilev, "Turning Dross Into Gold Loss", RecSys 2023 (full softmax for it).
Yi et al., "Sampling-Bias-Corrected Neural Modeling", RecSys 2019 (logQ correction).
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.dataset import N_BUCKETS
from models.features import EVENT_TYPES, FADING, HISTORY, N_CONTEXT, TEXT_DIM
from models.softmax import NEVER, Ruled, Soft, cross_entropy_sum, ruled_out

# Added to attention logits. Padding weighs exp(-1e4) = 0 against any item; what lies ahead is
# lower still, so that the padding before a user's first item sees padding only.
PAD_BIAS: Final = -1e4
FUTURE_BIAS: Final = -1e9
_RIDGE: Final = 1e-3  # of the mean variance: a map of vectors that hardly differ stays small
_TINY: Final = 1e-9


@dataclass(frozen=True)
class StudentConfig:
    """The network's sizes; the defaults cost about 55 µs a user on one core (`bench/student.py`).

    `id_dropout` is the share of items whose own vector is hidden in a training step;
    `context_dropout` the share of examples without context, so that both kinds are served.

    `reach` is how many positions each layer sees, its own among them; (): all T. Where all layers
    together see less than T, what a position's keys and values hold never changes while the window
    slides, and `models.incremental` may keep them.

    `layer_heads` and `layer_feed_forward` are what pruning left of each layer; (): all of it. A
    head has `width // heads` columns, pruned or not.
    """

    width: int = 64  # W, and M: columns of an item vector
    layers: int = 2
    heads: int = 2
    feed_forward: int = 128
    request: int = 128  # hidden width where context and history meet
    dropout: float = 0.2
    id_dropout: float = 0.15
    context_dropout: float = 0.15
    reach: tuple[int, ...] = ()
    layer_heads: tuple[int, ...] = ()
    layer_feed_forward: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together."""
        if self.width % self.heads or self.layers < 1:
            raise ValueError(f"width {self.width} must divide into {self.heads} heads, layers >= 1")
        for name in ("reach", "layer_heads", "layer_feed_forward"):
            sizes = getattr(self, name)
            if sizes and (len(sizes) != self.layers or min(sizes) < 1):
                raise ValueError(f"{name} {sizes}: one number a layer, each at least 1")
        if any(n > HISTORY for n in self.reach):
            raise ValueError(f"reach {self.reach}: no layer sees more than {HISTORY} positions")

    @property
    def reaches(self) -> tuple[int, ...]:
        """How many positions each layer sees."""
        return self.reach or (HISTORY,) * self.layers

    @property
    def head_counts(self) -> tuple[int, ...]:
        """Heads of each layer."""
        return self.layer_heads or (self.heads,) * self.layers

    @property
    def hidden_counts(self) -> tuple[int, ...]:
        """Hidden units of each layer's feed-forward."""
        return self.layer_feed_forward or (self.feed_forward,) * self.layers

    @property
    def is_cacheable(self) -> bool:
        """Whether all layers together see less than a window of T.

        Less, for the oldest item's gap is lost: what came before it is not in the window.
        """
        return sum(self.reaches) - self.layers + 1 < HISTORY


class TeacherLogits(NamedTuple):
    """What a teacher thinks of some candidates: the target of a distillation."""

    candidates: Tensor  # int64, shape (E, Kt), item rows
    logits: Tensor  # float32, shape (E, Kt)
    temperature: float = 2.0
    share: float = 0.5  # of the loss; the rest is the true next item
    users: Tensor | None = None  # the teacher's vectors of the examples, shape (E, Mt)
    matching: float = 0.0  # what matching them counts for, beside the loss

    def on(self, device: torch.device) -> "TeacherLogits":
        """Return the same on another device."""
        users = None if self.users is None else self.users.to(device)
        candidates, logits = self.candidates.to(device), self.logits.to(device)
        return self._replace(candidates=candidates, logits=logits, users=users)


class _Layer(nn.Module):
    """One pre-norm block: causal attention with a bias by distance, then a feed-forward."""

    def __init__(self, config: StudentConfig, layer: int) -> None:
        super().__init__()
        width, hidden = config.width, config.hidden_counts[layer]
        self.heads = config.head_counts[layer]
        self.reach = config.reaches[layer]
        columns = self.heads * (width // config.heads)  # of all heads: A
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * columns)
        self.out = nn.Linear(columns, width)
        self.distance = nn.Parameter(torch.zeros(self.heads, HISTORY))
        self.forward_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return x (B, T, W) after the block; `mask` (B, 1, T, T) is added to the logits."""
        n_batch, length, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(n_batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, A/H)
        steps = torch.arange(length, device=x.device)
        distance = (steps[:, None] - steps).clamp(min=0)  # (T, T)
        bias = self.distance[:, distance] + mask  # (B, H, T, T)
        if self.reach < length:
            bias = bias.masked_fill(distance >= self.reach, FUTURE_BIAS)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (B, H, T, A/H)
        mixed = mixed.transpose(1, 2).reshape(n_batch, length, -1)  # (B, T, A)
        x = x + self.dropout(self.out(mixed))
        hidden = F.relu(self.up(self.forward_norm(x)))  # (B, T, F)
        after: Tensor = x + self.dropout(self.down(hidden))
        return after


class Student(nn.Module):
    """The network over a catalogue of `n_items` items with their own vectors.

    Notes
    -----
    Parameters: about 64 for each item, and 110,000 at the default sizes.

    Examples
    --------
    >>> student = Student(StudentConfig(), n_items=3)
    >>> table = student.item_table(torch.zeros(3, TEXT_DIM))  # row 0 is padding
    >>> rows = torch.tensor([[0] * (HISTORY - 1) + [2]])
    >>> zeros = torch.zeros_like(rows)
    >>> states = student.encode(table, rows, zeros, zeros)  # (B, T, W + M)
    >>> users = student.users(states[:, -1], torch.zeros(1, N_CONTEXT), torch.tensor([0]))
    >>> (users @ table.T).shape
    torch.Size([1, 4])
    """

    def __init__(self, config: StudentConfig, n_items: int) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.ids = nn.Embedding(n_items, width)
        self.text = nn.Linear(TEXT_DIM, width, bias=False)
        self.item_in = nn.Linear(width, width, bias=False)
        self.kind = nn.Embedding(len(EVENT_TYPES), width)
        self.gap = nn.Embedding(N_BUCKETS, width)
        self.blocks = nn.ModuleList(_Layer(config, i) for i in range(config.layers))
        self.final_norm = nn.LayerNorm(width)
        self.request_history = nn.Linear(width, config.request)
        self.request_context = nn.Linear(N_CONTEXT, config.request, bias=False)
        self.request_age = nn.Embedding(N_BUCKETS, config.request)
        self.request_out = nn.Linear(config.request, width, bias=False)
        self.user_out = nn.Linear(width, width)
        self.pool = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self._init_weights()

    def _init_weights(self) -> None:
        for embedding in (self.ids, self.kind, self.gap):
            nn.init.normal_(embedding.weight, std=0.05)
        # Trained without contexts these stay at zero, and the model does not heed them.
        nn.init.zeros_(self.request_context.weight)
        nn.init.zeros_(self.request_age.weight)
        nn.init.zeros_(self.pool.weight)
        nn.init.zeros_(self.user_out.bias)
        with torch.no_grad():
            self.user_out.bias[-1] = 1.0  # the popularity column

    def item_table(self, text_vectors: Tensor, *, keep_ids: Tensor | None = None) -> Tensor:
        """Return the items' vectors below a row of zeros, shape (N + 1, W).

        `keep_ids`, float32 of shape (N, 1), is 0 for items that must do with their text.
        """
        own = self.ids.weight if keep_ids is None else self.ids.weight * keep_ids  # (N, W)
        return F.pad(self.text(text_vectors) + own, (0, 0, 1, 0))  # (N + 1, W)

    def encode(self, table: Tensor, rows: Tensor, types: Tensor, gaps: Tensor) -> Tensor:
        """Return the state after each position, shape (B, T, 2W), blind to what follows it.

        The first half is the network's, the second the fading sum of the items' vectors.
        """
        length = rows.shape[1]
        items = F.embedding(rows, table)  # (B, T, W)
        x = self.item_in(items) + self.kind(types) + self.gap(gaps)  # (B, T, W)
        x = self.dropout(x)
        mask = torch.full((length, length), FUTURE_BIAS, device=x.device).triu(1)  # (T, T)
        mask = mask + torch.where(rows == 0, PAD_BIAS, 0.0)[:, None, None, :]  # (B, 1, T, T)
        for block in self.blocks:
            x = block(x, mask)
        return torch.cat((self.final_norm(x), _fading(items) @ items), dim=-1)  # (B, T, 2W)

    def users(self, states: Tensor, contexts: Tensor | None, ages: Tensor) -> Tensor:
        """Return user vectors (..., W) of states (..., 2W), contexts (..., C), ages (...)."""
        states, pooled = states.chunk(2, dim=-1)  # (..., W) each
        joined = self.request_history(states) + self.request_age(ages)  # (..., R)
        if contexts is not None:
            joined = joined + self.request_context(contexts)
        users: Tensor = self.user_out(states) + self.request_out(self.dropout(F.relu(joined)))
        plain: Tensor = self.pool(pooled)
        return users + plain


def _fading(items: Tensor) -> Tensor:
    """Return what each position's sum takes of each position's item, shape (T, T)."""
    steps = torch.arange(items.shape[1], device=items.device)
    behind = steps[:, None] - steps
    return torch.where(behind >= 0, FADING ** behind.clamp(min=0), 0.0)


class Negatives(NamedTuple):
    """Sampled wrong answers: item rows (S,) and the log of how often each is drawn (N + 1,)."""

    rows: Tensor
    log_q: Tensor


def next_item_loss(
    users: Tensor,
    table: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    among: Tensor | None = None,
    negatives: Negatives | None = None,
    had: Tensor | None = None,
    teacher: TeacherLogits | None = None,
) -> Tensor:
    """Return the weighted mean cross-entropy of the next item, of E examples.

    Parameters
    ----------
    users
        User vectors, float32, shape (E, W).
    table
        Item vectors, shape (N + 1, W); row 0 is padding and never an answer.
    targets, weights
        The true rows, int64, and what each counts for, float32, shape (E,).
    among
        The rows that could be answers, int64, sorted, with all targets; None is the whole
        table. Items that nobody has met yet must not be learned as wrong answers.
    negatives
        None takes the softmax over all of `among`; else over the target and the sample,
        corrected for how often the sampling draws each item (Yi et al. 2019, eq. 6).
    had
        Rows that are no wrong answers of an example, padded with 0, int64, shape (E, T); see
        `models.teacher_loss`. Not heeded among sampled negatives, which rarely hold them.
    teacher
        Adds its share of KL(teacher, student) over its candidates, at its temperature, times
        the temperature squared (Hinton et al. 2015), so that gradients keep their size. A
        candidate of logit `NEVER` takes no part in either softmax.
    """
    hard, soft = weights, None
    if teacher is not None:
        hard = weights * (1 - teacher.share)
        soft = weights * teacher.share * teacher.temperature**2
    if negatives is None:
        rows = torch.arange(1, len(table), device=table.device) if among is None else among
        told = None if teacher is None or soft is None else _told(teacher, rows, soft)
        total = cross_entropy_sum(
            users,
            F.embedding(rows, table),
            torch.searchsorted(rows, targets),
            hard,
            ruled=_not_wrong(had, targets, rows),
            soft=told,
        )
        soft = soft if told is None else None
    else:
        right = (users * F.embedding(targets, table)).sum(-1) - negatives.log_q[targets]  # (E,)
        wrong = users @ F.embedding(negatives.rows, table).T - negatives.log_q[negatives.rows]
        wrong = wrong.masked_fill(negatives.rows == targets[:, None], FUTURE_BIAS)  # (E, S)
        losses = torch.logsumexp(torch.cat((right[:, None], wrong), 1), 1) - right
        total = (losses * hard).sum()
    if teacher is not None and soft is not None:
        total = total + (_distances(users, table, teacher) * soft).sum()
    if teacher is not None and teacher.users is not None:
        total = total + teacher.matching * (unmatched(users, teacher.users) * weights).sum()
    return total / weights.sum().clamp(min=1e-9)


def _not_wrong(had: Tensor | None, targets: Tensor, rows: Tensor) -> Ruled | None:
    if had is None:
        return None
    return ruled_out(had.masked_fill(had == targets[:, None], 0), rows)


def _told(teacher: TeacherLogits, rows: Tensor, weights: Tensor) -> Soft | None:
    """Return what is told of `rows`, or None where the teacher speaks of others, too."""
    asked = teacher.candidates.contiguous()  # (E, Kt)
    places = torch.searchsorted(rows, asked).clamp(max=len(rows) - 1)
    if not torch.equal(rows[places], asked):
        return None
    return Soft(places, teacher.logits, teacher.temperature, weights)


def _distances(users: Tensor, table: Tensor, teacher: TeacherLogits) -> Tensor:
    """Return KL(teacher, student) of each example, shape (E,)."""
    chosen = F.embedding(teacher.candidates, table)  # (E, Kt, W)
    scores = (chosen @ users[:, :, None])[..., 0]  # (E, Kt)
    scores = scores.masked_fill(teacher.logits <= NEVER, NEVER)
    mine = F.log_softmax(scores / teacher.temperature, -1)
    theirs = F.log_softmax(teacher.logits / teacher.temperature, -1)
    return F.kl_div(mine, theirs, reduction="none", log_target=True).sum(-1)


def unmatched(users: Tensor, theirs: Tensor) -> Tensor:
    """Return how much of a teacher's vectors no linear map makes of the student's, shape (E,).

    The map is the best one for these examples (ridge regression), and so needs no training of its
    own. 1 is as bad as their mean.

    Parameters
    ----------
    users, theirs
        Of the same examples, float32, shape (E, W) and (E, Mt).

    Examples
    --------
    >>> users = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    >>> turned = users @ torch.tensor([[0.0, 2.0, 0.0], [-2.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    >>> round(float(unmatched(users, turned).mean()), 3)
    0.0
    >>> round(float(unmatched(users[:, :1] * 0, turned).mean()), 3)
    1.0
    """
    mine, theirs = users - users.mean(0), theirs - theirs.mean(0)
    own = mine.T @ mine  # (W, W)
    ridge = _RIDGE * own.diagonal().mean() + _TINY
    best = torch.linalg.solve(own + ridge * torch.eye(len(own), device=own.device), mine.T @ theirs)
    left = (theirs - mine @ best).square().sum(1)  # (E,)
    share: Tensor = left / (theirs.square().sum(1).mean() + _TINY)
    return share
