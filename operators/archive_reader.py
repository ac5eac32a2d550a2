"""Reading the archive: every row once, while files are written and merged.

Reads   files of `operators.archive_names`.
Emits   Arrow tables of one partition in the order of its messages; sums to hold against a broker.
Owns    how a reader goes on when a file was merged away under it, and the checksum of messages.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import xxhash

from operators.archive_files import Place
from operators.archive_names import visible
from operators.hops import RawMessage

_MASK = (1 << 64) - 1


def partitions(place: Place, topic: str) -> list[int]:
    """Return the partitions that a topic has files of."""
    return sorted({file.partition for file in place.files(topic)})


def read_partition(
    place: Place,
    topic: str,
    partition: int,
    columns: Sequence[str] | None = None,
    generation: int | None = None,
) -> Iterator[pa.Table]:
    """Yield a partition's rows in order, a row group at a time.

    Parameters
    ----------
    place
        Of the archive.
    topic
        The topic's own name.
    partition
        Its number.
    columns
        Those wanted beside "offset"; None: all.
    generation
        Only this one; None: all, one after another.

    Notes
    -----
    A file that is gone has been merged into one that holds the same offsets: the names are read
    again, and reading goes on behind the last row that was given out.

    Examples
    --------
    >>> from operators.archive_names import ArchiveFile
    >>> place = Place("memory://doctest-reader")
    >>> for first, last in ((0, 1), (2, 3), (0, 3)):  # merged, and a crash before the removal
    ...     file = ArchiveFile("t", 0, 0, first, last, "2026-01-05T07")
    ...     n_bytes = place.write(file, pa.table({"offset": list(range(first, last + 1))}))
    >>> [rows.column("offset").to_pylist() for rows in read_partition(place, "t", 0)]
    [[0, 1, 2, 3]]
    """
    done = (-1, -1)  # generation and offset of the last row given out
    while True:
        shown = [
            v
            for v in visible(place.files(topic, partition))
            if generation in (None, v.file.generation) and (v.file.generation, v.file.last) > done
        ]
        try:
            for file, first in shown:
                begin = max(first, done[1] + 1) if file.generation == done[0] else first
                for rows in place.rows(file, begin, columns):
                    yield rows
                    done = (file.generation, rows.column("offset")[-1].as_py())
                done = (file.generation, file.last)
        except FileNotFoundError:
            continue
        return


class Sums(NamedTuple):
    """What a stretch of a partition adds up to, in whatever order it is read.

    `checksum` is the sum of xxh3 of each message's offset, key and value, modulo 2^64.

    >>> messages = [RawMessage("t", 0, n, b"u", value, 0) for n, value in enumerate((b"a", b"b"))]
    >>> sums_of(messages) == sums_of(reversed(messages)) != sums_of(messages[:1])
    True
    """

    n: int = 0
    checksum: int = 0

    def plus(self, offset: int, key: bytes | None, value: bytes | None) -> "Sums":
        """Return the sums with one message more."""
        digest = xxhash.xxh3_64(offset.to_bytes(8, "little"))
        for part in (key, value):
            digest.update(b"\x00" if part is None else b"\x01" + len(part).to_bytes(4, "little"))
            digest.update(part or b"")
        return Sums(self.n + 1, (self.checksum + digest.intdigest()) & _MASK)


def sums_of(messages: Iterator[RawMessage] | Sequence[RawMessage]) -> Sums:
    """Return the sums of messages as they came from a broker."""
    sums = Sums()
    for message in messages:
        sums = sums.plus(message.offset, message.key, message.value)
    return sums
