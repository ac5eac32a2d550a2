"""Ranking: from triggers to action sets, whole batches at a time, with one call to the student.

Reads   triggers of one activation, of all shards.
Emits   one `Ranked` a trigger, its best arms first.
Owns    the model's input arrays, and the cut from candidates to the action set, which keeps the
        best of the student's order and the candidates' own, and a share of what is explored.

The student reads a user once: the vector that it makes of them searches the catalogue, and its
products with the candidates' vectors are their scores.

A model on trial (`operators.model_table`) decides for its share of users in place of the served
one, or scores their action sets for the log alone.

Triggers that no campaign takes, and users who may not be sent to whatever the policy says (no
consent, opted out, holdout), are passed on without candidates: most of the work is here. Scores
do not depend on who shares the batch (`models.serving`), and ties keep the candidates' order, which
ends in item_id, so that a replay at another batch size ranks the same.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter

from models.action_set import best_places
from models.arm_features import INPUT, arm_columns
from models.arm_inputs import arm_inputs
from models.arms import N_ARM, N_NEURAL, SOURCE_CODE, SOURCES
from models.explore_source import explored_places
from models.features import HISTORY
from models.item_vectors import widened
from models.neural_linear import neural_columns
from models.rollout import rank_correlation
from models.serving import StudentScorer, Table
from models.sources import Query
from models.student_inputs import oldest_first
from operators import metrics
from operators.campaigns import HOLDOUT, CampaignTable
from operators.candidates import CandidateGenerator, Found, candidates_of
from operators.catalogue import Catalogue
from operators.hops import Forget, Ranked, Tried, Trigger
from operators.messages import Campaign
from operators.model_table import ModelTable, Student

Floats = NDArray[np.float64]


class _Set(NamedTuple):
    """A trigger's action set, best first; each array has shape (K,)."""

    rows: NDArray[np.int64]
    sources: NDArray[np.int64]
    fused: NDArray[np.float64]
    scores: NDArray[np.float32]


class _Answer(NamedTuple):
    """What was found for a trigger, its action set, and the models that had to do with it."""

    found: Found
    best: _Set
    version: str
    tried: Tried | None = None
    neural: NDArray[np.float32] | None = None  # (K, N_NEURAL), of a student and where asked for


_EXPLORED: Final = SOURCE_CODE["explore"]
_CANDIDATES: Final = [metrics.CANDIDATES.labels(name) for name in SOURCES]
_ARMS: Final = [metrics.ARMS.labels(name) for name in SOURCES]
_NO_SCORES: Final = np.zeros(0, np.float32)
_NO_ARMS: Final = np.zeros((0, N_ARM), np.float32)


