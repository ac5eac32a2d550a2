"""The teacher: a transformer of any size over item vectors, the model that a student imitates.

Reads   the last T items with event types and gaps, the context and the trigger's age.
Emits   one user vector a position; an item's score is its dot product with an item vector.
Owns    the network; `models.teacher_training` trains it, `models.distill` asks it,
        `models.teacher_loss` says what it learns by.

The backbone is of `transformers`, fed with vectors in place of words: causal (GPT-2's kind),
bidirectional (BERT's kind), or any pre-trained model of a local folder. A causal one says at every
position what comes after it. A bidirectional one is asked by an item that is hidden: it sees all
others, so that only the last position of a history may be asked outside training.

An item's vector is the projection of its text plus, where it was met in training, one of its own,
as the student's is: an item never seen is scored by its text. Columns of its own hold a
factorisation of who had what (`models.factors`): there the user is the fading sum of the history
through one matrix, as in the student's plain part. They are apart from the columns that the network
learns, which else would have to stay where the factors are. Each position also reads the item
before its own: a bidirectional backbone finds what a hidden item follows without having to learn
first where "one to the left" is. `TeacherConfig.sasrec` turns all this off, and what is left is the
usual baseline.

References
----------
Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018.
Sun et al., "BERT4Rec", CIKM 2019.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, GPT2Config, GPT2Model

from models.dataset import N_BUCKETS
from models.features import EVENT_TYPES, FADING, HISTORY, N_CONTEXT, TEXT_DIM

CAUSAL: Final = "gpt2"
BIDIRECTIONAL: Final = "bert"
_EMBEDDING_STD: Final = 0.05


@dataclass(frozen=True)
class TeacherConfig:
    """What the teacher is made of; the defaults fit data of some 100,000 events.

    `backbone` is "gpt2", "bert", or a folder that `transformers` can load. Of a folder, `hidden`,
    `layers`, `heads` and `feed_forward` are the folder's own.
    """

    backbone: str = CAUSAL
    width: int = 64  # columns of an item vector that the network learns
    factors: int = 64  # further columns, of a factorisation; 0: none. M is all of them
    hidden: int = 64  # columns inside the backbone
    layers: int = 2
    heads: int = 2
    feed_forward: int = 256
    request: int = 128  # hidden width where context and history meet
    dropout: float = 0.2
    id_dropout: float = 0.15  # share of items whose own vector is hidden in a step
    context_dropout: float = 0.15  # share of examples without context
    reads_text: bool = True
    reads_events: bool = True  # event types, gaps, age of the trigger, context
    reads_before: bool = True  # each position the item before its own, too
    mask_share: float = 0.3  # of positions that a bidirectional one must guess in a step

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together."""
        if self.hidden % self.heads or self.layers < 1:
            raise ValueError(f"hidden {self.hidden} must divide into {self.heads} heads, 1 layer")

    def sasrec(self) -> "TeacherConfig":
        """Return the same size with ids alone: SASRec, trained by whatever loss is chosen."""
        return replace(
            self,
            backbone=CAUSAL,
            id_dropout=0.0,
            reads_text=False,
            reads_events=False,
            reads_before=False,
            factors=0,
        )


class Columns(NamedTuple):
    """Histories as a teacher reads them, shape (B, T) each, 0-padded on the left."""

    rows: Tensor
    types: Tensor
    gaps: Tensor
    ages: Tensor  # bucket of the time from each position to the moment after it


class Told(NamedTuple):
    """What a teacher says: a score is the product of a user and a row of the table."""

    users: Tensor  # (E, M) of the positions asked
    table: Tensor  # (N + 1, M)
    offset: Tensor  # (1,), what makes scores the logits of probabilities (gBCE)


