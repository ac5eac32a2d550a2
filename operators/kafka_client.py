"""What all Kafka clients share: settings, which errors pass by themselves, and offsets.

Reads   cluster metadata and watermarks.
Owns    our defaults for librdkafka (each with its reason), and the list of errors that are
        waited out.

The caller's `client` is a dictionary of librdkafka settings (`bootstrap.servers`, TLS, SASL);
it wins over every default here. librdkafka's own log goes to `pushflow.kafka.client`, without
its line for each failed connection (thirty a second while a broker is down): `ErrorLog` says
once that we wait, and once that it is over.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

log = logging.getLogger("pushflow.kafka")
client_log = logging.getLogger("pushflow.kafka.client")
# librdkafka's records are (facility, client, text); FAIL is a connection that failed.
client_log.addFilter(lambda record: not (record.args and "FAIL" in record.args))

# The key of a record that says nothing: its value is null, and readers leave it out. See
# `operators.kafka_transactions.Lanes.settle`.
FILLER_KEY = b"pushflow.filler"

START_SECONDS = 60.0  # how long a start waits for a broker or a topic before it gives up

_CONSUMER = {
    # Assigning partitions by hand needs no group, but librdkafka wants a name.
    "group.id": "pushflow",
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    # Ours to decide and to log, not librdkafka's to do in silence.
    "auto.offset.reset": "error",
    # The longest a fetch waits at the broker: the default of 500 ms made p50 294 ms.
    "fetch.wait.max.ms": 10,
    # Memory: at most this much waits in a consumer, for each partition.
    "queued.min.messages": 10_000,
    "queued.max.messages.kbytes": 16_384,
    # With a full queue the next fetch is put off by this; the default of 1 s is a stall.
    "fetch.queue.backoff.ms": 10,
    "fetch.error.backoff.ms": 100,
    "reconnect.backoff.max.ms": 1_000,
    "socket.nagle.disable": True,
}
_PRODUCER = {
    "enable.idempotence": True,
    "acks": "all",
    "linger.ms": 1,
    # Kafka's own partitioner, so that every Java client finds a key where we put it.
    "partitioner": "murmur2_random",
    # Memory: a full queue pushes back on the flow.
    "queue.buffering.max.messages": 50_000,
    "queue.buffering.max.kbytes": 65_536,
    # After this a record counts as lost, and the flow stops: it starts again from its snapshot.
    "message.timeout.ms": 120_000,
    "reconnect.backoff.max.ms": 1_000,
    "socket.nagle.disable": True,
}

# A broker that restarts, moves or is not up yet; a topic that is being made.
_TRANSIENT = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._DESTROY_BROKER,  # a node left the cluster with our request still in its queue
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._WAIT_COORD,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
    }
)


class KafkaFailure(RuntimeError):
    """Kafka will not do what we need, and waiting does not help; the message says what does."""


def consumer_settings(
    client: Mapping[str, Any], more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a consumer's settings: our defaults, under `more`, under the caller's `client`."""
    return {"logger": client_log, **_CONSUMER, **(more or {}), **client}


