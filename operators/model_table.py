"""The students in use: the served one, and the one on trial beside it.

Reads   model cards, the files that they name, and the catalogue.
Emits   for each user which student ranks, and which scores for the log alone.
Owns    how a student comes into use without a decision waiting for it, and the refusal of one that
        is corrupt, made for other features, or slow: whatever was in use goes on.

A file is read, checked and tried in a thread beside. Its vectors of items are made in slices
between batches, in the thread that decides, which so shares no table. Then, between two batches,
it takes its place at once. What stands on trial and is promoted has all that already.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from models.features import spec_hash
from models.item_rows import ItemRows
from models.rollout import PairedTimes, is_in_share, time_users
from models.serving import ModelFileError, ModelMismatchError, StudentScorer, checksum
from models.student_items import StudentItems
from operators import metrics
from operators.messages import ModelCard, ModelRef, TrialStage

SERVED = "student"  # name of the card that is served
_SLICE: Final = 512  # rows made between two batches: about 1 ms with their places in the index
_TRIED: Final = (1, 32)  # users in a call that is timed before use
_TIMES: Final = 15  # calls of each, and their median: what else the machine does is no reason

_Key = tuple[str, str]  # path and checksum


class Student(NamedTuple):
    """A student in use, with its vectors of items."""

    scorer: StudentScorer
    items: StudentItems

    @property
    def version(self) -> str:
        """The model's version."""
        return self.scorer.version


class SlowModelError(Exception):
    """A model takes too long beside the one that is served."""


def open_student(
    ref: ModelRef, served: StudentScorer | None = None, max_slowdown: float = 3.0
) -> StudentScorer:
    """Return the student of a file, checked.

    Parameters
    ----------
    ref
        An empty `checksum` or `feature_spec` is not checked.
    served
        What it must not be slower than `max_slowdown` times, for one user and for many.

    Raises
    ------
    models.serving.ModelFileError
        If the file is absent, damaged or another than the card's.
    models.serving.ModelMismatchError
        If it was made for other features.
    SlowModelError
        If it is too slow.
    """
    if ref.feature_spec not in ("", spec_hash()):
        raise ModelMismatchError(
            f"{ref.path}: the card says feature specification {ref.feature_spec}, this version of "
            f"pushflow has {spec_hash()}. Train again with `pushflow train`."
        )
    path = Path(ref.path)
    try:
        found = checksum(path) if ref.checksum else ""
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}. Copy it there, publish again") from error
    if found != ref.checksum:
        raise ModelFileError(
            f"{path}: checksum {found}, the card says {ref.checksum}. Copy it again, publish again"
        )
    scorer = StudentScorer(path)
    if served is not None:
        _check_speed(path, scorer, served, max_slowdown)
    return scorer


def _check_speed(
    path: Path, scorer: StudentScorer, served: StudentScorer, max_slowdown: float
) -> None:
    for n_users in _TRIED:
        # In turns, so that a busy moment falls on both.
        pairs = [(time_users(served, n_users), time_users(scorer, n_users)) for _ in range(_TIMES)]
        before, now = np.median(np.array(pairs), axis=0).tolist()
        if now > max_slowdown * before:
            raise SlowModelError(
                f"{path}: {n_users} users take {now * 1_000:.2f} ms, with the served model "
                f"{before * 1_000:.2f} ms. Make it smaller, or raise "
                f"PUSHFLOW_MODELS__MAX_SLOWDOWN above {now / before:.1f}"
            )


