"""The topics as they should be on a cluster.

Owns    settings of topics, each with its reason.
"""

from flows.settings import Settings
from operators.kafka_admin import Spec
from operators.messages import TOPICS

# A message is at most 64 KiB to be decoded; a dead letter of a larger one is cut.
_MAX_MESSAGE_BYTES = 1_048_576


def specs(settings: Settings) -> list[Spec]:
    """Return (name, partitions, replication, settings) of every topic.

    All have the same number of partitions: those keyed by user_id must, for they are joined
    partition by partition, and for the others it does no harm.
    """
    rows: list[Spec] = []
    for name, topic in TOPICS.items():
        config = {
            "cleanup.policy": "compact" if topic.is_compacted else "delete",
            "max.message.bytes": str(_MAX_MESSAGE_BYTES),
        }
        if not topic.is_compacted:
            config["retention.ms"] = str(topic.retention_ms)
        kafka = settings.kafka
        rows.append((kafka.topic(name), kafka.partitions, kafka.replication, config))
    return rows