class Ranker:
    """Finds and scores what could be pushed.

    Parameters
    ----------
    campaigns, catalogue, models
        Global tables, kept current by `refresh`.
    generator
        Candidate sources over the catalogue.
    action_set
        Arms handed to the policy, >= 1.
    explore_share
        Share of them that is kept for what the generator explores, 0 to 1.
    is_neural
        Whether arms have the columns of `models.neural_linear` too; zeros without a model.
    refresh
        Called before each batch, so that a batch sees one version of every table.
    clock
        Monotonic seconds, for the metric alone.

    Notes
    -----
    Without a model the candidates' fused scores take its place, and
    `pushflow_fallbacks{component="student"}` counts the triggers.
    """

    def __init__(
        self,
        *,
        campaigns: CampaignTable,
        catalogue: Catalogue,
        models: ModelTable,
        generator: CandidateGenerator,
        action_set: int,
        explore_share: float = 0.0,
        is_neural: bool = False,
        refresh: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._campaigns = campaigns
        self._catalogue = catalogue
        self._models = models
        self._generator = generator
        self._action_set = action_set
        self._explore_share = explore_share
        self._is_neural = is_neural
        self._refresh = refresh
        self._clock = clock

    def on_batch(self, triggers: list[Trigger | Forget]) -> list[Ranked | Forget]:
        """Rank the triggers; pass on who is to be forgotten, in order."""
        self._refresh()
        if not triggers:
            return []
        started = self._clock()
        out: list[Ranked | Forget] = []
        live: dict[int, Campaign] = {}  # by place in `out`
        for trigger in triggers:
            if isinstance(trigger, Forget):
                out.append(trigger)
                continue
            campaign = self._campaigns.match(trigger)
            if campaign is not None and self._may_be_sent_to(trigger, campaign):
                live[len(out)] = campaign
            campaign_id = campaign.campaign_id if campaign is not None else ""
            out.append(Ranked(trigger, campaign_id, [], _NO_SCORES, _NO_ARMS, "none"))
        if live:
            self._rank(out, live)
        metrics.RANK_SECONDS.observe(self._clock() - started)
        return out

    def _may_be_sent_to(self, trigger: Trigger, campaign: Campaign) -> bool:
        profile = trigger.profile
        return (
            profile is not None
            and profile.consent.push
            and not trigger.engagement.is_opted_out
            and self._campaigns.arm_of(trigger.user_id, campaign) != HOLDOUT
        )

    def _rank(self, out: list[Ranked | Forget], live: dict[int, Campaign]) -> None:
        ranked = [entry for at in live if isinstance(entry := out[at], Ranked)]
        triggers = [entry.trigger for entry in ranked]
        queries = self._generator.ask(triggers, [campaign.picks for campaign in live.values()])
        answers = self._answers(triggers, queries)
        found, sets = [one.found for one in answers], [one.best for one in answers]
        arms = self._arms([one.query for one in found], sets)
        if self._is_neural:
            arms = [_widened(own, one.neural) for own, one in zip(arms, answers, strict=True)]
        for at, entry, answer, own in zip(live, ranked, answers, arms, strict=True):
            best = answer.best
            out[at] = entry._replace(
                candidates=candidates_of(self._catalogue, best.rows, best.sources, best.fused),
                scores=best.scores,
                arm_features=own,
                model_version=answer.version,
                tried=answer.tried,
            )
        _count(_CANDIDATES, [one.sources for one in found])
        _count(_ARMS, [best.sources for best in sets])

    def _neural(
        self, student: Student, users: NDArray[np.float32], sets: list[_Set]
    ) -> list[NDArray[np.float32] | None]:
        """Return the student's columns of each set, where they are asked for."""
        if not self._is_neural:
            return [None] * len(sets)
        table = student.items.table
        return [
            neural_columns(user[None], widened(table[best.rows])[None])[0]
            for user, best in zip(users, sets, strict=True)
        ]

    def _answers(self, triggers: list[Trigger], queries: list[Query]) -> list[_Answer]:
        """Rank the triggers, each by the student that decides for its user."""
        models = self._models
        if models.trial is None:
            nobody = np.zeros(len(triggers), np.bool_)
            return self._answer(models.served, triggers, queries, nobody)
        decides, shadows = models.places([trigger.user_id for trigger in triggers])
        is_canary = set(decides)
        rest = [b for b in range(len(triggers)) if b not in is_canary]
        answers: list[_Answer | None] = [None] * len(triggers)
        for student, places in ((models.served, rest), (models.trial, decides)):
            asked = [queries[b] for b in places]
            own = [triggers[b] for b in places]
            apart = np.isin(places, shadows) if student is models.served else None
            for b, answer in zip(places, self._answer(student, own, asked, apart), strict=True):
                answers[b] = answer
        return [one for one in answers if one is not None]

    def _answer(
        self,
        student: Student | None,
        triggers: list[Trigger],
        queries: list[Query],
        is_shadowed: NDArray[np.bool_] | None,
    ) -> list[_Answer]:
        """Rank triggers by one student; `is_shadowed`, shape (B,): that on trial scores them too.

        None where the student is on trial itself.
        """
        if not triggers:
            return []
        if student is None or not len(self._catalogue):
            found = self._generator.answer(queries)
            sets = self._best(found, self._fused_scores(found, _targets(found)))
            return [_Answer(*pair, "none") for pair in zip(found, sets, strict=True)]
        shadowed = np.zeros(len(triggers), np.bool_) if is_shadowed is None else is_shadowed
        role = "canary" if is_shadowed is None else "served"
        users = np.empty((len(triggers), student.scorer.dim), np.float32)
        seconds = 0.0
        # Those that are shadowed apart, for both students are timed over the same users. No row
        # depends on those beside it, so neither does a decision.
        for part in (~shadowed, shadowed) if shadowed.any() else (~shadowed,):
            places = np.flatnonzero(part)
            users[places], seconds = self._read(student, triggers, queries, places, role)
        found = self._generator.answer(student.items.asked(users, queries))
        scores = student.scorer.score(student.items.table, users, _targets(found))
        sets = self._best(found, scores)
        tried = Tried(student.version, "canary", _NO_SCORES) if is_shadowed is None else None
        neural = self._neural(student, users, sets)
        answers = [
            _Answer(one, best, student.version, tried, columns)
            for one, best, columns in zip(found, sets, neural, strict=True)
        ]
        if shadowed.any():
            self._shadow(answers, triggers, queries, np.flatnonzero(shadowed), seconds)
        return answers

    def _read(
        self,
        student: Student,
        triggers: list[Trigger],
        queries: list[Query],
        places: NDArray[np.int64],
        role: str,
    ) -> tuple[NDArray[np.float32], float]:
        """Return what a student makes of the users at some places, and the seconds it took."""
        if not len(places):
            return np.zeros((0, student.scorer.dim), np.float32), 0.0
        own = [triggers[b] for b in places.tolist()]
        asked = [queries[b] for b in places.tolist()]
        began = self._clock()
        users = user_vectors(student.scorer, student.items.table, own, asked)
        seconds = self._clock() - began
        metrics.SCORE_SECONDS.labels(role).observe(seconds)
        return users, seconds

    def _shadow(
        self,
        answers: list[_Answer],
        triggers: list[Trigger],
        queries: list[Query],
        places: NDArray[np.int64],
        served_s: float,
    ) -> None:
        """Have the student on trial score action sets that stand already."""
        student = self._models.trial
        if student is None:
            return
        users, seconds = self._read(student, triggers, queries, places, "shadow")
        rows = _targets([answers[b].best for b in places.tolist()])
        scores = student.scorer.score(student.items.table, users, rows)
        for b, own in zip(places.tolist(), scores, strict=True):
            best = answers[b].best
            tried = Tried(student.version, "shadow", own[: len(best.rows)])
            answers[b] = answers[b]._replace(tried=tried)
            if len(best.rows) > 1:
                drift = 1 - rank_correlation(best.scores, tried.scores)
                metrics.SHADOW_DRIFT.observe(drift)
        self._models.timed(served_s, seconds)

    def _arms(self, queries: list[Query], sets: list[_Set]) -> list[NDArray[np.float32]]:
        """Return the columns of each set's arms, (K, d_a), push fatigue left at zero."""
        rows, sources, fused, scores = zip(*sets, strict=True)
        bounds = np.cumsum([0, *map(len, rows)])
        inputs = arm_inputs(queries, rows)
        inputs[INPUT["scores"]] = np.concatenate(scores)
        inputs[INPUT["fused"]] = np.concatenate(fused)
        starts = bounds.tolist()
        for query, own, start in zip(queries, rows, starts[:-1], strict=True):
            self._tell_cosines(query, own, inputs[:, start : start + len(own)])
        arms = arm_columns(inputs, np.concatenate(sources), bounds)
        return [arms[start:end] for start, end in pairwise(starts)]

    def _best(self, found: list[Found], scores: NDArray[np.float32]) -> list[_Set]:
        """Return the action set of each trigger: the best by the student and the sources fused."""
        size = self._action_set
        shares = explored_places([one.query.seed for one in found], self._explore_share, size)
        sets = []
        for one, all_scores, n_explored in zip(found, scores, shares, strict=True):
            own = all_scores[: len(one.rows)]
            top = best_places(own, one.sources == _EXPLORED, n_explored, size)
            sets.append(_Set(one.rows[top], one.sources[top], one.scores[top], own[top]))
        return sets

    def _tell_cosines(self, query: Query, rows: NDArray[np.int64], inputs: Floats) -> None:
        """Put in how near items, rows (K,), are to what a user asked for, and writes of."""
        written = {"intent_cosine": query.intent, "taste_cosine": query.taste}
        for name, vector in written.items():
            if vector is not None:
                # Exact, whatever the order of the sum: all on the grid.
                inputs[INPUT[name]] = self._catalogue.content.vectors(rows) @ vector

    @staticmethod
    def _fused_scores(found: list[Found], targets: NDArray[np.int64]) -> NDArray[np.float32]:
        metrics.FALLBACKS.labels("student").inc(len(found))
        scores = np.full(targets.shape, -np.inf, np.float32)
        for b, one in enumerate(found):
            scores[b, : len(one.rows)] = one.scores
        return scores


def _targets(sets: Sequence[Found | _Set]) -> NDArray[np.int64]:
    """Return the rows of several sets, shape (B, K), padded with 0."""
    targets = np.zeros((len(sets), max(len(one.rows) for one in sets)), np.int64)
    for b, one in enumerate(sets):
        targets[b, : len(one.rows)] = one.rows
    return targets


def user_vectors(
    scorer: StudentScorer,
    item_table: Table,
    triggers: Sequence[Trigger],
    queries: Sequence[Query],
) -> NDArray[np.float32]:
    """Return what a student makes of the users of B triggers, float32, shape (B, M).

    `queries` are those of the triggers, and `item_table`, shape (N, M), is of their rows.
    """
    rows, types = np.zeros((2, len(queries), HISTORY), np.int64)
    ages = np.zeros(rows.shape, np.float32)
    for b, query in enumerate(queries):
        oldest_first(query.history, query.types, query.age_s, rows[b], types[b], ages[b])
    context = np.array([trigger.context for trigger in triggers], np.float32)  # (B, C)
    return scorer.user_vectors(item_table, rows, types, ages, context)


def _widened(arms: NDArray[np.float32], neural: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Return arms with the student's columns behind the others, zeros where none did."""
    own = np.zeros((len(arms), N_NEURAL), np.float32) if neural is None else neural
    return np.hstack([arms, own])


def _count(by_source: list[Counter], sources: list[NDArray[np.int64]]) -> None:
    counts = np.bincount(np.concatenate(sources), minlength=len(SOURCES)).tolist()
    for counter, count in zip(by_source, counts, strict=True):
        if count:
            counter.inc(count)
