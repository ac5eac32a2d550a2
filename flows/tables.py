"""Global tables of `decide`: items, statistics, campaigns, policy and model, in one place.

Reads   compacted topics, whole before the start and followed after, or files in their place.
Owns    the order of refreshing, and how often the topics are looked at.

Bytewax has no broadcast, so each process reads these topics itself, as Kafka Streams' global
tables do. With `ranking.frozen` they stay as they were at the start, and replays are repeatable.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.settings import Settings
from models.serving import StudentScorer
from operators import metrics
from operators.campaigns import CampaignTable, load_yaml
from operators.candidates import CandidateGenerator
from operators.catalogue import Catalogue
from operators.codec import table_handler
from operators.content import validate_templates
from operators.kafka_tables import TableFollower
from operators.messages import Campaign, Item, ItemStats, ModelCard, PolicyShard
from operators.model_table import ModelTable
from operators.policy_table import PolicyTable

POLL_SECONDS = 0.02  # between looks at the topics
POLL_MESSAGES = 100  # rows a look at most, 15 us each: a backlog must not stall decisions
APPLY_SECONDS = 0.25  # between two refreshes, which sort trends and merge the learners' shards


def followed(settings: Settings) -> list[str]:
    """Return the topics that tables are read from, by their own names, in the order of reading."""
    names = ["push.items.v1", "push.item-stats.v1", "push.policy.v1"]
    names += [] if settings.campaigns_file else ["push.campaigns.v1"]
    return names + ([] if settings.model_path else ["push.models.v1"])


class Tables:
    """Everything that `decide` knows of the world apart from users.

    Parameters
    ----------
    settings
        `ranking`, `learning`, `campaigns_file` and `model_path` are read.
    clock
        Monotonic seconds.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        ranking = settings.ranking
        self.catalogue = Catalogue()
        self.items: dict[str, Item] = {}  # bounded as the topic is: about 1 KB an item
        self._category: dict[str, str] = {}  # item_id -> main category
        self.campaigns = CampaignTable(validate=validate_templates)
        self.policies = PolicyTable(
            gamma=ranking.gamma,
            floor=ranking.floor,
            prior_precision=settings.learning.prior_precision,
        )
        self.models = ModelTable(self._use)
        self.generator = CandidateGenerator(self.catalogue, limit=ranking.candidates)
        self._is_frozen = ranking.frozen
        self._clock = clock
        self._polled = self._applied = 0.0
        self._is_changed = False
        self._follower: TableFollower | None = None
        if settings.campaigns_file:
            self.use_campaigns(Path(settings.campaigns_file).read_text(encoding="utf-8"))
        if settings.model_path:
            self.models.load(Path(settings.model_path))

    def _use(self, scorer: StudentScorer) -> None:
        self.catalogue.set_embedder(scorer.embed_items)

    def use_campaigns(self, text: str) -> None:
        """Take campaigns from YAML."""
        for campaign in load_yaml(text, validate_templates):
            self.campaigns.apply(campaign.campaign_id, campaign)

    def follow(
        self,
        settings: Settings,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Read the topics whole, and follow them from then on unless frozen."""
        rows: dict[str, tuple[type[Any], Callable[[str, Any], None]]] = {
            "push.items.v1": (Item, self.apply_item),
            "push.item-stats.v1": (ItemStats, self._apply_stats),
            "push.policy.v1": (PolicyShard, self.policies.apply),
            "push.campaigns.v1": (Campaign, self.campaigns.apply),
            "push.models.v1": (ModelCard, self.models.apply),
        }
        handlers = {
            settings.topics[name]: table_handler(*rows[name], name) for name in followed(settings)
        }
        self._follower = TableFollower(settings.kafka.client(), handlers)
        self._follower.load(on_progress)
        self.apply_changes()
        if self._is_frozen:
            self.close()

    def apply_item(self, item_id: str, item: Item | None) -> None:
        """Take an item, or its removal."""
        if item is None:
            self.items.pop(item_id, None)
            self._category.pop(item_id, None)
        else:
            self.items[item_id] = item
            self._category[item_id] = item.categories[0] if item.categories else ""
        self.catalogue.apply(item_id, item)

    def category_of(self, item_id: str) -> str:
        """Return an item's main category, "" where it is not known; asked for every event."""
        return self._category.get(item_id, "")

    def _apply_stats(self, _item_id: str, stats: ItemStats | None) -> None:
        if stats is not None:
            self.catalogue.apply_stats(stats)

    def refresh(self) -> None:
        """Take in what has come since; called between batches."""
        now = self._clock()
        if self._follower is None or now - self._polled < POLL_SECONDS:
            return
        self._polled = now
        self._is_changed = self._follower.poll(POLL_MESSAGES) > 0 or self._is_changed
        if self._is_changed and now - self._applied >= APPLY_SECONDS:
            self._applied = now
            self.apply_changes()

    def apply_changes(self) -> None:
        """Make rows applied so far take effect."""
        self._is_changed = False
        self.catalogue.refresh()
        self.policies.refresh()
        metrics.TABLE_ROWS.labels("push.items.v1").set(len(self.catalogue))
        metrics.TABLE_ROWS.labels("push.campaigns.v1").set(len(self.campaigns))

    def close(self) -> None:
        """Stop following."""
        if self._follower is not None:
            self._follower.close()
            self._follower = None
