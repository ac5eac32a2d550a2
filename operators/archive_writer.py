"""Writing the archive: one partition of one topic, from where its files end.

Reads   messages in order, and the names of the files that are there.
Emits   files.
Owns    when a file is cut and when files are merged, and what makes each message a row once.

Once, through any crash: a file is there whole or not at all, and a start goes on behind the last
offset that a file holds. What was read and not in a file yet is read again. Nothing else is kept.

A file is cut at the first message of a later hour, at so many bytes, and so long after its first
message was read. When the hour turns, the files of the hour before are merged. A start merges what
a crash kept from being merged, and removes what merged files cover.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final, NamedTuple

import orjson

from operators.archive_columns import Columns, Slice
from operators.archive_files import Place
from operators.archive_names import ArchiveFile, hour_of, visible
from operators.hops import RawMessage
from operators.metrics import ARCHIVE_BYTES, ARCHIVE_FILES, ARCHIVE_ROWS, ARCHIVE_WAITING

_MESSAGE_BYTES: Final = 200  # of a message in memory, beside its key and value


class Limits(NamedTuple):
    """When to cut, to merge and to remove; see `flows.settings.Archive` for the reasons."""

    file_bytes: int
    file_seconds: float
    merge_bytes: int
    keep_days: int = 0  # 0: for ever


class Standing(NamedTuple):
    """Where the files of a partition end.

    Attributes
    ----------
    generation
        Of the newest file.
    next_offset
        One past the last that is in a file; None where there is no file.
    topic_id
        Of the topic that the newest file was read from, None where the broker has none.
    clock
        The decoder's state behind it.
    """

    generation: int = 0
    next_offset: int | None = None
    topic_id: str | None = None
    clock: tuple[int, int] | None = None


def standing(place: Place, files: Iterable[ArchiveFile]) -> Standing:
    """Return where a partition's files end, given them all.

    Raises
    ------
    operators.archive_names.ArchiveError
        If the newest file cannot be read.
    """
    newest = max(files, key=lambda f: (f.generation, f.last, -f.first), default=None)
    if newest is None:
        return Standing()
    metadata = place.metadata(newest)
    clock_ms, set_ms = orjson.loads(metadata["clock"])
    topic_id = metadata["topic_id"] or None
    return Standing(newest.generation, newest.last + 1, topic_id, (clock_ms, set_ms))


class ArchiveWriter:
    """Writes one partition of one topic.

    Parameters
    ----------
    place
        Where to.
    topic
        The topic's own name.
    partition
        Its number.
    files
        The partition's files and their bytes.
    at
        Where they end; messages come from there on.
    topic_id
        Returns the id of the topic that messages now come from; None where the broker has none.
    limits
        See `Limits`.
    monotonic
        Clock in seconds.
    wall_ms
        The wall clock, ms since 1970. No file counts as newer than this where old ones are
        removed: one message dated far ahead would have them all go.
    may_write
        Called before anything is written; raises where another run has taken over.
    options
        Of `operators.archive_columns.Columns`.

    Notes
    -----
    Memory: `limits.file_bytes`, seven times that while a file is written, and twice
    `limits.merge_bytes` while files are merged; names of the files of one hour.

    Examples
    --------
    >>> place, limits = Place("memory://doctest-writer"), Limits(1 << 20, 60.0, 1 << 20)
    >>> def start():
    ...     files = place.files("push.events.v1", 0)
    ...     return ArchiveWriter(place, "push.events.v1", 0, files, standing(place, files),
    ...         topic_id=lambda: None, limits=limits, monotonic=lambda: 0.0,
    ...         wall_ms=lambda: 0)
    >>> def message(offset, hour):
    ...     return RawMessage("push.events.v1", 0, offset, b"u", b"{", hour * 3_600_000)
    >>> writer = start()
    >>> [f.last for f in writer.add([message(0, 7), message(2, 7), message(3, 8)])]
    [2]
    >>> standing(place, place.files("push.events.v1", 0)).next_offset  # 3 waits: a crash here
    3
    >>> writer = start()
    >>> writer.add([message(3, 8)]), [f.hour for f in writer.cut()]
    ([], ['1970-01-01T08'])
    """

    def __init__(
        self,
        place: Place,
        topic: str,
        partition: int,
        files: Mapping[ArchiveFile, int],
        at: Standing,
        *,
        topic_id: Callable[[], str | None],
        limits: Limits,
        monotonic: Callable[[], float],
        wall_ms: Callable[[], int],
        may_write: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> None:
        self._place, self._topic, self._partition = place, topic, partition
        self._get_topic_id, self._limits = topic_id, limits
        self._monotonic, self._wall_ms, self._may_write = monotonic, wall_ms, may_write
        self._options = options
        self._held: list[RawMessage] = []
        self._held_bytes = 0
        self._cut_at = 0.0
        self._hour = ""  # of what is held
        self._newest: dict[ArchiveFile, int] = {}  # the last files, as long as they are of one hour
        self._kinds = {k: ARCHIVE_FILES.labels(topic, k) for k in ("written", "merged", "removed")}
        self._rows, self._bytes = ARCHIVE_ROWS.labels(topic), ARCHIVE_BYTES.labels(topic)
        self._waiting = ARCHIVE_WAITING.labels(topic, str(partition))
        self._begin(at.generation, at.next_offset, at.clock)
        if None not in (self._topic_id, at.topic_id) and self._topic_id != at.topic_id:
            self._begin(at.generation + 1, None, None)
        self._tidy(files)

    def _begin(self, generation: int, first: int | None, clock: tuple[int, int] | None) -> None:
        self._generation, self._first, self._topic_id = generation, first, self._get_topic_id()
        self._columns = Columns(self._topic, self._partition, state=clock, **self._options)

    def add(self, messages: Sequence[RawMessage]) -> list[ArchiveFile]:
        """Take messages in order; return the files that were written."""
        written: list[ArchiveFile] = []
        for message in messages:
            if self._is_used_again(message.offset):
                written += self.cut()
                self._begin(self._generation + 1, message.offset, None)
            elif self._held and hour_of(message.timestamp_ms) > self._hour:
                written += self.cut()
            if self._first is None:
                self._first = message.offset
            if not self._held:
                self._hour = hour_of(message.timestamp_ms)
                self._cut_at = self._monotonic() + self._limits.file_seconds
            self._held.append(message)
            self._held_bytes += _MESSAGE_BYTES + len(message.key or b"") + len(message.value or b"")
            if self._held_bytes >= self._limits.file_bytes:
                written += self.cut()
        self._waiting.set(len(self._held))
        return written

    def _is_used_again(self, offset: int) -> bool:
        if self._held:
            return offset <= self._held[-1].offset
        return self._first is not None and offset < self._first

    def due(self) -> list[ArchiveFile]:
        """Return the files that were written because their time had come."""
        return self.cut() if self._held and self._monotonic() >= self._cut_at else []

    def cut(self) -> list[ArchiveFile]:
        """Write what is held, and return the files."""
        if not self._held:
            return []
        self._may_write()
        written = [self._write(piece) for piece in self._columns.tables(self._held)]
        self._held, self._held_bytes = [], 0
        self._waiting.set(0)
        return written

    def _write(self, piece: Slice) -> ArchiveFile:
        first, last = self._first or 0, piece.messages[-1].offset
        hour = hour_of(piece.messages[0].timestamp_ms)
        where = self._topic, self._partition, self._generation
        file = ArchiveFile(*where, first, last, hour)
        clock = orjson.dumps(piece.state).decode()
        metadata = {"topic_id": self._topic_id or "", "clock": clock}
        n_bytes = self._place.write(file, piece.table, metadata)
        self._first = last + 1
        self._kinds["written"].inc()
        self._rows.inc(len(piece.messages))
        self._bytes.inc(n_bytes)
        before = next(reversed(self._newest), None)
        if before is not None and before.hour != hour:
            self._merge(self._newest)
            self._newest = {}
            if before.hour[:10] != hour[:10]:
                self._expire(self._place.files(self._topic, self._partition), file)
        self._newest[file] = n_bytes
        return file

    def _tidy(self, files: Mapping[ArchiveFile, int]) -> None:
        """Finish what a crash kept from being done."""
        shown = [v.file for v in visible(files)]
        if not shown:
            return
        self._may_write()
        for covered in files.keys() - set(shown):
            self._remove(covered)
        n_newest = next(
            (n for n, file in enumerate(reversed(shown)) if file.hour != shown[-1].hour), len(shown)
        )
        self._merge({file: files[file] for file in shown[: len(shown) - n_newest]})
        self._newest = {file: files[file] for file in shown[len(shown) - n_newest :]}
        self._expire(files, shown[-1])

    def _merge(self, files: Mapping[ArchiveFile, int]) -> None:
        for group in _mergeable(files, self._limits.merge_bytes):
            schemas = [self._place.schema(file) for file in group]
            if all(schema.equals(schemas[0]) for schema in schemas):
                self._place.merge(group)
                self._kinds["merged"].inc(len(group))

    def _expire(self, files: Iterable[ArchiveFile], newest: ArchiveFile) -> None:
        """Remove what is too old, by the hour of the last file, which always stays."""
        if self._limits.keep_days:
            hour = min(newest.hour, hour_of(self._wall_ms()))
            end = datetime.fromisoformat(hour) - timedelta(days=self._limits.keep_days)
            for file in files:
                if file != newest and datetime.fromisoformat(file.hour) < end:
                    self._remove(file)

    def _remove(self, file: ArchiveFile) -> None:
        self._place.remove(file)
        self._kinds["removed"].inc()


def _mergeable(files: Mapping[ArchiveFile, int], max_bytes: int) -> Iterator[list[ArchiveFile]]:
    """Yield groups of adjacent files of one hour, each of at most `max_bytes` together.

    >>> def file(first, last, hour="2026-01-05T07"):
    ...     return ArchiveFile("t", 0, 0, first, last, hour)
    >>> sizes = {file(0, 1): 10, file(2, 3): 10, file(4, 5): 10, file(6, 7, "2026-01-05T08"): 1}
    >>> [[f.first for f in group] for group in _mergeable(sizes, 20)]
    [[0, 2]]
    """
    group: list[ArchiveFile] = []
    n_bytes = 0
    for before, file in pairwise([None, *files]):
        if file is None:
            continue
        fits = (
            before is not None
            and (before.generation, before.hour) == (file.generation, file.hour)
            and before.last + 1 == file.first
            and n_bytes + files[file] <= max_bytes
        )
        if not fits:
            if len(group) > 1:
                yield group
            group, n_bytes = [], 0
        group.append(file)
        n_bytes += files[file]
    if len(group) > 1:
        yield group