class Teacher(nn.Module):
    """The network over a catalogue of `n_items` items with their own vectors.

    Attributes
    ----------
    is_causal
        Whether every position may be asked at once.

    Examples
    --------
    >>> teacher = Teacher(TeacherConfig(hidden=32), n_items=3)
    >>> table = teacher.item_table(torch.zeros(3, TEXT_DIM))  # row 0 is padding
    >>> rows = torch.tensor([[0] * (HISTORY - 1) + [2]])
    >>> zeros = torch.zeros_like(rows)
    >>> states = teacher.states(table, rows, zeros, zeros, zeros)  # (B, T, hidden + factors)
    >>> users = teacher.users(states[:, -1], torch.zeros(1, N_CONTEXT), torch.tensor([0]))
    >>> (users @ table.T).shape
    torch.Size([1, 4])
    """

    def __init__(self, config: TeacherConfig, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.backbone, hidden, self.is_causal = _backbone(config)
        width = config.width
        self.ids = nn.Embedding(n_items, width)
        self.factors = nn.Parameter(torch.zeros(n_items, config.factors))
        self.text = nn.Linear(TEXT_DIM, width, bias=False)
        self.item_in = nn.Linear(width + config.factors, hidden, bias=False)
        self.before_in = nn.Linear(width + config.factors, hidden, bias=False)
        self.kind = nn.Embedding(len(EVENT_TYPES), hidden)
        self.gap = nn.Embedding(N_BUCKETS, hidden)
        self.hidden_item = nn.Parameter(torch.zeros(hidden))
        self.request_history = nn.Linear(hidden, config.request)
        self.request_context = nn.Linear(N_CONTEXT, config.request, bias=False)
        self.request_age = nn.Embedding(N_BUCKETS, config.request)
        self.request_out = nn.Linear(config.request, width, bias=False)
        self.user_out = nn.Linear(hidden, width)
        self.pool = nn.Parameter(torch.zeros(config.factors, config.factors))
        self.gate = nn.Parameter(torch.ones(1))  # turns the factors' say off as fast as need be
        self.offset = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(config.dropout)
        for embedding in (self.ids, self.kind, self.gap):
            nn.init.normal_(embedding.weight, std=_EMBEDDING_STD)
        for layer in (self.request_context, self.request_age):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.user_out.bias)
        with torch.no_grad():
            self.user_out.bias[-1] = 1.0  # meets the popularity column

    def forward(
        self,
        text_vectors: Tensor,
        columns: Columns,
        *,
        asked: tuple[Tensor, Tensor] | None = None,
        hidden: Tensor | None = None,
        contexts: Tensor | None = None,
        keep_ids: Tensor | None = None,
    ) -> Told:
        """Return what is said at positions of histories: the one way in of training.

        Parameters
        ----------
        text_vectors, keep_ids
            As `item_table` takes them.
        asked
            Histories and positions in them, int64, shape (E,) each; the last ones if None.
        hidden
            Of a bidirectional backbone: positions whose next item is hidden, as in `states`.
        contexts
            Scaled, of the positions asked, shape (E, C).
        """
        table = self.item_table(text_vectors, keep_ids=keep_ids)
        states = self.states(table, *columns, asked=hidden)  # (B, T, hidden + factors)
        if asked is None:
            states, ages = states[:, -1], columns.ages[:, -1]
        else:
            states, ages = states[asked], columns.ages[asked]
        return Told(self.users(states, contexts, ages), table, self.offset + 0.0)

    def item_table(self, text_vectors: Tensor, *, keep_ids: Tensor | None = None) -> Tensor:
        """Return the items' vectors below a row of zeros, shape (N + 1, M).

        `keep_ids`, float32 of shape (N, 1), is 0 for items that must do with their text.
        """
        own: Tensor = self.ids.weight
        factors: Tensor = self.factors
        if keep_ids is not None:
            own, factors = own * keep_ids, factors * keep_ids
        learned = own + self.text(text_vectors) if self.config.reads_text else own
        return F.pad(torch.cat((learned, factors), dim=1), (0, 0, 1, 0))  # (N + 1, M)

    def states(
        self,
        table: Tensor,
        rows: Tensor,
        types: Tensor,
        gaps: Tensor,
        ages: Tensor,
        *,
        asked: Tensor | None = None,
    ) -> Tensor:
        """Return what is known before the item after each position.

        Shape (B, T, hidden + factors).

        Parameters
        ----------
        table
            From `item_table`.
        rows, types, gaps
            Of the history, padded with 0 on the left, shape (B, T).
        ages
            Bucket of the time from each position to the moment after it, shape (B, T); of a
            bidirectional backbone the last one is read, as the hidden item's gap.
        asked
            Positions whose next item is hidden, bool, shape (B, T); the last alone if None. All
            others see that item if the backbone is bidirectional. A causal one hides it anyway.
        """
        items = F.embedding(rows, table)  # (B, T, M)
        is_item, seen = rows > 0, items
        if self.is_causal:
            x = self.item_in(seen)
        else:
            hides = torch.zeros_like(is_item) if asked is None else asked.clone()
            hides[:, -1] = True
            rows, is_item = _moved(rows, 0), _moved(is_item, True)
            types, gaps = _moved(types, 0).masked_fill(hides, 0), _moved(gaps, ages[:, -1])
            seen = F.embedding(rows, table).masked_fill(hides[:, :, None], 0.0)
            x = torch.where(hides[:, :, None], self.hidden_item, self.item_in(seen))
        if self.config.reads_before:
            seen = seen.masked_fill(~is_item[:, :, None], 0.0)
            x = x + self.before_in(F.pad(seen, (0, 0, 1, 0))[:, :-1])
        if self.config.reads_events:
            x = x + self.kind(types) + self.gap(gaps)  # (B, T, hidden)
        places = (is_item.long().cumsum(1) - 1).clamp(min=0)
        found = self.backbone(
            inputs_embeds=self.dropout(x), attention_mask=is_item.long(), position_ids=places
        )
        return torch.cat(
            (found.last_hidden_state, _fading(items[..., self.config.width :])), dim=-1
        )

    def users(self, states: Tensor, contexts: Tensor | None, ages: Tensor) -> Tensor:
        """Return user vectors (..., M) of states, scaled contexts (..., C) and ages (...)."""
        hidden = states.shape[-1] - self.config.factors
        states, pooled = states[..., :hidden], states[..., hidden:]
        users: Tensor = self.user_out(states)
        if self.config.reads_events:
            joined = self.request_history(states) + self.request_age(ages)  # (..., R)
            if contexts is not None:
                joined = joined + self.request_context(contexts)
            users = users + self.request_out(self.dropout(F.relu(joined)))
        return torch.cat((users, self.gate * (pooled @ self.pool)), dim=-1)


