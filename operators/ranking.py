"""Ranking: from triggers to action sets, whole batches at a time, with one call to the student.

Reads   triggers of one activation, of all shards.
Emits   one `Ranked` a trigger, its best arms first.
Owns    the model's input arrays, and the cut from candidates to the action set.

Triggers that no campaign takes, and users who may not be sent to whatever the policy says (no
consent, opted out, holdout), are passed on without candidates: most of the work is here. Scores
do not depend on who shares the batch (`models.serving`), and ties are broken by item_id, so that
a replay at another batch size ranks the same.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.arms import N_ARM, arm_features
from models.features import HISTORY
from operators import metrics
from operators.campaigns import HOLDOUT, CampaignTable, assign_arm
from operators.candidates import CandidateGenerator, arm_inputs
from operators.catalogue import Catalogue
from operators.hops import Candidate, Forget, Ranked, Trigger
from operators.messages import Campaign
from operators.model_table import ModelTable

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
        candidates = self._generator.generate_batch([entry.trigger for entry in ranked])
        scores = self._scores([entry.trigger for entry in ranked], candidates)
        version = self._models.version
        for at, entry, found, row in zip(live, ranked, candidates, scores, strict=True):
            kept, kept_scores = self._best(found, row[: len(found)])
            inputs = arm_inputs(entry.trigger, kept, self._catalogue)
            arms = arm_features(
                scores=kept_scores,
                fused=[candidate.score for candidate in kept],
                sources=[candidate.source for candidate in kept],
                **inputs._asdict(),
            )
            out[at] = entry._replace(
                candidates=kept, scores=kept_scores, arm_features=arms, model_version=version
            )

    def _best(
        self, candidates: list[Candidate], scores: NDArray[np.float32]
    ) -> tuple[list[Candidate], NDArray[np.float32]]:
        values = scores.tolist()
        order = sorted(range(len(candidates)), key=lambda k: (-values[k], candidates[k].item_id))[
            : self._action_set
        ]
        return [candidates[k] for k in order], scores[order]

    def _scores(
        self, triggers: list[Trigger], candidates: list[list[Candidate]]
    ) -> list[NDArray[np.float32]]:
        """Return one row of scores a trigger, each as long as its candidates or longer."""
        scorer = self._models.scorer
        if scorer is None:
            metrics.FALLBACKS.labels("student").inc(len(triggers))
            return [np.array([c.score for c in found], np.float32) for found in candidates]
        n_users, width = len(triggers), max(map(len, candidates))
        rows = np.zeros((n_users, HISTORY), np.int64)  # (B, T)
        types = np.zeros((n_users, HISTORY), np.int64)
        ages = np.zeros((n_users, HISTORY), np.float32)
        targets = np.zeros((n_users, width), np.int64)  # (B, K)
        row_of = self._catalogue.row
        for b, (trigger, found) in enumerate(zip(triggers, candidates, strict=True)):
            history = trigger.history
            known = [row_of(item_id) for item_id in history.item_ids]
            keep = [i for i, row in enumerate(known) if row]
            if keep:
                start = HISTORY - len(keep)
                now_s = trigger.time_ms // 1_000
                rows[b, start:] = [known[i] for i in keep]
                types[b, start:] = [history.types[i] for i in keep]
                ages[b, start:] = [max(now_s - history.time_s[i], 0) for i in keep]
            targets[b, : len(found)] = [row_of(candidate.item_id) for candidate in found]
        context = np.array([trigger.context for trigger in triggers], np.float32)  # (B, C)
        scores = scorer.score(self._catalogue.item_table, rows, types, ages, context, targets)
        return list(scores)


def _may_be_sent_to(trigger: Trigger, campaign: Campaign) -> bool:
    profile = trigger.profile
    return (
        profile is not None
        and profile.consent.push
        and not trigger.engagement.is_opted_out
        and assign_arm(trigger.user_id, campaign.experiment) != HOLDOUT
    )
