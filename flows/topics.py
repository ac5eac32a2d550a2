"""The topics as they should be on a cluster.

Owns    settings of topics, each with its reason.
"""

from flows.settings import Settings
from operators.kafka_admin import Spec
from operators.messages import TOPICS

# A message is at most 64 KiB to be decoded; a dead letter of a larger one is cut.
_MAX_MESSAGE_BYTES = 1_048_576
# Event time may run ahead of the broker's clock (simulations, time zones set wrong): the decoder
# refuses what is too far ahead, with a dead letter; the broker would stop the producer instead.
_ANY_MS = str(2**63 - 1)
# Of three copies: a record counts as written with two, so one node may be lost, for ever even,
# with nothing of what a flow rests on; with two lost the flow waits.
_MIN_IN_SYNC = "2"


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
            "message.timestamp.after.max.ms": _ANY_MS,
        }
        kafka = settings.kafka
        if kafka.replication >= 3:
            config["min.insync.replicas"] = _MIN_IN_SYNC
        if not topic.is_compacted:
            own = topic.retention_ms if kafka.retention_ms is None else kafka.retention_ms
            config["retention.ms"] = str(own)
        rows.append((kafka.topic(name), kafka.partitions, kafka.replication, config))
    return rows
