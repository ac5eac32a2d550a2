"""Global tables of `decide`: items and their vectors, campaigns, policy, model, in one place.

Reads   compacted topics, whole before the start and followed after, or files in their place.
Owns    the order of refreshing, and how often the topics are looked at.

Bytewax has no broadcast, so each process reads these topics itself, as Kafka Streams' global
tables do. With `ranking.frozen` they stay as they were at the start, and replays are repeatable.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.model_news import ModelNews, sender
from flows.settings import Settings
from models.log_odds import Scale
from models.merging import learned_factors
from models.policies import KINDS, LOGISTIC
from models.value import ValueFunction
from operators import metrics
from operators.campaigns import CampaignTable, load_yaml
from operators.candidates import CandidateGenerator
from operators.catalogue import Catalogue
from operators.codec import table_handler
from operators.content import validate_templates
from operators.kafka_tables import TableFollower
from operators.messages import Campaign, Item, ItemStats, ItemVector, ModelCard, PolicyShard
from operators.model_table import ModelTable
from operators.policy_table import PolicyTable
from operators.vector_table import VectorTable

log = logging.getLogger("pushflow")

POLL_SECONDS = 0.02  # between looks at the topics
POLL_MESSAGES = 100  # rows a look at most, 15 us each: a backlog must not stall decisions
_BULKY = frozenset(("push.item-stats.v1", "push.item-vectors.v1"))
APPLY_SECONDS = 0.25  # between two refreshes, which sort trends and merge the learners' shards


def followed(settings: Settings) -> list[str]:
    """Return the topics that tables are read from, by their own names, in the order of reading."""
    names = ["push.items.v1", "push.item-stats.v1", "push.policy.v1"]
    names += [] if settings.catalog.is_inline else ["push.item-vectors.v1"]
    names += [] if settings.campaigns_file else ["push.campaigns.v1"]
    return names + ([] if settings.model_path else ["push.models.v1"])


def _by_urgency(names: list[str]) -> list[list[str]]:
    """Return what is read first, then what comes by the thousand and has time.

    `learn` and `catalog` write rows of all items at times: an item that is sold out must not wait
    behind them.
    """
    return [[n for n in names if n not in _BULKY], [n for n in names if n in _BULKY]]


def threshold(settings: Settings) -> dict[str, float]:
    """Return what doing nothing is worth to a logistic policy, as a setting of policies."""
    if KINDS[settings.ranking.policy].learner != LOGISTIC:
        return {}
    return {"threshold": Scale(*settings.rewards.scale).threshold}


def value_function(settings: Settings) -> ValueFunction | None:
    """Return what says what holding is worth, None where no file is set.

    Raises
    ------
    models.value.ValueFileError
        If the file cannot be used.
    """
    path = settings.ranking.value_path
    return ValueFunction.load(Path(path)) if path else None


class Tables:
    """Everything that `decide` knows of the world apart from users.

    Parameters
    ----------
    settings
        `ranking`, `candidates`, `learning`, `models`, `campaigns_file` and `model_path` are read.
    clock
        Monotonic seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        ranking = settings.ranking
        self.catalogue = Catalogue()
        self.vectors = VectorTable(self.catalogue)
        self.campaigns = CampaignTable(
            validate=validate_templates, holdout_salt=settings.experiments.holdout_salt
        )
        self.policies = PolicyTable(
            prior_precision=settings.learning.prior_precision,
            policy=ranking.policy,
            apprentice=ranking.apprentice,
            separate_arms=settings.learning.separate_arms,
            floor=ranking.floor,
            gamma=ranking.gamma,
            epsilon=ranking.epsilon,
            temperature=ranking.temperature,
            width=ranking.width,
            draws=ranking.draws,
            value=value_function(settings),
            scale=Scale(*settings.rewards.scale),
            **threshold(settings),
        )
        self.models = ModelTable(self.catalogue, max_slowdown=settings.models.max_slowdown)
        candidates = settings.candidates
        self.generator = CandidateGenerator(
            self.catalogue,
            weights=candidates.weights.model_dump(),
            limit=ranking.candidates,
            max_per_category=candidates.max_per_category,
            copy_cosine=candidates.copy_cosine,
            rrf=candidates.rrf,
            depths=candidates.depths.model_dump(),
            explore_share=candidates.explore_share,
        )
        self._is_learned = candidates.learned
        self._is_frozen = ranking.frozen
        self._clock = clock
        self._polled = self._applied = 0.0
        self._is_changed = False
        self._followers: list[TableFollower] = []
        self._news: ModelNews | None = None
        if settings.campaigns_file:
            self.use_campaigns(Path(settings.campaigns_file).read_text(encoding="utf-8"))
        if settings.model_path:
            self.models.load(Path(settings.model_path))

    def use_campaigns(self, text: str) -> None:
        """Take campaigns from YAML."""
        for campaign in load_yaml(text, validate_templates):
            self.campaigns.apply(campaign.campaign_id, campaign)

    def follow(
        self,
        settings: Settings,
        on_progress: Callable[[str, int, int], None] | None = None,
        *,
        process: str = "0",
    ) -> None:
        """Read the topics whole, and follow them from then on unless frozen.

        `process` is this process's place in its cluster, by which it reports on models.
        """
        rows: dict[str, tuple[type[Any], Callable[[str, Any], None]]] = {
            "push.items.v1": (Item, self.catalogue.apply),
            "push.item-stats.v1": (ItemStats, self._apply_stats),
            "push.item-vectors.v1": (ItemVector, self.vectors.apply),
            "push.policy.v1": (PolicyShard, self.policies.apply),
            "push.campaigns.v1": (Campaign, self.campaigns.apply),
            "push.models.v1": (ModelCard, self.models.apply),
        }
        for names in _by_urgency(followed(settings)):
            handlers = {settings.topics[name]: table_handler(*rows[name], name) for name in names}
            follower = TableFollower(settings.kafka.client(), handlers)
            self._followers.append(follower)
            follower.load(on_progress)
        self.apply_changes()
        self.models.settle()
        self._news = ModelNews(
            self.models,
            process,
            sender(settings),
            clock=self._clock,
            now_ms=lambda: time.time_ns() // 1_000_000,
        )
        self._news.tell()
        if self._is_frozen:
            self.close()

    def _apply_stats(self, _item_id: str, stats: ItemStats | None) -> None:
        if stats is not None:
            self.catalogue.apply_stats(stats)

    def refresh(self) -> None:
        """Take in what has come since; called between batches."""
        now = self._clock()
        if not self._followers or now - self._polled < POLL_SECONDS:
            return
        self._polled = now
        room = POLL_MESSAGES
        for follower in self._followers:
            room -= follower.poll(room) if room else 0
        self._is_changed = room < POLL_MESSAGES or self._is_changed
        if self._is_changed and now - self._applied >= APPLY_SECONDS:
            self._applied = now
            self.apply_changes()
        self.models.refresh()
        if self._news is not None:
            self._news.tell()

    def apply_changes(self) -> None:
        """Make rows applied so far take effect."""
        self._is_changed = False
        if self.vectors.refresh():
            log.info("items are searched by the vectors of %s now", self.catalogue.encoder)
        self.catalogue.refresh()
        self.models.follow()
        is_known = self.policies.refresh() and self.policies.is_in_rewards
        if is_known and self._is_learned:
            factors = learned_factors(self.policies.mean, self.policies.n_rewards)
            self.generator.weigh(factors)
        metrics.TABLE_ROWS.labels("push.items.v1").set(len(self.catalogue))
        metrics.TABLE_ROWS.labels("push.item-vectors.v1").set(len(self.catalogue.content))
        metrics.TABLE_ROWS.labels("push.campaigns.v1").set(len(self.campaigns))

    def close(self) -> None:
        """Stop following."""
        for follower in self._followers:
            follower.close()
        self._followers.clear()
