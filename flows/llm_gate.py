"""Whether a language model may teach: asked on the validation, and, where it may, for labels.

Reads   histories with their cuts, texts, the sequence teacher, and a language model.
Emits   the gate's report, and labels of training examples for the kinds of request that it won.
Owns    the kinds of request, the lists that are asked about, and what the asking may cost.

Three kinds of request are judged apart. *Cold*: what came next was not met in training, and the
list is of such items. *Short* and *long*: it was met, so is the list, and the user had few or many
items before. A list holds the K items that the sequence teacher puts first, without what the user
had where items are had once.

The language model is asked in two ways: how much likelier a title is after the history, and how
near its vector is to those of the history. Both are judged; the better of those that win makes the
labels. What it said is kept on disk by content, so that a second run costs nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.dataset import is_had, popularity, requests_at, targets_between
from models.llm_labels import PROMPT_ITEMS, Cache, Labels, Lists, Verdict, judge, prompt_rows
from models.next_item import pasts
from models.splits import Split
from models.teacher import Teacher
from models.teacher_training import teacher_scores
from models.text import encode_texts

SLICES: Final = ("cold", "short", "long")
WAYS: Final = ("likelihood", "vectors")
_BLOCK: Final = 256  # requests that the teacher is asked at a time
_SPOKEN: Final = {
    "cold": "items never met in training",
    "short": "short histories",
    "long": "long histories",
}

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]
Tell = Callable[[str], None]


class Speaker(Protocol):
    """A language model, as `models.llm_teacher.LanguageModel` is one."""

    def log_likelihoods(self, history: list[str], titles: list[str]) -> Floats:
        """Return how likely titles are after others, nats, shape (K,)."""
        ...

    def encode(self, texts: list[str], *, is_query: bool = False) -> Floats:
        """Return the texts' vectors, shape (N, dim)."""
        ...


@dataclass(frozen=True)
class Plan:
    """What is asked, and how much of it."""

    candidates: int = 20  # K, of a list
    requests: int = 2_000  # of each slice of the validation, at most
    asked: int = 100  # lists of each slice that the language model is asked about, at most
    labels: int = 200  # of each slice that it may teach
    short: int = 5  # items of a history, at most
    repeats: bool = False  # whether what a user had is a candidate
    seed: int = 0  # of the intervals


class Gated(NamedTuple):
    """What came of it."""

    labels: Labels
    report: dict[str, Any]
    said: list[str]  # the same in words


class _Proposed(NamedTuple):
    """The teacher's lists for some events."""

    history: Rows  # newest items, 0-padded, shape (P, PROMPT_ITEMS)
    rows: Rows  # candidates, best first, shape (P, K)
    scores: Floats  # the teacher's, shape (P, K)

    def of(self, kept: NDArray[Any]) -> "_Proposed":
        """Return the lists of some of the events."""
        return _Proposed(self.history[kept], self.rows[kept], self.scores[kept])


def gate(
    split: Split,
    texts: list[str],
    teacher: Teacher,
    llm: Speaker,
    *,
    cache: Cache,
    plan: Plan,
    tell: Tell = lambda _: None,
) -> Gated:
    """Judge a language model beside the sequence teacher; make labels where it is better.

    Raises
    ------
    ValueError
        If no item has a text.

    Notes
    -----
    Cost: at most 3 x (`asked` + `labels`) lists of `candidates` titles in two ways; the report
    says what a title took.
    """
    if not any(texts):
        raise ValueError("no item has a text: a language model has nothing to read")
    return _Gate(split, texts, teacher, llm, cache=cache, plan=plan, tell=tell).run()


