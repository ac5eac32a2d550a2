"""Ranking: from triggers to action sets, whole batches at a time, with one call to the student.

Reads   triggers of one activation, of all shards.
Emits   one `Ranked` a trigger, its best arms first.
Owns    the model's input arrays, and the cut from candidates to the action set, which keeps the
        best of the student's order and the candidates' own.

Triggers that no campaign takes, and users who may not be sent to whatever the policy says (no
consent, opted out, holdout), are passed on without candidates: most of the work is here. Scores
do not depend on who shares the batch (`models.serving`), and ties keep the candidates' order, which
ends in item_id, so that a replay at another batch size ranks the same.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.arms import N_ARM, arm_features
from models.features import HISTORY
from operators import metrics
from operators.campaigns import HOLDOUT, CampaignTable, assign_arm
from operators.candidates import CandidateGenerator, Found, arm_inputs, candidates_of
from operators.catalogue import Catalogue
from operators.hops import Forget, Ranked, Trigger
from operators.messages import Campaign
from operators.model_table import ModelTable


class _Set(NamedTuple):
    """A trigger's action set, best first; each array has shape (K,)."""

    rows: NDArray[np.int64]
    sources: NDArray[np.int64]
    fused: NDArray[np.float64]
    scores: NDArray[np.float32]


# Reciprocal-rank fusion of the student's order (weight 1) with the candidates' own: the policy
# gets what either is sure of. On online-retail one of the first ten is in the next invoice in
# 35.9% of cases so, and was in 30.0% by the student's order alone (`python -m bench.retail`).
_RRF: Final = 60
_FUSED_WEIGHT: Final = 2.0
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
        refresh: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._campaigns = campaigns
        self._catalogue = catalogue
        self._models = models
        self._generator = generator
        self._action_set = action_set
        self._refresh = refresh
        self._clock = clock

    def on_batch(self, triggers: list[Trigger | Forget]) -> list[Ranked | Forget]:
        """Rank the triggers; pass on who is to be forgotten, in order."""
        self._refresh()
        if not triggers:
            return []
        started = self._clock()
        out: list[Ranked | Forget] = []
        live: list[int] = []
        for trigger in triggers:
            if isinstance(trigger, Forget):
                out.append(trigger)
                continue
            campaign = self._campaigns.match(trigger)
            if campaign is not None and _may_be_sent_to(trigger, campaign):
                live.append(len(out))
            campaign_id = campaign.campaign_id if campaign is not None else ""
            out.append(Ranked(trigger, campaign_id, [], _NO_SCORES, _NO_ARMS, "none"))
        if live:
            self._rank(out, live)
        metrics.RANK_SECONDS.observe(self._clock() - started)
        return out

    def _rank(self, out: list[Ranked | Forget], live: list[int]) -> None:
        ranked = [entry for at in live if isinstance(entry := out[at], Ranked)]
        triggers = [entry.trigger for entry in ranked]
        found = [self._generator.find(trigger) for trigger in triggers]
        sets = self._best(found, self._scores(triggers, found))
        for at, entry, best in zip(live, ranked, sets, strict=True):
            out[at] = entry._replace(
                candidates=candidates_of(self._catalogue, best.rows, best.sources, best.fused),
                scores=best.scores,
                model_version=self._models.version,
            )
        # Sets of one size are taken together; nearly all have `action_set` arms.
        for size in {len(best.rows) for best in sets if len(best.rows)}:
            same = [b for b, best in enumerate(sets) if len(best.rows) == size]
            columns = zip(*(sets[b] for b in same), strict=True)
            rows, sources, fused, scores = (np.array(column) for column in columns)  # (S, size)
            inputs = arm_inputs(
                [found[b].query for b in same], [triggers[b].time_ms for b in same], rows
            )
            arms = arm_features(
                scores=scores, fused=fused, sources=sources, **inputs._asdict()
            )  # (S, size, d_a)
            for b, own in zip(same, arms, strict=True):
                entry = out[live[b]]
                if isinstance(entry, Ranked):
                    out[live[b]] = entry._replace(arm_features=own)

    def _best(self, found: list[Found], scores: NDArray[np.float32]) -> list[_Set]:
        """Return the action set of each trigger: the best by the student and the sources fused."""
        order = np.argsort(-scores, axis=1, kind="stable")  # (B, K); padding comes last
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(order.shape[1])[None], axis=1)
        worth = 1 / (_RRF + ranks) + _FUSED_WEIGHT / (_RRF + np.arange(order.shape[1]))
        worth[np.isneginf(scores)] = 0.0
        best = np.argsort(-worth, axis=1, kind="stable")[:, : self._action_set]  # (B, <= K)
        sets = []
        for one, kept, own in zip(found, best, scores, strict=True):
            top = kept[: len(one.rows)]
            sets.append(_Set(one.rows[top], one.sources[top], one.scores[top], own[top]))
        return sets

    def _scores(self, triggers: list[Trigger], found: list[Found]) -> NDArray[np.float32]:
        """Return scores, shape (B, K), -inf for padding."""
        width = max(len(one.rows) for one in found)
        targets = np.zeros((len(found), width), np.int64)  # (B, K)
        for b, one in enumerate(found):
            targets[b, : len(one.rows)] = one.rows
        scorer = self._models.scorer
        if scorer is None or not width:
            return self._fused_scores(found, targets)
        rows = np.zeros((len(found), HISTORY), np.int64)  # (B, T)
        types = np.zeros((len(found), HISTORY), np.int64)
        ages = np.zeros((len(found), HISTORY), np.float32)
        for b, one in enumerate(found):
            query = one.query
            known = [i for i, row in enumerate(query.history) if row][::-1]  # oldest first
            if known:
                start = HISTORY - len(known)
                rows[b, start:] = [query.history[i] for i in known]
                types[b, start:] = [query.types[i] for i in known]
                ages[b, start:] = [query.age_s[i] for i in known]
        context = np.array([trigger.context for trigger in triggers], np.float32)  # (B, C)
        return scorer.score(self._catalogue.item_table, rows, types, ages, context, targets)

    @staticmethod
    def _fused_scores(found: list[Found], targets: NDArray[np.int64]) -> NDArray[np.float32]:
        metrics.FALLBACKS.labels("student").inc(len(found))
        scores = np.full(targets.shape, -np.inf, np.float32)
        for b, one in enumerate(found):
            scores[b, : len(one.rows)] = one.scores
        return scores


def _may_be_sent_to(trigger: Trigger, campaign: Campaign) -> bool:
    profile = trigger.profile
    return (
        profile is not None
        and profile.consent.push
        and not trigger.engagement.is_opted_out
        and assign_arm(trigger.user_id, campaign.experiment) != HOLDOUT
    )
