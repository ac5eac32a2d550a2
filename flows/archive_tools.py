"""The archive held against the topics it was read from, and users erased from it.

Reads   both, message by message; push.erasures.v1.
Emits   counts and checksums by topic and partition; files without the erased users' rows.
Owns    which messages can be compared: those that are in a file, that the broker still has, and
        whose user was not erased since.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import pyarrow as pa

from flows.settings import Settings
from operators.archive_columns import KINDS
from operators.archive_files import Place
from operators.archive_names import ArchiveFile, gaps
from operators.archive_reader import Sums, read_partition
from operators.archive_writer import Standing, standing
from operators.codec import PartitionDecoder
from operators.kafka_tables import Reader
from operators.messages import TOPICS, Erasure

ERASURES: Final = "push.erasures.v1"

# A compacted topic forgets rows that were written over; the archive keeps them.
COMPARED: Final = tuple(name for name in KINDS if not TOPICS[name].is_compacted)


def names_of(url: str) -> dict[str, list[ArchiveFile]]:
    """Return the files that are there, by topic."""
    place = Place(url)
    return {topic: [*place.files(topic)] for topic in KINDS}


class Erased:
    """The users to forget, and up to when: by key, the newest timestamp of their erasures.

    >>> erased = Erased({b"u1": 2_000})
    >>> erased.covers(b"u1", 2_000), erased.covers(b"u1", 2_001), erased.covers(b"u2", 1)
    (True, False, False)
    """

    def __init__(self, until_ms: Mapping[bytes, int]) -> None:
        self._until_ms = until_ms

    @classmethod
    def read(cls, settings: Settings) -> "Erased":
        """Read push.erasures.v1 whole."""
        topic = settings.kafka.topic(ERASURES)
        reader = Reader(settings.kafka.client(), [topic])
        until_ms: dict[bytes, int] = {}
        decoder = PartitionDecoder(0, {topic: Erasure}, n_shards=1)
        try:
            for message in (message for batch in reader for message in batch):
                for shard in decoder.decode([message]).shards:
                    for _, entry in shard.entries:
                        key = entry.user_id.encode()
                        until_ms[key] = max(until_ms.get(key, 0), message.timestamp_ms)
        finally:
            reader.close()
        return cls(until_ms)

    def covers(self, key: bytes | None, timestamp_ms: int) -> bool:
        """Return whether a message is to be forgotten."""
        return key is not None and timestamp_ms <= self._until_ms.get(key, -2)

    def left(self, rows: pa.Table) -> pa.Table:
        """Return the rows that stay."""
        keys, times = (rows.column(name).to_pylist() for name in ("key", "timestamp_ms"))
        stays = [not self.covers(key, at) for key, at in zip(keys, times, strict=True)]
        return rows.filter(pa.array(stays, pa.bool_()))


def erase(settings: Settings) -> dict[str, int]:
    """Remove the rows of erased users from all files, and return how many by topic.

    Each file is read by its keys, and written anew where there is something to remove. A file that
    the flow merges at that moment may keep its rows: the next call finds them.
    """
    place, erased = Place(settings.archive.url), Erased.read(settings)
    return {
        topic: sum(
            place.rewrite(file, erased.left)
            for file in place.files(topic)
            if _has_erased(place, file, erased)
        )
        for topic in COMPARED
    }


def _has_erased(place: Place, file: ArchiveFile, erased: Erased) -> bool:
    try:
        tables = [*place.rows(file, columns=["key", "timestamp_ms"])]
    except FileNotFoundError:  # merged just now
        return False
    return any(erased.left(rows).num_rows < rows.num_rows for rows in tables)


class Compared(NamedTuple):
    """One partition, here and there.

    Attributes
    ----------
    n_topic, n_archive, topic_checksum, archive_checksum
        Of the offsets that can be compared.
    n_behind
        Messages of the topic that are in no file yet.
    n_older
        Rows of the archive that the broker has no longer.
    n_missing
        Offsets between two files that are in neither: a file was lost.
    """

    topic: str
    partition: int
    n_topic: int
    n_archive: int
    topic_checksum: int
    archive_checksum: int
    n_behind: int
    n_older: int
    n_missing: int

    @property
    def is_equal(self) -> bool:
        """Whether the archive holds what the topic holds."""
        ours = (self.n_archive, self.archive_checksum)
        return ours == (self.n_topic, self.topic_checksum) and not self.n_missing


def compare(
    settings: Settings,
    topic: str,
    erased: Erased,
) -> list[Compared]:
    """Return a topic's partitions beside their files; messages are read once, and none is kept.

    Raises
    ------
    operators.kafka_client.KafkaFailure, operators.archive_names.ArchiveError
        If one of the two cannot be read.
    """
    place = Place(settings.archive.url)
    reader = Reader(settings.kafka.client(), [settings.kafka.topic(topic)])
    try:
        n_partitions = reader.n_partitions(settings.kafka.topic(topic))
        files = [place.files(topic, number) for number in range(n_partitions)]
        ends = [standing(place, found) for found in files]
        lows: list[int | None] = [None] * n_partitions
        topic_sums, behind = [Sums()] * n_partitions, [0] * n_partitions
        for batch in reader:
            for message in batch:
                if erased.covers(message.key, message.timestamp_ms):
                    continue
                number = message.partition
                lows[number] = message.offset if lows[number] is None else lows[number]
                if message.offset < (ends[number].next_offset or 0):
                    topic_sums[number] = topic_sums[number].plus(
                        message.offset, message.key, message.value
                    )
                else:
                    behind[number] += 1
    finally:
        reader.close()
    compared = []
    for number in range(n_partitions):
        ours, n_older = _sums(place, topic, number, erased, at=ends[number], low=lows[number])
        theirs = topic_sums[number]
        missing = sum(after.first - before.last - 1 for before, after in gaps([*files[number]]))
        counts = (theirs.n, ours.n, theirs.checksum, ours.checksum)
        compared.append(Compared(topic, number, *counts, behind[number], n_older, missing))
    return compared


def _sums(
    place: Place, topic: str, partition: int, erased: Erased, *, at: Standing, low: int | None
) -> tuple[Sums, int]:
    """Return what the archive's rows from `low` on add up to, and how many lie before."""
    sums, n_older = Sums(), 0
    names = ["offset", "timestamp_ms", "key", "raw"]
    for rows in read_partition(place, topic, partition, names, at.generation):
        columns = (rows.column(name).to_pylist() for name in names)
        for offset, timestamp_ms, key, value in zip(*columns, strict=True):
            if erased.covers(key, timestamp_ms) or offset >= (at.next_offset or 0):
                continue
            if low is None or offset < low:
                n_older += 1
            else:
                sums = sums.plus(offset, key, value)
    return sums, n_older
