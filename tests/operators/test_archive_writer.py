"""The archive holds each message once: through crashes anywhere, merges, and two writers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.archive_files import Place
from operators.archive_names import ArchiveFile, ArchiveUnusable, gaps, visible
from operators.archive_reader import read_partition
from operators.archive_writer import ArchiveWriter, Limits, standing
from operators.codec import encode
from operators.hops import RawMessage
from tests.conftest import T0_MS, event

TOPIC = "push.events.v1"
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
SMALL = Limits(file_bytes=1_500, file_seconds=60.0, merge_bytes=1 << 20)


class Killed(Exception):
    """The writer's end."""


class MortalPlace(Place):
    """A place that dies before or after its n-th change."""

    def __init__(self, url: str, n_changes: int) -> None:
        super().__init__(url)
        self._left = n_changes

    def _change(self, change: Callable[[], Any]) -> Any:
        self._left -= 1
        if self._left == 0:
            raise Killed
        done = change()
        self._left -= 1
        if self._left == 0:
            raise Killed
        return done

    def _put(self, file: ArchiveFile, data: memoryview) -> int:
        return self._change(lambda: super(MortalPlace, self)._put(file, data))  # type: ignore[no-any-return]

    def _remove(self, path: str) -> None:
        self._change(lambda: super(MortalPlace, self)._remove(path))


def messages(n: int = 60, hours: int = 3, first: int = 0) -> list[RawMessage]:
    """Return messages over some hours; transactions took every third offset."""
    found = []
    for number in range(n):
        time_ms = T0_MS + number * hours * HOUR_MS // n
        value = encode(event(f"e{number}", f"u{number % 3}", time_ms=time_ms))
        offset = first + number + number // 2
        found.append(RawMessage(TOPIC, 0, offset, b"u", value, time_ms))
    return found


def start(place: Place, **changes: Any) -> ArchiveWriter:
    """Begin behind the files that are there."""
    place.sweep(TOPIC, 0)
    files = place.files(TOPIC, 0)
    options = {
        "topic_id": lambda: "t1",
        "limits": SMALL,
        "monotonic": lambda: 0.0,
        "wall_ms": lambda: T0_MS + 30 * DAY_MS,
        **changes,
    }
    return ArchiveWriter(place, TOPIC, 0, files, standing(place, files), **options)


def run(place: Place, sent: list[RawMessage], **changes: Any) -> None:
    """Write what is not in a file yet, poll by poll."""
    begin = standing(place, place.files(TOPIC, 0)).next_offset or 0
    writer = start(place, **changes)
    own = [message for message in sent if message.offset >= begin]
    for at in range(0, len(own), 7):
        writer.add(own[at : at + 7])
    writer.cut()


def rows(place: Place) -> list[tuple[int, bytes]]:
    """Return (offset, value) of each row."""
    return [
        row
        for table in read_partition(place, TOPIC, 0, ["raw"])
        for row in zip(
            table.column("offset").to_pylist(), table.column("raw").to_pylist(), strict=True
        )
    ]


def pairs(sent: list[RawMessage]) -> list[tuple[int, bytes | None]]:
    """Return what should be read of messages."""
    return [(message.offset, message.value) for message in sent]


