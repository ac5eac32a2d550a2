"""Replay: recorded data sent to Kafka, at the speed of its own clock or as fast as it goes.

Reads   a `flows.recorded.Recording`.
Emits   its items and users, then its events, to the topics of a cluster.
Owns    the pace, the range of time, the progress bar and the totals.

The timestamp of a message is its event time (Kafka's CreateTime): `learn` merges topics by it.
One thing follows: a broker counts retention by these timestamps, and deletes old events within
minutes. So `decide` and `learn` should run before the replay, or the topics be kept for ever.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from flows.recorded import Record, Recording
from operators.kafka_sink import Writer
from operators.messages import TOPICS

_REFRESH: Final = 1_000  # records between two updates of the bar: each update costs 30 us


class Pace(NamedTuple):
    """Which part of a recording is sent, and how fast.

    `speed` is seconds of event time a second of ours, 3,600 being an hour a second; 0 is as fast
    as it goes. `from_ms` is inside the range, `until_ms` outside. A record whose time cannot be
    read is always in the range. `limit` counts events.
    """

    speed: float = 0.0
    limit: int | None = None
    from_ms: int | None = None
    until_ms: int | None = None


ALL: Final = Pace()


class Totals(NamedTuple):
    """What was sent. `sent` counts events."""

    sent: int
    seconds: float
    events_per_second: float
    items: int
    users: int


def parse_time(text: str) -> int:
    """Return a date or a time, UTC unless it says otherwise, as ms since 1970.

    >>> parse_time("2011-03-01"), parse_time("2011-03-01T01:00:00+01:00")
    (1298937600000, 1298937600000)
    """
    moment = datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1_000)


def choose(records: Iterator[Record], pace: Pace) -> Iterator[Record]:
    """Yield the records within the range of time, at most `limit` of them.

    >>> rows = [Record("t", "", b"", ms) for ms in (1_000, 2_000, 0, 3_000)]
    >>> [r.time_ms for r in choose(iter(rows), Pace(from_ms=2_000, until_ms=3_000))]
    [2000, 0]
    """
    n_left = -1 if pace.limit is None else pace.limit
    for record in records:
        if n_left == 0:
            return
        at = record.time_ms
        if at and pace.from_ms is not None and at < pace.from_ms:
            continue
        if at and pace.until_ms is not None and at >= pace.until_ms:
            continue
        n_left -= 1
        yield record


class Pacer:
    """Says how long to wait until a moment of event time is due.

    Parameters
    ----------
    speed
        Seconds of event time a second, >= 0; 0 never waits.
    clock
        Monotonic seconds.

    Examples
    --------
    >>> now = iter([100.0, 100.5])
    >>> pacer = Pacer(3_600, lambda: next(now))
    >>> pacer.wait_seconds(0)  # the first moment starts the clock
    0.0
    >>> pacer.wait_seconds(3_600_000)  # an hour later is due after a second; half of it is over
    0.5
    """

    def __init__(self, speed: float, clock: Callable[[], float] = time.monotonic) -> None:
        if speed < 0:
            raise ValueError(f"speed must be 0 or more, got {speed}")
        self._speed = speed
        self._clock = clock
        self._start: tuple[int, float] | None = None

    def wait_seconds(self, time_ms: int) -> float:
        """Return the seconds from now until `time_ms` is due, 0 where it is past."""
        if not self._speed:
            return 0.0
        now = self._clock()
        if self._start is None:
            self._start = time_ms, now
        first_ms, first = self._start
        due = first + (time_ms - first_ms) / 1_000 / self._speed
        return max(0.0, due - now)


def replay(
    recording: Recording,
    writer: Writer,
    topics: Mapping[str, str],
    pace: Pace = ALL,
    console: Console | None = None,
) -> Totals:
    """Send a recording and return what was sent; all of it is delivered by then.

    Items and users are delivered before the first event, for `decide` reads them first.
    `topics` gives the cluster's name of every topic, as `Settings.topics` does.
    """
    console = console or Console(stderr=True)
    began = time.monotonic()
    for record in (*recording.items, *recording.users):
        writer.send(topics[record.topic], record.key, record.value)
    writer.flush()
    n_sent = _send_events(recording, writer, topics, pace, console)
    writer.flush()
    seconds = time.monotonic() - began
    rate = round(n_sent / seconds, 1) if seconds else 0.0
    return Totals(n_sent, round(seconds, 3), rate, len(recording.items), len(recording.users))


def _send_events(
    recording: Recording, writer: Writer, topics: Mapping[str, str], pace: Pace, console: Console
) -> int:
    pacer = Pacer(pace.speed)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    n_sent, time_ms = 0, 0
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("0 events", total=None)
        for record in choose(recording.events(), pace):
            time_ms = record.time_ms or time_ms  # one without a time goes with the one before
            if n_sent == 0:
                _warn_if_old(record, console)
            if wait := pacer.wait_seconds(time_ms):
                _show(progress, task, n_sent, time_ms)
                time.sleep(wait)
            topic = topics[record.topic]
            writer.send(topic, record.key, record.value, timestamp_ms=time_ms)
            n_sent += 1
            if n_sent % _REFRESH == 0:
                _show(progress, task, n_sent, time_ms)
        _show(progress, task, n_sent, time_ms)
    return n_sent


def _show(progress: Progress, task: TaskID, n_sent: int, time_ms: int) -> None:
    day = datetime.fromtimestamp(time_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M")
    progress.update(task, description=f"{n_sent:,} events, event time {day} UTC")


def _warn_if_old(record: Record, console: Console) -> None:
    retention_ms = TOPICS[record.topic].retention_ms
    is_old = 0 < record.time_ms < time.time() * 1_000 - retention_ms
    if retention_ms > 0 and is_old:
        console.print(
            f"[yellow]These events are older than the {retention_ms // 86_400_000} days that"
            f" {record.topic} is kept: a real broker deletes them within minutes. Have decide and"
            " learn run first, or set retention.ms=-1 on the topics."
        )
