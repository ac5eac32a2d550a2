"""Killed at any moment, `archive` keeps each message once."""

import os
import signal
from collections import defaultdict
from pathlib import Path

import pytest
from bytewax.testing import run_main

from flows.archive import from_settings
from flows.archive_tools import COMPARED, Erased, compare, erase
from flows.settings import Archive, Settings, State
from operators.archive_files import Place
from operators.archive_names import visible
from operators.archive_reader import partitions, read_partition
from operators.codec import encode
from operators.hops import RawMessage
from operators.lineage import write_atomic
from operators.messages import Erasure
from tests.system.harness import DECISIONS, EVENTS, PACE, Case, Stage, by_id, moments, wait
from tests.system.learned import answers

pytestmark = [pytest.mark.system, pytest.mark.slow]

Rows = dict[tuple[str, int], list[tuple[bytes | None, bytes | None]]]


NOBODY = Erased({})


@pytest.fixture
def archive(tmp_path: Path) -> dict[str, str]:
    """Settings of an archive that is often in the middle of a file."""
    return {
        "PUSHFLOW_ARCHIVE__URL": str(tmp_path / "archive"),
        "PUSHFLOW_ARCHIVE__FILE_SECONDS": "0.3",
        "PUSHFLOW_KAFKA__BATCH_SIZE": "100",
    }


def settings_of(stage: Stage, archive: dict[str, str]) -> Settings:
    """Return the settings that the children have, as far as the archive goes."""
    changes = {
        "archive": Archive(url=archive["PUSHFLOW_ARCHIVE__URL"]),
        "state": State(directory=stage.state),
        "run_id": "here",
    }
    return stage.settings.model_copy(update=changes)


def archive_here(of: Settings) -> None:
    """Archive what is left, in this process."""
    home = of.state.directory / "archive"
    home.mkdir(parents=True, exist_ok=True)
    write_atomic(home / "owner", f"{of.run_id}\n")
    run_main(from_settings(of, stop_at_end=True))


def sent(messages: list[RawMessage]) -> Rows:
    """Return what was sent, by topic and partition."""
    rows: Rows = defaultdict(list)
    for message in messages:
        rows[message.topic, message.partition].append((message.key, message.value))
    return rows


def kept(archive: dict[str, str], topics: set[str]) -> Rows:
    """Return what the archive holds, by topic and partition."""
    place = Place(archive["PUSHFLOW_ARCHIVE__URL"])
    rows: Rows = defaultdict(list)
    for topic in topics:
        for partition in partitions(place, topic):
            for table in read_partition(place, topic, partition, ["key", "raw"]):
                columns = (table.column(name).to_pylist() for name in ("key", "raw"))
                rows[topic, partition] += zip(*columns, strict=True)
    return rows


def n_offsets(archive: dict[str, str]) -> int:
    """Return how many offsets lie in files."""
    place = Place(archive["PUSHFLOW_ARCHIVE__URL"])
    shown = [v for topic in COMPARED for v in visible(place.files(topic))]
    return sum(v.file.last + 1 - v.begin for v in shown)


def test_kills_of_archive_keep_each_message_once(
    case: Case, stage: Stage, archive: dict[str, str]
) -> None:
    messages = [*case.events[::4], *answers(case)]
    kills = moments(5, len(messages), 3)

    for start, end in zip([0, *kills], kills, strict=False):
        n_before = n_offsets(archive)
        [child] = stage.start("archive", **archive)
        stage.send(messages[start:end], PACE)
        assert wait("a new file", lambda n=n_before: n_offsets(archive) > n, [child])  # type: ignore[misc]
        child.kill()
    stage.send(messages[kills[-1] :])
    archive_here(settings_of(stage, archive))

    assert kept(archive, {message.topic for message in messages}) == sent(messages)


def test_two_processes_keep_what_decide_writes_though_one_is_killed(
    case: Case, one_stage: Stage, archive: dict[str, str]
) -> None:
    stage = one_stage
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)
    half = len(case.events) // 2

    [decider] = stage.start("decide")
    child = stage.supervise("archive", 2, **archive)
    stage.send(case.events[:half], PACE)
    assert wait("files", lambda: n_offsets(archive) > half // 2, [child, decider])
    os.kill(child.cluster[1], signal.SIGKILL)
    stage.send(case.events[half:], PACE)
    child.wait_ready(90, times=2)
    wait("all decisions", lambda: len(decisions.rows) >= len(case.expected), [decider])
    assert (decider.stop(), child.stop(40.0)) == (0, 0)
    [last] = stage.start("archive", "--until-end", **archive)
    wait("the end", lambda: last.code is not None)
    assert last.stop() == 0

    of = settings_of(stage, archive)
    found = [row for topic in COMPARED for row in compare(of, topic, NOBODY)]
    assert [row for row in found if not row.is_equal or row.n_behind] == []
    counts = {
        topic: sum(row.n_archive for row in found if row.topic == topic) for topic in COMPARED
    }
    assert counts[DECISIONS] == len(case.expected)
    assert counts[EVENTS] == len(case.events)


def test_a_row_that_differs_is_told(case: Case, one_stage: Stage, archive: dict[str, str]) -> None:
    place, of = Place(archive["PUSHFLOW_ARCHIVE__URL"]), settings_of(one_stage, archive)
    one_stage.send(case.events[:400])
    archive_here(of)
    one_stage.send(case.events[:1])
    before = compare(of, EVENTS, NOBODY)

    file = next(iter(place.files(EVENTS)))
    place.rewrite(file, lambda rows: rows.slice(1))
    after = compare(of, EVENTS, NOBODY)

    assert [row.is_equal for row in before] == [True] * len(before)
    assert sum(row.n_behind for row in before) == 1
    differ = [row.partition for row in after if not row.is_equal]
    assert differ == [file.partition]


def test_an_erased_user_is_in_no_file(
    case: Case, one_stage: Stage, archive: dict[str, str]
) -> None:
    messages = case.events[:600]
    gone = messages[10].key or b""
    back = messages[-1]._replace(key=gone, timestamp_ms=messages[-1].timestamp_ms + 2)
    of = settings_of(one_stage, archive)
    one_stage.send(messages)
    one_stage.writer.send(
        one_stage.topic("push.erasures.v1"),
        gone.decode(),
        encode(Erasure(user_id=gone.decode(), time_ms=back.timestamp_ms)),
        timestamp_ms=messages[-1].timestamp_ms + 1,
    )
    one_stage.send([back])
    archive_here(of)
    n_before = sum(map(len, kept(archive, {EVENTS}).values()))

    removed = erase(of)[EVENTS]

    rows = [row for part in kept(archive, {EVENTS}).values() for row in part]
    assert [row for row in rows if row[0] == gone] == [(gone, back.value)]
    assert len(rows) == n_before - removed
    assert removed == sum(message.key == gone for message in messages)
    assert all(row.is_equal for row in compare(of, EVENTS, Erased.read(of)))