def producer_settings(
    client: Mapping[str, Any], more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a producer's settings: our defaults, under `more`, under the caller's `client`."""
    return {"logger": client_log, **_PRODUCER, **(more or {}), **without_fetching(client)}


def without_fetching(client: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings for a client that reads nothing: librdkafka warns of a reader's.

    >>> without_fetching({"bootstrap.servers": "h:1", "fetch.wait.max.ms": "2"})
    {'bootstrap.servers': 'h:1'}
    """
    return {name: value for name, value in client.items() if not name.startswith("fetch.")}


def is_transient(error: KafkaError) -> bool:
    """Say whether an error passes by itself, so that waiting is right."""
    return not error.fatal() and (error.retriable() or error.code() in _TRANSIENT)


def address(client: Mapping[str, Any]) -> str:
    """Return the broker's address, for messages to people."""
    return str(client.get("bootstrap.servers", "no bootstrap.servers"))


class ErrorLog:
    """Turns a client's errors into one log line each, or into `KafkaFailure`.

    Notes
    -----
    An absent broker and each (what, code) are logged once until `all_well`. At most 1,000 of
    them are remembered.
    """

    def __init__(self, client: Mapping[str, Any]) -> None:
        self._address = address(client)
        self._known: set[tuple[str, int]] = set()
        self._is_away = False
        self._failure: KafkaFailure | None = None

    def on_error(self, error: KafkaError) -> None:
        """Take an error from librdkafka's `error_cb`; a lasting one is raised by `check`."""
        if is_transient(error):
            if not self._is_away:
                self._is_away = True
                log.warning("Kafka at %s: %s; waiting", self._address, error.str())
        else:
            self._failure = self._explain("client", error)

    def wait_out(self, what: str, error: KafkaError) -> None:
        """Log an error that passes by itself; raise any other."""
        if not is_transient(error):
            raise self._explain(what, error)
        if (what, error.code()) not in self._known and len(self._known) < 1_000:
            self._known.add((what, error.code()))
            log.warning("%s at %s: %s; waiting", what, self._address, error.str())

    def check(self) -> None:
        """Raise what `on_error` found."""
        if self._failure is not None:
            raise self._failure

    def all_well(self) -> None:
        """Note that data flow again, so that the next trouble is logged anew."""
        if self._known or self._is_away:
            self._known.clear()
            self._is_away = False
            log.warning("Kafka at %s answers again", self._address)

    def _explain(self, what: str, error: KafkaError) -> KafkaFailure:
        return KafkaFailure(
            f"{what} at {self._address}: {error.name()}: {error.str()}. "
            "Waiting does not mend this; `pushflow doctor` looks for the cause."
        )


@contextmanager
def open_consumer(settings: dict[str, Any]) -> Iterator[Any]:
    """Hold a consumer for the length of a block."""
    consumer = Consumer(settings)
    try:
        yield consumer
    finally:
        consumer.close()


def take(consumer: Any, n: int, timeout_s: float) -> list[Any]:
    """Return at most `n` messages and errors as soon as there is one; [] when the time is up.

    `Consumer.consume` by itself waits for all `n`.
    """
    first = consumer.poll(timeout_s)
    return [] if first is None else [first, *consumer.consume(n - 1, 0)]


def is_filler(message: Any) -> bool:
    """Say whether a message was written to end a transaction, and holds nothing."""
    return message.value() is None and message.key() == FILLER_KEY


def count_partitions(handle: Any, topic: str, where: str, wait_s: float = START_SECONDS) -> int:
    """Return how many partitions a topic has; wait for the broker and for the topic.

    Parameters
    ----------
    handle
        Any client, consumer, producer or admin.
    where
        The broker's address, for the error message.

    Raises
    ------
    KafkaFailure
        If the broker does not answer, or has no such topic, after `wait_s` seconds.
    """
    for is_last in attempts(wait_s, f"topic {topic} at {where}"):
        try:
            found = handle.list_topics(topic, timeout=min(5.0, wait_s)).topics[topic]
            if found.error is None and found.partitions:
                return len(found.partitions)
            error = found.error or KafkaError(KafkaError.LEADER_NOT_AVAILABLE)
        except KafkaException as exception:
            error = exception.args[0]
        if is_last or not is_transient(error):
            raise KafkaFailure(
                f"no topic {topic} at {where}: {error.str()}. "
                "Start the broker, or make the topics: pushflow topics create"
            )
    raise AssertionError("unreachable: the last attempt returns or raises")


def watermarks(
    consumer: Any, topic: str, partition: int, wait_s: float = START_SECONDS
) -> tuple[int, int]:
    """Return the first offset and the end of a partition; wait for the broker.

    Raises
    ------
    KafkaFailure
        If the broker does not tell after `wait_s` seconds.
    """
    is_first = True
    for is_last in attempts(wait_s, f"the offsets of {topic}[{partition}]"):
        try:
            if not is_first:
                # librdkafka keeps what it knows of a topic for 15 minutes, even if that was half
                # a topic in the making ("unknown partition"); this makes it ask again.
                consumer.list_topics(topic, timeout=5)
            is_first = False
            answer = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=5)
            if answer is not None:
                return answer[0], answer[1]
            error = KafkaError(KafkaError._TIMED_OUT)
        except KafkaException as exception:
            error = exception.args[0]
        if is_last or not is_transient(error):
            raise KafkaFailure(f"no offsets of {topic}[{partition}]: {error.str()}")
    raise AssertionError("unreachable: the last attempt returns or raises")


def attempts(wait_s: float, what: str) -> Iterator[bool]:
    """Yield whether this is the last attempt, five a second until `wait_s` seconds are over."""
    deadline = time.monotonic() + wait_s
    is_said = False
    while time.monotonic() < deadline:
        yield False
        if not is_said:
            log.warning("waiting up to %.0f s for %s", wait_s, what)
            is_said = True
        time.sleep(0.2)
    yield True