class _Loading:
    """One file on its way in, in a thread of its own."""

    def __init__(self, ref: ModelRef, open_: Callable[[], StudentScorer]) -> None:
        self.ref = ref
        self.scorer: StudentScorer | None = None
        self.error: Exception | None = None
        self._open = open_
        self._thread = threading.Thread(target=self.run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def run(self) -> None:
        try:
            self.scorer = self._open()
        # A network that does not fit its own arrays fails when it is first run, and ONNX Runtime's
        # errors share no base class. Whatever a file does here, the served model goes on.
        except Exception as error:
            self.error = error

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()


class ModelTable:
    """Holds the students that the newest card names.

    Parameters
    ----------
    items
        The catalogue.
    max_slowdown
        A model that takes more than so many times as long as the served one is refused, above 1.

    Attributes
    ----------
    served
        The student in use, None before there is one.
    trial
        The student on trial, None where there is none.
    stage, share
        Of the trial, as the card has them.
    refusals
        Why a model is not taken, by the card's version; a card that comes again tries again.
    times
        Seconds of the served student and of the one on trial, over the same users.

    Notes
    -----
    Three students at most are held at a time: served, on trial, and one on its way in. What a
    change costs decisions: `python -m bench.swap`. Where the card's model is refused and nothing
    is served yet, the one before it is.

    Examples
    --------
    >>> table = ModelTable(ItemRows())
    >>> table.apply("student", ModelCard(name="student", version="1", path="/nowhere.pfm",
    ...                                  checksum="ab", feature_spec=""))
    >>> table.settle()
    >>> table.version, table.refusals["1"].split(":")[0]
    ('none', '/nowhere.pfm')
    """

    def __init__(self, items: ItemRows, *, max_slowdown: float = 3.0) -> None:
        self._items = items
        self._max_slowdown = max_slowdown
        self._card: ModelCard | None = None
        self._ready: dict[_Key, Student] = {}
        self._refused: set[_Key] = set()
        self._loading: _Loading | None = None
        self._making: tuple[_Key, Student] | None = None
        self.served: Student | None = None
        self.trial: Student | None = None
        self.stage: TrialStage = "shadow"
        self.share = 0.0
        self.refusals: dict[str, str] = {}
        self.times = PairedTimes()

    @property
    def version(self) -> str:
        """Version of the student in use; "none" where there is none."""
        return "none" if self.served is None else self.served.version

    def apply(self, name: str, card: ModelCard | None) -> None:
        """Take a card; a tombstone or another name changes nothing.

        It takes effect with `refresh`, or at once with `settle`.
        """
        if card is None or name != SERVED:
            return
        self._card = card
        self._refused.clear()
        self.refusals = {}

    def load(self, path: Path) -> None:
        """Serve a file, now."""
        ref = ModelCard(name=SERVED, version="", path=str(path), checksum="", feature_spec="")
        self.apply(SERVED, ref)
        self.settle()

    def settle(self) -> None:
        """Bring in all that the card names, however long it takes."""
        while (ref := self._next()) is not None:
            loading = self._load(ref)
            loading.run()
            self._take(loading)
            if self._making is not None:
                key, student = self._making
                student.items.follow()
                self._ready[key], self._making = student, None
            self._assign()

    def refresh(self) -> None:
        """Go one step on with what the card names; call it between batches."""
        if self._loading is not None and self._loading.is_over:
            loading, self._loading = self._loading, None
            self._take(loading)
        if self._making is not None:
            key, student = self._making
            if student.items.follow(_SLICE):
                self._ready[key], self._making = student, None
        elif self._loading is None and (ref := self._next()) is not None:
            self._loading = self._load(ref)
            self._loading.start()
        self._assign()

    def follow(self) -> None:
        """Follow the catalogue, which has been refreshed."""
        for student in self._ready.values():
            student.items.follow()

    def places(self, user_ids: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return the places of users whose triggers the student on trial decides, and scores."""
        if self.trial is None:
            return [], []
        version, share = self.trial.version, self.share
        at = [n for n, user_id in enumerate(user_ids) if is_in_share(user_id, version, share)]
        return (at, []) if self.stage == "canary" else ([], at)

    def timed(self, served_s: float, trial_s: float) -> None:
        """Take what both students took over the same users; one too slow is on trial no more."""
        self.times.add(served_s, trial_s)
        if self.trial is None or not self.times.is_slow(self._max_slowdown):
            return
        before, now = self.times.p99()
        for ref in self._wanted():
            if self._ready.get(_key(ref)) is self.trial:
                self._refuse(
                    ref,
                    SlowModelError(
                        f"{ref.path}: 99th percentile of a call {now * 1_000:.2f} ms, with the "
                        f"served model {before * 1_000:.2f} ms. Make it smaller, or raise "
                        f"PUSHFLOW_MODELS__MAX_SLOWDOWN above {now / before:.1f}"
                    ),
                )
        self._assign()

    def _wanted(self) -> Iterator[ModelRef]:
        card = self._card
        if card is None:
            return
        yield card
        if card.trial is not None:
            yield card.trial
        if card.previous is not None and self.served is None and _key(card) in self._refused:
            yield card.previous

    def _next(self) -> ModelRef | None:
        """Return the next model to bring in."""
        for ref in self._wanted():
            if _key(ref) not in self._ready and _key(ref) not in self._refused:
                return ref
        return None

    def _load(self, ref: ModelRef) -> _Loading:
        served = None if self.served is None else self.served.scorer
        if isinstance(ref, ModelCard) and ref.is_forced:
            served = None
        return _Loading(ref, lambda: open_student(ref, served, self._max_slowdown))

    def _take(self, loading: _Loading) -> None:
        if loading.scorer is not None:
            student = Student(loading.scorer, StudentItems(self._items, loading.scorer))
            self._making = _key(loading.ref), student
        elif loading.error is not None:
            self._refuse(loading.ref, loading.error)

    def _refuse(self, ref: ModelRef, error: Exception) -> None:
        kinds = {ModelMismatchError: "mismatched", SlowModelError: "slow"}
        metrics.MODELS_REFUSED.labels(kinds.get(type(error), "corrupt")).inc()
        metrics.FALLBACKS.labels("model_refused").inc()
        self.refusals[ref.version] = str(error)
        self._refused.add(_key(ref))
        self._ready.pop(_key(ref), None)

    def _assign(self) -> None:
        """Give the students that are ready their places; drop those that have none."""
        card = self._card
        if card is None:
            return
        served = self._ready.get(_key(card))
        if served is None and self.served is None and card.previous is not None:
            served = self._ready.get(_key(card.previous))
        self.served = served or self.served
        trial = None if card.trial is None else self._ready.get(_key(card.trial))
        if trial is not self.trial:
            self.times = PairedTimes()
        self.trial = trial if trial is not self.served else None
        if card.trial is not None:
            self.stage, self.share = card.trial.stage, card.trial.share
        kept = (self.served, self.trial)
        self._ready = {key: own for key, own in self._ready.items() if own in kept}


def _key(ref: ModelRef) -> _Key:
    return ref.path, ref.checksum
