"""What a language model says of lists of candidates: kept, judged, and handed to a student.

Reads   scores of short lists of items, and which item came next.
Emits   a verdict for each kind of request; labels of training examples, as a file.
Owns    the rule by which a language model may teach, the cache of what it said, and the file.

The sequence teacher proposes K items; the language model puts them in its own order, and that is
compared with the teacher's, request by request. What came next is not put into the list: a request
whose answer is not in it counts 0 for both, and need not be asked. So the gate measures just what
the labels would do, and costs what the hits cost.

The language model teaches where the interval of its gain lies above 0, and its own above what a
random order would have: where the teacher knows nothing, any order would be better than its.
"""

import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.candidate_metrics import Mean, Resampling

PROMPT_ITEMS: Final = 10  # of a history, the newest: what a small model can follow
_CUT: Final = 10  # of NDCG
_SCALES: Final = np.geomspace(0.01, 10, 31)  # of scores in nats to logits

Rows = NDArray[np.int64]
Floats = NDArray[np.floating]


class Cache:
    """Arrays on disk by the content that they were made of; one file, safe to be killed.

    Parameters
    ----------
    path
        Of the file; it is made where it is not there.
    maker
        Id of the model: what another one said is not found.

    Notes
    -----
    About 100 bytes an entry and 4 a number. `n_made` counts what was not found.
    """

    def __init__(self, path: Path, maker: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._kept = sqlite3.connect(path)
        self._kept.execute("create table if not exists said (key blob primary key, value blob)")
        self._maker = maker
        self.n_made = 0

    def __enter__(self) -> "Cache":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._kept.close()

    def get(self, content: Sequence[Any], make: Callable[[], Floats]) -> NDArray[np.float32]:
        """Return what was made of a content, of JSON's types, float32, shape (K,)."""
        text = json.dumps([self._maker, *content])
        key = blake2b(text.encode(), digest_size=16).digest()
        found = self._kept.execute("select value from said where key = ?", (key,)).fetchone()
        if found is None:
            self.n_made += 1
            value = np.asarray(make(), "<f4")
            with self._kept:
                self._kept.execute("insert into said values (?, ?)", (key, value.tobytes()))
            return value
        return np.frombuffer(found[0], "<f4")


class Lists(NamedTuple):
    """Lists of candidates at the moments of P requests."""

    user: Rows  # 0 to U - 1, shape (P,)
    place: Rows  # of what came next in its list, -1: it is not there, shape (P,)
    teacher: Floats  # the sequence teacher's scores, of the H lists with a place, shape (H, K)
    llm: Floats  # the language model's, of the same lists, shape (H, K)


@dataclass(frozen=True)
class Verdict:
    """Whether a language model may teach one kind of request, and by which numbers."""

    requests: int
    asked: int  # lists that hold the answer
    teacher: Mean  # NDCG@10 over all requests
    llm: Mean
    gain: Mean  # in pairs
    chance: float  # NDCG@10 of a random order
    scale: float  # by which scores become logits

    @property
    def is_used(self) -> bool:
        """Whether labels are made: better than the teacher, and than chance, beyond doubt."""
        return bool(self.gain.low > 0 and self.llm.low > self.chance)


def judge(lists: Lists, *, seed: int = 0) -> Verdict:
    """Compare a language model's order of lists with the sequence teacher's.

    Examples
    --------
    >>> user, place = np.arange(40), np.zeros(40, np.int64)
    >>> good, bad = np.tile([2.0, 1.0, 0.0], (40, 1)), np.tile([1.0, 1.0, 0.0], (40, 1))
    >>> found = judge(Lists(user, place, teacher=bad, llm=good))
    >>> found.gain.value, found.is_used
    (0.36..., True)
    >>> judge(Lists(user, place, teacher=good, llm=good)).is_used
    False
    """
    is_in = lists.place >= 0
    target = lists.place[is_in]
    k = lists.llm.shape[1]
    worth = 1 / np.log2(1.0 + np.arange(1, min(_CUT, k) + 1))
    resampling = Resampling(lists.user, seed)
    ours, theirs = np.zeros(len(is_in)), np.zeros(len(is_in))
    ours[is_in], theirs[is_in] = _ndcg(lists.llm, target), _ndcg(lists.teacher, target)
    return Verdict(
        requests=len(is_in),
        asked=len(target),
        teacher=resampling.mean(theirs),
        llm=resampling.mean(ours),
        gain=resampling.mean(ours - theirs),
        chance=float(is_in.mean() * worth.sum() / k) if len(is_in) else 0.0,
        scale=fitted_scale(lists.llm, target),
    )


def fitted_scale(scores: Floats, target: Rows) -> float:
    """Return the factor of scores (H, K) under whose softmax the answers are likeliest.

    >>> fitted_scale(np.array([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [4.0, 0.0]]), np.zeros(4, int))
    0.25...
    """
    if not len(target):
        return 1.0
    losses = []
    for scale in _SCALES:
        logits = scores * scale
        top = logits.max(axis=1, keepdims=True)
        spread = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
        losses.append(float((spread - logits[np.arange(len(target)), target]).mean()))
    return float(_SCALES[int(np.argmin(losses))])


def _ndcg(scores: Floats, target: Rows) -> NDArray[np.float64]:
    """Return NDCG@10 of one right item a list; ties count against it (`models.evaluate`)."""
    own = scores[np.arange(len(target)), target]
    rank = (scores >= own[:, None]).sum(axis=1)
    worth: NDArray[np.float64] = (rank <= _CUT) / np.log2(1.0 + rank)
    return worth


class Labels(NamedTuple):
    """Logits of candidates after histories: what a student may hear in place of its teacher's."""

    keys: Rows  # the newest PROMPT_ITEMS rows of each history, 0-padded, shape (L, PROMPT_ITEMS)
    candidates: Rows  # item rows, shape (L, K)
    logits: NDArray[np.float32]  # shape (L, K)


class LabelFileError(Exception):
    """The file is absent, damaged, or of other items; the message says what to do."""


def save_labels(path: Path, labels: Labels, item_ids: list[str], report: dict[str, Any]) -> None:
    """Write labels with the gate's report in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.new")
    with unfinished.open("wb") as file:
        np.savez(file, items=_items(item_ids), report=json.dumps(report), **labels._asdict())
    unfinished.replace(path)


def load_labels(path: Path, item_ids: list[str]) -> Labels:
    """Return labels of these items.

    Raises
    ------
    LabelFileError
        If there is no usable file, or it is of other items.
    """
    try:
        with np.load(path) as file:
            if file["items"].item() != _items(item_ids):
                raise ValueError("it is of other items")
            return Labels(file["keys"], file["candidates"], file["logits"])
    except (OSError, ValueError, KeyError) as error:
        raise LabelFileError(
            f"cannot read the labels {path}: {error}. Make them with `pushflow train llm-labels`."
        ) from error


def prompt_rows(rows: Rows) -> Rows:
    """Return the newest rows of histories (B, T), which a label is known by.

    >>> prompt_rows(np.array([[0] * 9 + [4, 5]])).tolist()
    [[0, 0, 0, 0, 0, 0, 0, 0, 4, 5]]
    """
    return np.ascontiguousarray(rows[:, -PROMPT_ITEMS:])


def _items(item_ids: list[str]) -> str:
    return blake2b(json.dumps(item_ids).encode(), digest_size=8).hexdigest()
