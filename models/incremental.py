"""The student with a memory: a user's new event costs one position in place of fifty.

Reads   a trained student, and histories of users with their item vectors, as serving has them.
Emits   user vectors: those of `models.serving.StudentScorer` but for rounding (within 1e-3).
Owns    keys and values of hot users, which of them are still good, and who has to make room.

Nothing has to be told of events. Each request brings the whole history, every position with a
number that stands for all that makes its token: item, words, type, time. The memory compares:

- the same but for new positions: these are run through the network, one after another;
- the same but for another newest position (an action on the item the history ends with takes that
  entry's place): the newest is run again on what was kept before it;
- anything else, or a user who is not known: the whole history is run, and kept.

So what was lost, evicted or overtaken by a late event is rebuilt from the history, and nothing is
used that does not fit it. It needs a student whose layers together see less than a window
(`StudentConfig.is_cacheable`): in any other the oldest position, as it leaves the window, would
change what all the others hold.

A vector's bits depend on the history only, not on what was kept or who shares the call. `decide`
does not use it all the same: where few of a user's events trigger, to run the others costs more
than the short window does (`bench/incremental.py`).
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.export import weights_of
from models.features import HISTORY, scale_context
from models.incremental_kernel import advance
from models.incremental_weights import RING, layout, packed
from models.serving import MAX_ROWS
from models.student import Student, StudentConfig

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
    """What a scorer needs of a student."""

    config: StudentConfig
    weights: Floats  # as `models.incremental_kernel` reads them


def incremental_parts(student: Student) -> Parts:
    """Return what a scorer needs of a student.

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
    return Parts(config, packed(weights_of(student), config))


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
    26 kB a user at the default sizes, as they come: 260 MB for 10,000. Not for threads. The first
    call compiles for some seconds; what it compiled is kept on disk, for the next process.
    """

    def __init__(self, parts: Parts, capacity: int = 10_000) -> None:
        if capacity < MAX_ROWS:
            raise ValueError(f"room for {capacity} users, but {MAX_ROWS} are run at once")
        config = self._config = parts.config
        self._weights, self._layout = parts.weights, layout(config)
        self._places: OrderedDict[str, int] = OrderedDict()  # longest ago first
        self._free = list(range(capacity))[::-1]
        self._kept = np.zeros((capacity, self._layout[-1, RING]), np.float32)
        self._tokens = np.zeros((capacity, HISTORY), np.int64)
        self._counts = np.zeros(capacity, np.int64)  # positions run, the newest among them
        self.n_steps = self.n_whole = 0

    def __len__(self) -> int:
        return len(self._places)

    def forget(self, user: str) -> None:
        """Forget a user, if known."""
        place = self._places.pop(user, None)
        if place is not None:
            self._kept[place] = self._tokens[place] = self._counts[place] = 0
            self._free.append(place)

    def user_vectors(
        self, users: Sequence[str], asked: Asked, item_table: NDArray[np.float16]
    ) -> Floats:
        """Return what the users want, float32, shape (B, M), and keep what it was made from.

        `item_table`, shape (N + 1, M), is as of `models.item_vectors.ItemVectors`: what a row holds
        belongs to the token's number.

        Raises
        ------
        ValueError
            If the table is not float16 or not as wide as the student, or a column has another
            shape.
        IndexError
            If an item is not in the table, or a type has no code.
        """
        if item_table.dtype != np.float16:
            raise ValueError(f"an item table of {item_table.dtype}, not float16")
        if item_table.shape[1] != self._config.width:
            raise ValueError(f"item vectors of {item_table.shape[1]}, not {self._config.width}")
        table = np.ascontiguousarray(item_table).view(np.int16)
        if len(users) <= MAX_ROWS and len(set(users)) == len(users):
            return self._run(users, asked, table)
        vectors = np.empty((len(users), self._config.width), np.float32)
        for part in _parts(users):
            vectors[part] = self._run([users[b] for b in part.tolist()], _of(asked, part), table)
        return vectors

    def _run(self, users: Sequence[str], asked: Asked, table: NDArray[np.int16]) -> Floats:
        n_users = len(users)
        *histories, now_s = (np.ascontiguousarray(column, np.int64) for column in asked[:5])
        context = np.ascontiguousarray(scale_context(asked.context))
        is_whole = all(column.shape == (n_users, HISTORY) for column in histories)
        if not is_whole or len(now_s) != n_users or len(context) != n_users:
            raise ValueError(f"columns that are not of {n_users} users and {HISTORY} positions")
        vectors = np.empty((n_users, self._config.width), np.float32)
        n_steps, n_whole = advance(
            self._weights,
            self._layout,
            self._config.request,
            self._kept,
            self._tokens,
            self._counts,
            self._found(users),
            *histories,
            now_s,
            context,
            table,
            vectors,
        )
        self.n_steps += n_steps
        self.n_whole += n_whole
        return vectors

    def _found(self, users: Sequence[str]) -> Rows:
        """Return the users' places.

        What stands in the place of a new one is somebody else's, and good for nothing but the same
        history.
        """
        places = np.empty(len(users), np.int64)
        for b, user in enumerate(users):
            place = self._places.pop(user, None)
            if place is None:
                place = self._free.pop() if self._free else self._places.popitem(last=False)[1]
            self._places[user] = places[b] = place
        return places


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


def _of(asked: Asked, part: Rows) -> Asked:
    return Asked(
        asked.tokens[part],
        asked.items[part],
        asked.types[part],
        asked.time_s[part],
        asked.now_s[part],
        asked.context[part],
    )
