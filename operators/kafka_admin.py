"""Topics: made, compared with what they should be, and looked at.

Reads   cluster metadata and topic settings.
Owns    what "made already" and "different" mean; nothing here changes a topic that exists.

The embedded broker knows no CreateTopics: there a topic appears when it is asked for, with 4
partitions and no settings, and differences in settings cannot be seen.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from operators.kafka_client import (
    START_SECONDS,
    KafkaFailure,
    address,
    attempts,
    client_log,
    is_transient,
    without_fetching,
)

# (name, partitions, replication, settings such as "cleanup.policy")
Spec = tuple[str, int, int, Mapping[str, str]]

_NO_ID = "AAAAAAAAAAAAAAAAAAAAAA"  # sixteen zero bytes: what a broker older than ids is read as


class BrokerInfo(NamedTuple):
    """What a cluster says of itself."""

    cluster_id: str
    brokers: list[str]  # "host:port", as advertised to clients
    partitions: dict[str, int]  # by topic, internal ones too

    @property
    def is_embedded(self) -> bool:
        """Whether this is librdkafka's mock broker: it leaves admin requests without answer."""
        return self.cluster_id.startswith("mockCluster")


class Shape(NamedTuple):
    """What the parts of a flow rest on: which topic it is, and its width."""

    topic_id: str | None  # a topic made anew gets another; None: the broker has no ids
    n_partitions: int


def open_admin(client: Mapping[str, Any]) -> AdminClient:
    """Return a client for requests about topics; it must outlive the futures that it returns."""
    return AdminClient({"logger": client_log} | without_fetching(client))


def look_at_topics(
    admin: AdminClient, topics: Sequence[str], timeout_s: float = 5.0
) -> dict[str, Shape]:
    """Return the shapes of those of `topics` that are there, by name.

    Raises
    ------
    confluent_kafka.KafkaException
        If the broker does not answer within `timeout_s` seconds, or refuses.
    """
    found = admin.list_topics(timeout=timeout_s)
    if (found.cluster_id or "").startswith("mockCluster"):  # it would not answer what follows
        there = [topic for topic in topics if topic in found.topics]
        return {topic: Shape(None, len(found.topics[topic].partitions)) for topic in there}
    shapes = {}
    asked = admin.describe_topics(TopicCollection(list(topics)), request_timeout=timeout_s)
    for topic, future in asked.items():
        try:
            answer = future.result()
        except KafkaException as exception:
            if exception.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                continue
            raise
        name = str(answer.topic_id)
        shapes[topic] = Shape(None if name == _NO_ID else name, len(answer.partitions))
    return shapes


def topic_shapes(
    client: Mapping[str, Any], topics: Sequence[str], wait_s: float = START_SECONDS
) -> dict[str, Shape]:
    """Return the shapes of those of `topics` that are there; wait for the broker.

    Raises
    ------
    KafkaFailure
        If the broker does not answer for `wait_s` seconds, or refuses.
    """
    admin = open_admin(client)
    for is_last in attempts(wait_s, f"topics at {address(client)}"):
        try:
            return look_at_topics(admin, topics)
        except KafkaException as exception:
            error = exception.args[0]
            if is_last or not is_transient(error):
                raise KafkaFailure(
                    f"{address(client)} does not describe its topics: {error.str()}. "
                    "`pushflow doctor` tells more"
                ) from exception
    raise AssertionError("unreachable: the last attempt returns or raises")


def broker_info(client: Mapping[str, Any], timeout_s: float = 5.0) -> BrokerInfo:
    """Return the cluster's brokers and topics.

    Raises
    ------
    KafkaFailure
        If no broker answers within `timeout_s` seconds.
    """
    try:
        found = open_admin(client).list_topics(timeout=timeout_s)
    except KafkaException as exception:
        raise KafkaFailure(
            f"no Kafka answers at {address(client)}: {exception.args[0].str()}. "
            "Is it running, and is this its address? `pushflow doctor` tells more"
        ) from exception
    return BrokerInfo(
        found.cluster_id or "",
        sorted(f"{broker.host}:{broker.port}" for broker in found.brokers.values()),
        {name: len(topic.partitions) for name, topic in sorted(found.topics.items())},
    )


def create_topics(client: Mapping[str, Any], specs: Sequence[Spec]) -> list[str]:
    """Make the topics that are not there; return the names of those made, in order.

    Raises
    ------
    KafkaFailure
        If the cluster refuses one for another reason than that it is there already.
    """
    broker = broker_info(client)
    missing = [spec for spec in specs if spec[0] not in broker.partitions]
    if not missing:
        return []
    if broker.is_embedded:
        return touch_topics(client, [spec[0] for spec in missing])
    new = [
        NewTopic(name, num_partitions=n, replication_factor=copies, config=dict(settings))
        for name, n, copies, settings in missing
    ]
    made = []
    admin = open_admin(client)  # must outlive its futures
    for name, future in admin.create_topics(new, request_timeout=30).items():
        try:
            future.result()
            made.append(name)
        except KafkaException as exception:
            error = exception.args[0]
            if error.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise KafkaFailure(
                    f"{address(client)} does not make topic {name}: {error.str()}"
                ) from exception
    return [spec[0] for spec in missing if spec[0] in made]


def touch_topics(client: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Ask for topics by name, which makes them where topics appear on first use."""
    admin = open_admin(client)
    for name in names:
        admin.list_topics(name, timeout=10)
    return list(names)


def topic_drift(client: Mapping[str, Any], specs: Sequence[Spec]) -> list[str]:
    """Return how the topics differ from `specs`, a sentence each; [] if not at all.

    Compared are the partitions and every setting that a spec names. Replication is not: it is
    the cluster's to change.
    """
    broker = broker_info(client)
    there = broker.partitions
    drift = [f"{spec[0]}: is not there" for spec in specs if spec[0] not in there]
    present = [spec for spec in specs if spec[0] in there]
    for name, n_partitions, _, _ in present:
        if there[name] != n_partitions:
            drift.append(f"{name}: has {there[name]} partitions, should have {n_partitions}")
    named = [] if broker.is_embedded else [spec[0] for spec in present if spec[3]]
    settings = _settings(client, named) if named else {}
    for name, _, _, wanted in present:
        for key, value in wanted.items():
            found = settings.get(name, {}).get(key, value)
            if found != value:
                drift.append(f"{name}: {key} is {found}, should be {value}")
    return drift


def _settings(client: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the settings of topics, by name."""
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    found = {}
    admin = open_admin(client)  # must outlive its futures
    for resource, future in admin.describe_configs(resources, request_timeout=30).items():
        try:
            entries = future.result()
        except KafkaException as exception:
            raise KafkaFailure(
                f"{address(client)} does not show the settings of {resource.name}: "
                f"{exception.args[0].str()}"
            ) from exception
        found[resource.name] = {key: str(entry.value) for key, entry in entries.items()}
    return found
