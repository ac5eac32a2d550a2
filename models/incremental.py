"""The student with a memory: a user's new event costs one position in place of fifty.

Reads   a trained student, and histories of users with their item vectors, as serving has them.
Emits   user vectors: those of `models.serving.StudentScorer` but for rounding (within 1e-3).
Owns    keys and values of hot users, which of them are still good, and who has to make room.

Nothing has to be told of events. Each request brings the whole history, every position with a
number that stands for all that makes its token: item, words, type, time. The memory compares:

- the same but for a few new positions: these are run through the network, one after another;
- the same but for another newest position (an action on the item the history ends with takes that
  entry's place): the newest is run again on what was kept before it;
- anything else, or a user who is not known: the whole history is run, and kept.

So what was lost, evicted or overtaken by a late event is rebuilt from the history, and nothing is
used that does not fit it. It needs a student whose layers together see less than a window
(`StudentConfig.is_cacheable`): in any other the oldest position, as it leaves the window, would
change what all the others hold.

What it returns depends on what was kept, in the last bits. Decisions are replayed and must come out
the same, so `decide` does not use it; `bench/incremental.py` says what it would gain.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.dataset import time_bucket
from models.export import build_onnx, weights_of
from models.features import FADING, HISTORY, scale_context
from models.incremental_graph import build_step, phase, ring_shape
from models.item_vectors import widened
from models.serving import MAX_ROWS, Columns, Table, open_session
from models.student import Student, StudentConfig

# Steps at most; the whole history costs about as much as five (`bench/incremental.py`).
MOST_STEPS: Final = 3
_LIKELY: Final = (1, 0, *range(2, MOST_STEPS + 1))  # numbers of new positions, in this order
_KINDS: Final = ("keys", "values")
_FADES: Final = np.float32(FADING)
_DROPPED: Final = np.float32(FADING**HISTORY)
_FADING: Final = (FADING ** np.arange(HISTORY - 1, -1, -1)).astype(np.float32)

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]


class Asked(NamedTuple):
    """Users' histories, oldest first, padded with 0 on the left; B users, T positions."""

    tokens: Rows  # shape (B, T), what makes a position's token: the same number, the same token
    items: Rows  # shape (B, T), rows of the item table
    types: Rows  # shape (B, T), codes of `models.features.EVENT_TYPES`
    time_s: Rows  # shape (B, T), seconds
    now_s: Rows  # shape (B,), seconds: the trigger's
    context: Floats  # shape (B, C), raw


class Parts(NamedTuple):
    """A student's networks, serialised."""

    config: StudentConfig
    whole: bytes  # as served, and keys and values beside it
    step: bytes  # of one position


def incremental_parts(student: Student) -> Parts:
    """Return the networks of a student.

    Raises
    ------
    ValueError
        If its layers together see further back than a window.
    """
    config = student.config
    if not config.is_cacheable:
        raise ValueError(
            f"layers that see {config.reaches} positions look back over {HISTORY} or more: "
            "what they hold changes as the window slides. Train with a shorter reach"
        )
    weights = weights_of(student)
    whole = build_onnx(weights, config, {}, shows=_kept_names(config))
    return Parts(config, whole, build_step(weights, config))