class _Gate:
    """One judgement."""

    def __init__(
        self,
        split: Split,
        texts: list[str],
        teacher: Teacher,
        llm: Speaker,
        *,
        cache: Cache,
        plan: Plan,
        tell: Tell,
    ) -> None:
        self.histories, self.cuts = split.histories, split.cuts
        self.titles, self.llm, self.cache, self.plan, self.tell = texts, llm, cache, plan, tell
        self.score = teacher_scores(teacher, encode_texts(texts))
        self.is_met = popularity(self.histories, len(texts), until_s=self.cuts[0])[1:] > 0
        self.has_text = np.array([bool(text) for text in texts])
        users = np.searchsorted(
            self.histories.offsets, np.arange(len(self.histories.rows)), side="right"
        )
        self.user = users - 1
        self.n_before = np.arange(len(self.user)) - self.histories.offsets[self.user]
        self.centre = np.zeros(1, np.float32)
        self.n_titles, self.seconds = 0, 0.0

    def run(self) -> Gated:
        validation = self._events(*self.cuts)
        found = {name: self._judged(name, validation) for name in SLICES}
        made = []
        for name, verdicts in found.items():
            won = [way for way in WAYS if way in verdicts and verdicts[way].is_used]
            if won:
                way = max(won, key=lambda own: verdicts[own].gain.value)
                made.append(self._labelled(name, way, verdicts[way].scale))
        labels = _joined(made, self.plan.candidates)
        report = {
            "slices": {
                name: {way: _numbers(own) for way, own in verdicts.items()}
                for name, verdicts in found.items()
            },
            "labels": len(labels.keys),
            "candidates": self.plan.candidates,
            "titles_asked": self.n_titles,
            "seconds_a_title": round(self.seconds / self.n_titles, 4) if self.n_titles else None,
        }
        return Gated(labels, report, [_said(name, own) for name, own in found.items()])

    def _events(self, since_s: int, until_s: int) -> Rows:
        events = targets_between(self.histories, since_s, until_s, limit=len(self.histories.rows))
        if not self.plan.repeats:
            events = events[~is_had(self.histories)[events]]
        return events[self.n_before[events] > 0]

    def _judged(self, name: str, validation: Rows) -> dict[str, Verdict]:
        """Return each way's verdict on a slice; none where there is nothing to ask."""
        is_met, n = self.is_met[self.histories.rows[validation] - 1], self.n_before[validation]
        is_own = {
            "cold": ~is_met,
            "short": is_met & (n <= self.plan.short),
            "long": is_met & (n > self.plan.short),
        }[name]
        events = _thinned(validation[is_own], self.plan.requests)
        if not len(events):
            return {}
        proposed = self._proposed(name, events)
        is_next = proposed.rows == self.histories.rows[events][:, None]  # (P, K)
        n_in = int(is_next.any(axis=1).sum())
        if n_in > self.plan.asked:  # fewer requests, hits or not: what is asked stays a sample
            kept = _thinned(np.arange(len(events)), len(events) * self.plan.asked // n_in)
            events, is_next = events[kept], is_next[kept]
            proposed = proposed.of(kept)
        is_in = is_next.any(axis=1)
        place = np.where(is_in, is_next.argmax(axis=1), -1)
        _, user = np.unique(self.user[events], return_inverse=True)
        hits = proposed.of(is_in)
        return {
            way: judge(
                Lists(user, place, hits.scores, self._asked(way, hits, f"{name}, {way}")),
                seed=self.plan.seed,
            )
            for way in WAYS
        }

    def _labelled(self, name: str, way: str, scale: float) -> Labels:
        """Return labels of training examples of a slice: of any, for cold items."""
        events = self._events(0, self.cuts[0])
        n = self.n_before[events]
        if name != "cold":
            events = events[(n <= self.plan.short) == (name == "short")]
        if not len(events):  # the validation asks about what training has none of
            return _nothing(self.plan.candidates)
        proposed = self._proposed(name, _thinned(events, self.plan.labels))
        logits = scale * self._asked(way, proposed, f"labels of {name}")
        return Labels(proposed.history, proposed.rows, logits.astype(np.float32))

    def _proposed(self, name: str, events: Rows) -> _Proposed:
        """Return the teacher's lists: of items met in training, or of the others."""
        is_candidate = self.has_text & (~self.is_met if name == "cold" else self.is_met)
        k = min(self.plan.candidates, int(is_candidate.sum()))
        found = []
        for start in range(0, len(events), _BLOCK):
            own = events[start : start + _BLOCK]
            asked = requests_at(self.histories, own)
            scores = np.where(is_candidate, self.score(asked), -np.inf).astype(np.float32)
            if not self.plan.repeats:
                owners, had, _ = pasts(self.histories, own)
                scores[owners, had - 1] = -np.inf
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # (B, K)
            told = np.take_along_axis(scores, best, axis=1)
            found.append(_Proposed(prompt_rows(asked.rows), best + 1, told))
        return _Proposed(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def _asked(self, way: str, lists: _Proposed, what: str) -> Floats:
        """Return the language model's scores of lists, shape (H, K)."""
        scores = np.zeros(lists.rows.shape, np.float32)
        if way == "vectors" and len(scores):
            self._centre_on(lists)
        for place, (history, rows) in enumerate(zip(lists.history, lists.rows, strict=True)):
            self.tell(f"{what}: {place} of {len(scores)} lists")
            past = history[history > 0].tolist()
            asked = self._likelihood if way == "likelihood" else self._nearness
            scores[place] = asked(past, rows.tolist())
        return scores

    def _likelihood(self, past: list[int], rows: list[int]) -> Floats:
        before, titles = self._named(past), self._named(rows)
        after = self._kept(
            ["after", before, titles], lambda: self.llm.log_likelihoods(before, titles)
        )
        return after - np.array([self._prior(title) for title in titles], np.float32)

    def _prior(self, title: str) -> float:
        kept = self._kept(["prior", title], lambda: self.llm.log_likelihoods([], [title]))
        return float(kept[0])

    def _nearness(self, past: list[int], rows: list[int]) -> Floats:
        user = np.mean(self._units(past), axis=0)
        scores: Floats = self._units(rows) @ user
        return scores

    def _centre_on(self, lists: _Proposed) -> None:
        """Set the mean that is taken off vectors, once: all states of a model lean one way."""
        if self.centre.any():
            return
        rows = np.unique(np.concatenate((lists.history.ravel(), lists.rows.ravel())))
        self.centre = np.mean([self._vector(row) for row in rows[rows > 0].tolist()], axis=0)

    def _units(self, rows: list[int]) -> Floats:
        vectors = np.stack([self._vector(row) for row in rows]) - self.centre
        units: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        return units

    def _vector(self, row: int) -> Floats:
        title = self.titles[row - 1]
        return self._kept(["vector", title], lambda: self.llm.encode([title])[0], 1)

    def _kept(
        self, content: list[Any], make: Callable[[], Floats], n_titles: int | None = None
    ) -> Floats:
        def timed() -> Floats:
            begun = perf_counter()
            value = make()
            self.seconds += perf_counter() - begun
            self.n_titles += len(value) if n_titles is None else n_titles
            return value

        return self.cache.get(content, timed)

    def _named(self, rows: list[int]) -> list[str]:
        return [self.titles[row - 1] for row in rows]


def _thinned(values: Rows, limit: int) -> Rows:
    """Return at most `limit` values, evenly strided."""
    if len(values) <= limit:
        return values
    return values[np.linspace(0, len(values) - 1, limit).astype(np.int64)]


def _joined(made: list[Labels], k: int) -> Labels:
    """Return all labels, with K candidates each: short lists are repeated to their end."""
    parts = [_nothing(k), *(_filled(own, k) for own in made)]
    return Labels(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _nothing(k: int) -> Labels:
    keys, rows = np.zeros((0, PROMPT_ITEMS), np.int64), np.zeros((0, k), np.int64)
    return Labels(keys, rows, rows.astype(np.float32))


def _filled(labels: Labels, k: int) -> Labels:
    own = np.arange(k) % labels.candidates.shape[1]
    return Labels(labels.keys, labels.candidates[:, own], labels.logits[:, own])


def _numbers(verdict: Verdict) -> dict[str, Any]:
    return {"used": verdict.is_used, **dict(_rounded(asdict(verdict)))}


def _rounded(numbers: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in numbers.items():
        yield (
            name,
            {key: round(own, 4) for key, own in value._asdict().items()}
            if hasattr(value, "_asdict")
            else round(value, 4),
        )


def _said(name: str, verdicts: dict[str, Verdict]) -> str:
    """Return in words whether a slice's labels are used, and why."""
    what = _SPOKEN[name]
    if not verdicts:
        return f"{what}: not used: the validation asks about none"
    way = max(verdicts, key=lambda own: (verdicts[own].is_used, verdicts[own].gain.value))
    own = verdicts[way]
    return (
        f"{what}: {'used' if own.is_used else 'not used'}: by {way}, the better way, NDCG@10 is "
        f"{own.llm.value:.4f} beside the sequence teacher's {own.teacher.value:.4f}, a difference "
        f"of {own.gain.value:+.4f} ({own.gain.low:+.4f} to {own.gain.high:+.4f}); a random order "
        f"has {own.chance:.4f}"
    )