def weights_of(teacher: Teacher) -> dict[str, NDArray[Any]]:
    """Return a teacher's weights as arrays, to be handed to another process."""
    return {name: own.cpu().numpy() for name, own in teacher.state_dict().items()}


def teacher_of(config: TeacherConfig, n_items: int, weights: dict[str, NDArray[Any]]) -> Teacher:
    """Return the teacher that has these weights, on the GPU where there is one."""
    teacher = Teacher(config, n_items)
    teacher.load_state_dict({name: torch.from_numpy(own) for name, own in weights.items()})
    return teacher.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _backbone(config: TeacherConfig) -> tuple[nn.Module, int, bool]:
    """Return the backbone, its hidden width, and whether it is causal."""
    positions, dropout = HISTORY, config.dropout
    if config.backbone == CAUSAL:
        gpt = GPT2Config(
            vocab_size=1, n_positions=positions, n_embd=config.hidden, n_layer=config.layers,
            n_head=config.heads, n_inner=config.feed_forward, resid_pdrop=dropout,
            bos_token_id=None, eos_token_id=None,
            embd_pdrop=0.0, attn_pdrop=dropout, use_cache=False,
        )  # fmt: skip
        return GPT2Model(gpt), config.hidden, True
    if config.backbone == BIDIRECTIONAL:
        bert = BertConfig(
            vocab_size=1, max_position_embeddings=positions, hidden_size=config.hidden,
            num_hidden_layers=config.layers, num_attention_heads=config.heads,
            intermediate_size=config.feed_forward, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout, pad_token_id=None,
        )  # fmt: skip
        return BertModel(bert, add_pooling_layer=False), config.hidden, False
    folder = Path(config.backbone)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no folder of a model, nor one of {CAUSAL}, {BIDIRECTIONAL}")
    shape: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModel.from_pretrained(folder, local_files_only=True)
    return model, int(shape.hidden_size), _is_causal(model, int(shape.hidden_size))


def _is_causal(model: Any, hidden: int) -> bool:
    """Return whether a model's first state is blind to its second input: folders do not say."""
    inputs = torch.ones((2, 2, hidden))
    inputs[1, 1] = torch.linspace(-1.0, 1.0, hidden)
    with torch.no_grad():
        first = model.eval()(inputs_embeds=inputs).last_hidden_state[:, 0]  # (2, hidden)
    return bool(torch.allclose(first[0], first[1]))


def _moved(values: Tensor, last: Tensor | int | bool) -> Tensor:
    """Return values (B, T) one place to the left, `last` at the end."""
    moved = torch.roll(values, -1, dims=1)
    moved[:, -1] = last
    return moved


def _fading(items: Tensor) -> Tensor:
    """Return the fading sum of items (B, T, F) up to each position."""
    steps = torch.arange(items.shape[1], device=items.device)
    behind = steps[:, None] - steps
    shares = torch.where(behind >= 0, FADING ** behind.clamp(min=0), 0.0)  # (T, T)
    return shares @ items