class IncrementalScorer:
    """Makes user vectors, and keeps what the next ones can be made from.

    Parameters
    ----------
    parts
        From `incremental_parts`.
    capacity
        Users kept at most, 32 or more; beyond, those asked about longest ago make room.

    Attributes
    ----------
    n_steps, n_whole
        Positions run one by one, and whole histories run, so far.

    Notes
    -----
    33 kB a user at the default sizes, as they come: 330 MB for 10,000. Not for threads.
    """

    def __init__(self, parts: Parts, capacity: int = 10_000) -> None:
        if capacity < MAX_ROWS:
            raise ValueError(f"room for {capacity} users, but {MAX_ROWS} are run at once")
        config = self._config = parts.config
        self._whole, self._step = (open_session("of memory", x) for x in (parts.whole, parts.step))
        self._places: OrderedDict[str, int] = OrderedDict()  # longest ago first
        self._free = list(range(capacity))[::-1]
        shapes = [(capacity, *ring_shape(config, layer)) for layer in range(config.layers)]
        self._kept = [np.zeros(shape, np.float32) for shape in shapes for _ in _KINDS]
        self._tokens = np.zeros((capacity, HISTORY), np.int64)
        self._count = np.zeros(capacity, np.int64)  # positions kept, the newest among them
        self._before = np.zeros((capacity, config.width), np.float32)  # pooled before the newest
        self._items = np.zeros((capacity, HISTORY + 1, config.width), np.float16)  # a ring, too
        self.n_steps = self.n_whole = 0

    def __len__(self) -> int:
        return len(self._places)

    def forget(self, user: str) -> None:
        """Forget a user, if known."""
        place = self._places.pop(user, None)
        if place is not None:
            for ring in self._kept:
                ring[place] = 0
            self._tokens[place] = self._count[place] = 0
            self._before[place] = self._items[place] = 0
            self._free.append(place)

    def user_vectors(self, users: Sequence[str], asked: Asked, item_table: Table) -> Floats:
        """Return what the users want, float32, shape (B, M), and keep what it was made from.

        `item_table`, shape (N + 1, M), is as of `StudentScorer.user_vectors`, float16: what a row
        holds belongs to the token's number.
        """
        if len(users) <= MAX_ROWS and len(set(users)) == len(users):
            return self._run(users, asked, item_table)
        vectors = np.empty((len(users), self._config.width), np.float32)
        for part in _parts(users):
            own = _of(asked, part)
            vectors[part] = self._run([users[b] for b in part.tolist()], own, item_table)
        return vectors

    def _run(self, users: Sequence[str], asked: Asked, table: Table) -> Floats:
        places = self._found(users)
        n_steps, is_again = self._compared(places, asked.tokens)
        is_known = asked.tokens[:, -1] != 0
        request = {
            "context": scale_context(asked.context),
            "age": np.where(is_known, time_bucket(asked.now_s - asked.time_s[:, -1]), 0),
        }
        vectors = np.empty((len(users), self._config.width), np.float32)
        whole = np.flatnonzero(n_steps == 0)
        if len(whole):
            feed = {name: column[whole] for name, column in request.items()}
            gaps = np.zeros((len(whole), HISTORY), np.int64)
            gaps[:, 1:] = _gaps(asked, whole[:, None], np.arange(1, HISTORY))
            feed |= {"types": asked.types[whole], "gaps": gaps}
            items = widened(table[asked.items[whole]])  # (b, T, W)
            vectors[whole] = self._run_whole(places[whole], asked.tokens[whole], items, feed)
        for done in range(n_steps.max(initial=0)):
            due = np.flatnonzero(n_steps > done)
            at = HISTORY - n_steps[due] + done
            feed = {"kind": asked.types[due, at], "gap": _gaps(asked, due, at)}
            is_all = len(due) == len(users)
            feed |= request if is_all else {name: own[due] for name, own in request.items()}
            items = widened(table[asked.items[due, at]])  # (b, W)
            again = is_again[due] & (done == 0)
            vectors[due] = self._run_step(places[due], again, items, feed)
        self._tokens[places] = asked.tokens
        return vectors

    def _found(self, users: Sequence[str]) -> Rows:
        """Return the users' places; of new ones empty."""
        places = np.empty(len(users), np.int64)
        for b, user in enumerate(users):
            place = self._places.pop(user, None)
            if place is None:
                place = self._free.pop() if self._free else self._places.popitem(last=False)[1]
                self._tokens[place] = 0
            self._places[user] = places[b] = place
        return places

    def _compared(self, places: Rows, tokens: Rows) -> tuple[Rows, NDArray[np.bool_]]:
        """Return how many positions to run, 0 for the whole history, and if the newest kept goes.

        A history without items is run whole.
        """
        kept = self._tokens[places]  # (B, T)
        last = HISTORY - 1
        n_steps = np.zeros(len(places), np.int64)
        is_again = np.zeros(len(places), np.bool_)
        for n_new in _LIKELY:
            if n_steps.all():
                break
            is_past = (tokens[:, : last - n_new] == kept[:, n_new:last]).all(axis=1)
            is_newest = tokens[:, last - n_new] == kept[:, last]
            again = ~is_newest | (n_new == 0)
            due = n_new + again
            fits = is_past & (due <= MOST_STEPS) & (n_steps == 0) & (kept[:, last] != 0)
            fits &= tokens[:, last - n_new] != 0
            n_steps[fits], is_again[fits] = due[fits], again[fits]
        n_steps[tokens[:, last] == 0] = 0
        return n_steps, is_again

    def _run_whole(self, places: Rows, tokens: Rows, items: Floats, feed: Columns) -> Floats:
        n_users, _, width = items.shape
        self.n_whole += n_users
        own = np.zeros((1 + n_users * HISTORY, width), np.float32)
        own[1:] = items.reshape(-1, width)
        rows = np.arange(1, len(own)).reshape(n_users, HISTORY)
        feed = {**feed, "table": own, "rows": np.where(tokens != 0, rows, 0)}
        users, *kept = self._whole.run(["user", *_kept_names(self._config)], feed)
        count = (tokens != 0).sum(axis=1)
        for ring, columns in zip(self._kept, kept, strict=True):  # (U, H, R, d), (b, H, K, d)
            reach = ring.shape[2]
            at = (count[:, None] - reach + np.arange(reach)) % reach  # (b, R)
            ring[places[:, None], :, at] = columns[:, :, -reach:].transpose(0, 2, 1, 3)
        self._count[places] = count
        self._before[places] = _FADING[1:] @ items[:, :-1]
        at = (count[:, None] - HISTORY + np.arange(HISTORY)) % (HISTORY + 1)
        self._items[places[:, None], at] = items
        self._items[places, count] = 0
        vectors: Floats = users
        return vectors

    def _run_step(
        self, places: Rows, is_again: NDArray[np.bool_], items: Floats, feed: Columns
    ) -> Floats:
        self.n_steps += len(places)
        count = self._count[places] - is_again  # positions before this one
        # The one before this, and those that leave the sum with the one before this and with this.
        at = (count[:, None] + (-1, -1 - HISTORY, -HISTORY)) % (HISTORY + 1)
        newest, first, second = self._items[places[:, None], at].astype(np.float32).swapaxes(0, 1)
        kept = self._before[places]
        before = np.where(is_again[:, None], kept, _FADES * kept + newest - _DROPPED * first)
        pooled = _FADES * before + items - _DROPPED * second
        feed = {**feed, "item": items, "pooled": pooled}
        for layer, reach in enumerate(self._config.reaches):
            feed[f"phase_{layer}"] = phase(count, reach)
            for place, kind in enumerate(_KINDS):
                ring = self._kept[len(_KINDS) * layer + place]
                feed[f"{kind}_{layer}"] = ring.take(places, axis=0)
        users, *new = self._step.run(None, feed)
        for ring, column in zip(self._kept, new, strict=True):
            ring[places, :, count % ring.shape[2]] = column[:, :, 0]
        self._before[places] = before
        self._items[places, count % (HISTORY + 1)] = items
        self._count[places] = count + 1
        vectors: Floats = users
        return vectors


def _parts(users: Sequence[str]) -> list[Rows]:
    """Return places of at most `MAX_ROWS` users each, nobody twice in one, in order."""
    parts: list[list[int]] = []
    at: dict[str, int] = {}  # part of a user's newest place
    for b, user in enumerate(users):
        part = at.get(user, -1) + 1
        while part < len(parts) and len(parts[part]) == MAX_ROWS:
            part += 1
        if part == len(parts):
            parts.append([])
        parts[part].append(b)
        at[user] = part
    return [np.array(part, np.int64) for part in parts]


def _gaps(asked: Asked, users: Rows, at: Rows) -> Rows:
    """Return the buckets of the time since the item before some positions of users."""
    seconds = asked.time_s[users, at] - asked.time_s[users, at - 1]
    return np.where(asked.tokens[users, at - 1] != 0, time_bucket(seconds), 0)


def _of(asked: Asked, part: Rows) -> Asked:
    return Asked(
        asked.tokens[part],
        asked.items[part],
        asked.types[part],
        asked.time_s[part],
        asked.now_s[part],
        asked.context[part],
    )


def _kept_names(config: StudentConfig) -> list[str]:
    return [f"blocks.{layer}.{kind}" for layer in range(config.layers) for kind in _KINDS]
