"""What the archive's files are called, and which rows of them count.

Emits   paths; the order in which files are read.
Owns    the names, and the rule by which files that overlap hold each row once.

    <root>/<topic>/date=2026-01-05/hour=07/<partition>.<generation>-<first>-<last>.parquet

A file holds all messages of one partition from offset `first` to `last`, both inside. `first` is
one past the `last` of the file before it, whatever offsets transactions took in between, so a file
that is missing shows in the names. The hour is that of the file's first row, by the message's
timestamp in UTC; a row that came late lies with those that it came with. A topic that was made
anew, or that lost offsets we had read, uses offsets again: its files are of the next *generation*.

**The names are the state.** There is no list and no offset beside them, so nothing can disagree
with them after a crash: who writes goes on behind the highest `last`.

**Files may overlap** for a moment or for ever: a merged file beside those it replaces, a writer
that was cut off beside its successor. What a message says does not change, so the rule takes each
offset from one file only: go through the files by `first`, the longest first, and take of each the
rows behind those already taken. A file that adds none is *covered*, and may go.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final, NamedTuple

_NAME: Final = re.compile(
    r"date=(\d{4}-\d\d-\d\d)/hour=(\d\d)/(\d+)\.(\d+)-(\d+)-(\d+)\.parquet$", re.ASCII
)

_LAST_MS: Final = 4_102_444_800_000  # 2100, the last that an event may be dated


class ArchiveError(RuntimeError):
    """The archive cannot be read or written just now: try again."""


class ArchiveUnusable(ArchiveError):
    """The archive cannot be used, and waiting does not help; the message says what does."""


class ArchiveFile(NamedTuple):
    """One file, by what its name says.

    >>> file = ArchiveFile("push.events.v1", 3, 0, 5, 17, "2026-01-05T07")
    >>> file.path
    'push.events.v1/date=2026-01-05/hour=07/3.0-0000000000000005-0000000000000017.parquet'
    >>> parse(file.topic, "bucket/" + file.path) == file
    True
    """

    topic: str
    partition: int
    generation: int
    first: int
    last: int
    hour: str  # "2026-01-05T07", UTC

    @property
    def path(self) -> str:
        """Below the archive's root."""
        date, _, hour = self.hour.partition("T")
        name = f"{self.partition}.{self.generation}-{self.first:016d}-{self.last:016d}.parquet"
        return f"{self.topic}/date={date}/hour={hour}/{name}"


def parse(topic: str, path: str) -> ArchiveFile | None:
    """Return what a path says, None where it is no file of ours."""
    found = _NAME.search(path)
    if found is None:
        return None
    date, hour = found.group(1, 2)
    partition, generation, first, last = map(int, found.group(3, 4, 5, 6))
    return ArchiveFile(topic, partition, generation, first, last, f"{date}T{hour}")


def hour_of(timestamp_ms: int) -> str:
    """Return the hour that a file belongs to, given its first message's timestamp.

    Producers may stamp a message as they like: what lies outside is of the first or the last hour.

    >>> hour_of(1_767_571_200_000), hour_of(-1), hour_of(1 << 62)
    ('2026-01-05T00', '1970-01-01T00', '2100-01-01T00')
    """
    within_ms = min(max(timestamp_ms, 0), _LAST_MS)
    return datetime.fromtimestamp(within_ms / 1_000, UTC).strftime("%Y-%m-%dT%H")


class Visible(NamedTuple):
    """A file, and the first of its offsets that no file before it holds."""

    file: ArchiveFile
    begin: int


def visible(files: Iterable[ArchiveFile]) -> list[Visible]:
    """Return the files that add rows, of one topic, in the order of their rows.

    >>> def file(first, last):
    ...     return ArchiveFile("t", 0, 0, first, last, "2026-01-05T07")
    >>> found = visible([file(0, 4), file(5, 9), file(0, 9), file(8, 12)])
    >>> [(v.file.first, v.file.last, v.begin) for v in found]
    [(0, 9, 0), (8, 12, 10)]
    """
    found: list[Visible] = []
    place, begin = (-1, -1), 0
    for file in sorted(files, key=lambda f: (f.partition, f.generation, f.first, -f.last)):
        if (file.partition, file.generation) != place:
            place, begin = (file.partition, file.generation), 0
        if file.last >= begin:
            found.append(Visible(file, max(file.first, begin)))
            begin = file.last + 1
    return found


def gaps(files: Sequence[ArchiveFile]) -> list[tuple[ArchiveFile, ArchiveFile]]:
    """Return the pairs of visible files between which offsets are missing."""
    found = [v.file for v in visible(files)]
    return [
        (before, after)
        for before, after in pairwise(found)
        if (before.partition, before.generation) == (after.partition, after.generation)
        and after.first > before.last + 1
    ]
