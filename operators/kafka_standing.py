"""What stands in a partition beyond a snapshot, so that a replay does not write it again.

Reads   committed records alone: what an aborted transaction held must be written again.
Owns    two rules for a record that is replayed: once each by its id, or never an older version.

A record carries its id as the header `ce_id`. Where an id ends with ":" and a number, the number
is the version of what comes before it.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Protocol

from confluent_kafka import Consumer, KafkaError, TopicPartition

from operators.kafka_client import ErrorLog, consumer_settings, log, take

ID_HEADER = "ce_id"  # CloudEvents: where a record carries its id
RecoverFrom = Literal["earliest"] | int

_POLL_SECONDS = 0.2


class Standing(Protocol):
    """What a writer found in its partition."""

    reads_all: bool  # with no snapshot to begin at: the partition, or nothing

    def note(self, record_id: bytes) -> None:
        """Take the id of a record that stands there."""
        ...

    def withholds(self, record_id: str, value: bytes | None) -> bool:
        """Say whether a record must not be written, for what stands there is as good or newer."""
        ...

    def __len__(self) -> int: ...


class Ids:
    """Withholds each record that stands there, once.

    Notes
    -----
    About 130 bytes for each id, until it is replayed.

    Examples
    --------
    >>> ids = Ids()
    >>> ids.note(b"d1")
    >>> ids.withholds("d1", b""), ids.withholds("d2", b""), len(ids)
    (True, False, 0)
    """

    reads_all = True

    def __init__(self) -> None:
        self._ids: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._ids)

    def note(self, record_id: bytes) -> None:
        """Take the id of a record that stands there."""
        self._ids.add(record_id)

    def withholds(self, record_id: str, value: bytes | None) -> bool:
        """Say whether the id stands there; it is forgotten then."""
        if not self._ids or (found := record_id.encode()) not in self._ids:
            return False
        self._ids.discard(found)
        return True


class Versions:
    """Withholds a row that is older than the one that stands there, so that no table goes back.

    A row of the same version is written again: a late event changes an item's row, and not its
    version. So is a removal, which has no version.

    Notes
    -----
    About 200 bytes for each key beyond the snapshot, until the replay has caught up with it.
    With no snapshot nothing is withheld: a learner that begins anew has its versions to itself.

    Examples
    --------
    >>> rows = Versions()
    >>> rows.note(b"p0:7")
    >>> rows.withholds("p0:6", b""), rows.withholds("p1:6", b""), rows.withholds("p0:0", None)
    (True, False, False)
    >>> rows.withholds("p0:7", b""), len(rows)
    (False, 0)
    """

    reads_all = False

    def __init__(self) -> None:
        self._newest: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._newest)

    def note(self, record_id: bytes) -> None:
        """Take the id of a row that stands there."""
        key, _, version = record_id.decode().rpartition(":")
        self._newest[key] = max(self._newest.get(key, 0), int(version))

    def withholds(self, record_id: str, value: bytes | None) -> bool:
        """Say whether a newer version stands there; a key is forgotten once it is caught up."""
        key, _, version = record_id.rpartition(":")
        if value is None or key not in self._newest:
            return False
        if int(version) < self._newest[key]:
            return True
        del self._newest[key]
        return False


def first_to_read(
    place: str, low: int, end: int, resume: int | None, recover_from: RecoverFrom
) -> int:
    """Return the offset where what no snapshot knows of begins.

    Parameters
    ----------
    place
        "topic[partition]", for the log.
    low, end
        Offsets that there are.
    resume
        Next offset as of the snapshot; None where there is no snapshot.
    recover_from
        Without `resume`: all, or the newest n offsets.

    Examples
    --------
    >>> first_to_read("t[0]", 2, 9, 5, "earliest"), first_to_read("t[0]", 2, 9, None, 3)
    (5, 6)
    """
    if resume is None:
        return low if recover_from == "earliest" else max(low, end - recover_from)
    if not low <= resume <= end:
        log.warning(
            "%s: offset %d of the snapshot is gone (there are %d to %d): records may be written "
            "twice",
            *(place, resume, low, end),
        )
    return max(low, resume)


def read_to_end(
    consumer: Consumer, client: Mapping[str, Any], begins: Iterable[TopicPartition]
) -> Iterator[Any]:
    """Yield all committed messages of some partitions, each from its offset to its end.

    `consumer` has the settings of `reader_settings`. An open transaction ends its partition.
    """
    errors = ErrorLog(client)
    places = list(begins)
    unread = {(place.topic, place.partition) for place in places}
    consumer.assign(places)
    while unread:
        for message in take(consumer, 1_000, _POLL_SECONDS):
            error = message.error()
            if error is None:
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                unread.discard((message.topic(), message.partition()))
            else:
                errors.wait_out(f"{message.topic()}[{message.partition()}]", error)


def reader_settings(client: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a consumer that reads what stands in a partition."""
    return consumer_settings(client, {"auto.offset.reset": "earliest"}) | {
        "isolation.level": "read_committed"
    }


def id_of(message: Any) -> bytes | None:
    """Return a record's id, None where it has none."""
    return next((value for name, value in message.headers() or () if name == ID_HEADER), None)
