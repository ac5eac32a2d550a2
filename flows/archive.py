"""`archive`: the stream into Parquet files, for training.

Reads   push.decisions.v1, push.feedback.v1, push.events.v1 and push.items.v1, each by itself.
Emits   files of `operators.archive_names`, at `archive.url`.

    decisions ─┐
    feedback  ─┼─> files -> written
    events    ─┤
    items     ─┘

A source writes the files itself, and hands on what it has written, to be told of. So one thing
alone decides where it goes on: the files that are there. Bytewax spreads the partitions over the
processes; its snapshots say nothing.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import Source, StatefulSourcePartition
from bytewax.outputs import Sink

from flows.settings import Archive, Settings
from operators.archive_columns import KINDS
from operators.archive_files import Place
from operators.archive_names import ArchiveFile
from operators.archive_writer import ArchiveWriter, Limits, Standing, standing
from operators.hops import RawMessage
from operators.kafka import CopartitionedSource
from operators.lineage import Fenced, owner_of
from operators.steps import CallSink

log = logging.getLogger("pushflow")

TOPICS: Final = tuple(KINDS)
_SECOND_MS: Final = 1_000


def build(sources: dict[str, Source], written: Sink) -> Dataflow:
    """Connect the steps; `sources` by step id give `ArchiveFile`s, once they are there."""
    flow = Dataflow("archive")
    streams = [op.input(step_id, flow, source) for step_id, source in sources.items()]
    op.output("written", op.merge("files", *streams), written)
    return flow


class Messages:
    """A decoder that leaves a poll's messages as they are."""

    def decode(self, messages: list[RawMessage]) -> list[RawMessage]:
        """Return the messages."""
        return messages

    def snapshot(self) -> None:
        """Return nothing: there is no state."""


class ArchiveSource(CopartitionedSource[list[RawMessage]]):
    """Reads one topic behind what is in its files, and writes the files.

    Parameters
    ----------
    settings
        Of the cluster, the archive, and of event time.
    topic
        The topic's own name.
    stop_at_end
        End where the topic ended at the start.

    Notes
    -----
    A file's bytes are written on the flow's thread: reading waits for them.
    """

    def __init__(self, settings: Settings, topic: str, *, stop_at_end: bool = False) -> None:
        self._settings, self._topic = settings, topic
        self._place = Place(settings.archive.url)
        super().__init__(
            settings.kafka.client(),
            [settings.kafka.topic(topic)],
            make_decoder=lambda partition, state: Messages(),
            batch_size=settings.kafka.batch_size,
            stop_at_end=stop_at_end,
        )

    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> "_ArchivePart":
        """Begin behind the partition's files, whatever a snapshot says."""
        partition = int(for_part)
        self._place.sweep(self._topic, partition)
        files = self._place.files(self._topic, partition)
        at = standing(self._place, files)
        name = self._settings.kafka.topic(self._topic)
        positions = () if at.next_offset is None else ((name, at.next_offset, at.topic_id),)
        reader = super().build_part(step_id, for_part, (positions, None))
        return _ArchivePart(reader, self._writer(partition, files, at, lambda: _id_of(reader)))

    def _writer(
        self,
        partition: int,
        files: dict[ArchiveFile, int],
        at: Standing,
        topic_id: Callable[[], str | None],
    ) -> ArchiveWriter:
        times = self._settings.time
        return ArchiveWriter(
            self._place,
            self._topic,
            partition,
            files,
            at,
            topic_id=topic_id,
            limits=limits(self._settings.archive),
            monotonic=time.monotonic,
            wall_ms=lambda: time.time_ns() // 1_000_000,
            may_write=lambda: check_owner(self._settings),
            lateness_ms=times.lateness_seconds * _SECOND_MS,
            max_ahead_ms=times.max_ahead_seconds * _SECOND_MS,
        )


class _ArchivePart(StatefulSourcePartition):
    """A reader and the writer behind it."""

    def __init__(self, reader: Any, writer: ArchiveWriter) -> None:
        self._reader, self._writer = reader, writer

    def next_batch(self) -> list[ArchiveFile]:
        """Read, and return the files that were written; at the end all that is held is."""
        try:
            polls = self._reader.next_batch()
        except StopIteration:
            self._writer.cut()
            raise
        written = [file for messages in polls for file in self._writer.add(messages)]
        return written + self._writer.due()

    def snapshot(self) -> None:
        """Return nothing: the files say where to go on."""

    def close(self) -> None:
        """Leave the broker; what is held is read again."""
        self._reader.close()


def _id_of(reader: Any) -> str | None:
    ((_topic, _offset, topic_id),), _ = reader.snapshot()
    found: str | None = topic_id
    return found


def limits(archive: Archive) -> Limits:
    """Return the settings in bytes."""
    return Limits(
        file_bytes=archive.file_mb << 20,
        file_seconds=archive.file_seconds,
        merge_bytes=archive.merge_mb << 20,
        keep_days=archive.retention_days,
    )


def check_owner(settings: Settings) -> None:
    """Raise `Fenced` where another run has taken over; two at once would do the work twice."""
    owner = owner_of(settings.state.directory / "archive" / "owner")
    if owner != settings.run_id:
        raise Fenced(f"{owner} archives by now, not {settings.run_id}")


def _tell(files: list[ArchiveFile]) -> None:
    for file in files:
        log.debug("%s", file.path)


def from_settings(settings: Settings, *, stop_at_end: bool = False) -> Dataflow:
    """Return the flow with its real ends."""
    sources: dict[str, Source] = {
        topic.split(".")[1]: ArchiveSource(settings, topic, stop_at_end=stop_at_end)
        for topic in TOPICS
    }
    return build(sources, CallSink(_tell))