def test_the_files_of_an_hour_become_one_when_it_is_over(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    run(place, messages())

    by_hour: dict[str, int] = {}
    for file in place.files(TOPIC):
        by_hour[file.hour] = by_hour.get(file.hour, 0) + 1
    *over, newest = sorted(by_hour)
    assert [by_hour[hour] for hour in over] == [1, 1, 1]
    assert newest == "2023-11-15T01"
    assert gaps([*place.files(TOPIC)]) == []
    assert rows(place) == pairs(messages())


def test_a_crash_before_or_after_any_change_keeps_each_row_once() -> None:
    sent = messages(24)
    n_crashes, done = 0, False
    while not done:
        n_crashes += 1
        url = f"memory://test-crash-{n_crashes}"
        done = True
        for _ in range(2):  # and another one in what comes after it
            try:
                run(MortalPlace(url, n_crashes), sent)
            except Killed:
                done = False
        run(Place(url), sent)
        assert rows(Place(url)) == pairs(sent)
        assert gaps([*Place(url).files(TOPIC)]) == []

    assert n_crashes > 30


def test_two_writers_at_once_keep_each_row_once(tmp_path: Path) -> None:
    sent = messages()
    place = Place(str(tmp_path))
    cut_off, successor = start(place), start(place, limits=SMALL._replace(file_bytes=2_300))

    for at in range(0, len(sent), 4):
        cut_off.add(sent[at : at + 4])
        if at >= 8:
            successor.add(sent[at - 8 : at - 4])
    successor.add(sent[-8:])
    successor.cut()
    assert rows(place) == pairs(sent)

    start(place)  # removes what is covered
    assert rows(place) == pairs(sent)


def test_reading_goes_on_where_files_were_merged_away(tmp_path: Path) -> None:
    sent = messages()
    place = Place(str(tmp_path))
    run(place, sent, limits=SMALL._replace(merge_bytes=1))  # nothing is merged
    n_files = len(place.files(TOPIC))

    tables = read_partition(place, TOPIC, 0, ["raw"])
    found = next(tables).column("offset").to_pylist()
    start(place)  # merges
    n_merged = len(place.files(TOPIC))
    found += [offset for table in tables for offset in table.column("offset").to_pylist()]

    assert n_merged < n_files
    assert found == [message.offset for message in sent]


def test_a_message_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    now = 0.0
    writer = start(Place(str(tmp_path)), monotonic=lambda: now)
    writer.add(messages(2, hours=1))

    now = 59.0
    assert writer.due() == []
    now = 60.0
    assert [(file.first, file.last) for file in writer.due()] == [(0, 1)]
    assert writer.due() == []


def test_a_late_message_lies_with_those_it_came_with(tmp_path: Path) -> None:
    early, late = messages(2, hours=2)
    place = Place(str(tmp_path))
    writer = start(place)
    writer.add([late._replace(offset=0), early._replace(offset=1)])
    writer.cut()

    assert [file.hour for file in place.files(TOPIC)] == ["2023-11-14T23"]


def test_offsets_that_are_used_again_are_of_another_generation(tmp_path: Path) -> None:
    sent, lost = messages(30), messages(30)[-10:]
    again = [message._replace(value=encode(event("again"))) for message in lost]
    place = Place(str(tmp_path))
    writer = start(place)
    writer.add(sent)
    writer.add(again)  # the broker has lost ten, and gives out their offsets again
    writer.cut()

    assert rows(place) == pairs(sent) + pairs(again)
    assert standing(place, place.files(TOPIC, 0)).generation == 1


def test_a_topic_made_anew_is_read_from_its_start(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    run(place, messages(20))
    anew = start(place, topic_id=lambda: "t2")
    anew.add(messages(5))
    anew.cut()

    assert rows(place) == pairs(messages(20)) + pairs(messages(5))
    found = standing(place, place.files(TOPIC, 0))
    assert (found.generation, found.next_offset, found.topic_id) == (1, 7, "t2")


def test_old_files_go_and_the_newest_stays(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    run(place, messages(24, hours=24 * 6), limits=SMALL._replace(keep_days=2))
    dates = {file.hour[:10] for file in place.files(TOPIC)}
    start(place, limits=SMALL._replace(keep_days=2))

    assert sorted(dates) == ["2023-11-18", "2023-11-19", "2023-11-20"]
    assert standing(place, place.files(TOPIC, 0)).next_offset == messages(24)[-1].offset + 1


def test_a_message_dated_far_ahead_makes_nothing_old(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    limits = SMALL._replace(keep_days=2)
    sent = messages(12)
    ahead = sent[-1]._replace(offset=100, timestamp_ms=1 << 62)
    behind = sent[-1]._replace(offset=101)
    writer = start(place, limits=limits, wall_ms=lambda: T0_MS + DAY_MS)
    writer.add([*sent, ahead])
    writer.cut()
    writer.add([behind])
    writer.cut()

    assert rows(place) == pairs([*sent, ahead, behind])
    assert {file.hour for file in place.files(TOPIC)} > {"2100-01-01T00", "2023-11-14T22"}


def test_a_torn_file_is_named_and_what_a_crash_left_is_swept(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    run(place, messages(3, hours=1))
    [file] = place.files(TOPIC)
    path = tmp_path / file.path
    left = path.with_name(f".{path.name}.77.unfinished")
    left.write_bytes(b"PAR1")
    start(place)
    assert not left.exists()

    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArchiveUnusable, match=path.name):
        start(place)


def test_an_object_store_holds_the_same(tmp_path: Path) -> None:
    local, remote = Place(str(tmp_path)), Place("memory://test-archive")
    for place in (local, remote):
        run(place, messages())

    assert local.files(TOPIC) == remote.files(TOPIC)
    assert rows(local) == rows(remote)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), max_size=12))
def test_whatever_files_overlap_each_offset_is_taken_once(spans: list[tuple[int, int]]) -> None:
    files = [ArchiveFile("t", 0, 0, first, first + n, "2026-01-05T07") for first, n in spans]

    taken = [offset for v in visible(files) for offset in range(v.begin, v.file.last + 1)]

    assert taken == sorted({o for file in files for o in range(file.first, file.last + 1)})
