"""operators.savepoints: a copy made meanwhile is the state of one epoch, or is refused."""

import logging
import os
import shutil
import signal
import uuid
from pathlib import Path

import fsspec
import pytest

from operators import recovery
from operators.lineage import CheckpointError, Fenced
from operators.savepoints import Place, Saved, hold
from tests.operators.test_incarnations import DAMAGES, newest_checkpoint, start
from tests.operators.test_state_flow import N_EVENTS, STORES, expected, found
from tests.operators.test_state_flow import start as start_child


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place on each of two real file systems."""
    if request.param == "file":
        return f"file://{tmp_path}/away"
    return f"memory://{uuid.uuid4().hex}"


def save(place: Place, home: Path, **options: object) -> Saved:
    with hold(home, STORES) as held:
        return place.save(held, **options)  # type: ignore[arg-type]


def contents(url: str, pattern: str) -> list[str]:
    """Return the paths under a place that a pattern matches."""
    fs, root = fsspec.core.url_to_fs(url)
    return sorted(fs.glob(f"{root}/flow/{pattern}"))


def test_a_flow_goes_on_elsewhere_from_a_savepoint(tmp_path: Path, url: str) -> None:
    here, there = tmp_path / "here" / "flow", tmp_path / "there" / "flow"
    start(here, "a", 150)
    saved = save(Place(url, "flow"), here)
    shutil.rmtree(here)

    assert Place(url, "flow").restore(there) == (1, saved.epoch)
    assert start(there, "b") == expected(N_EVENTS)


def test_a_savepoint_is_of_its_moment_whatever_the_flow_does_then(tmp_path: Path, url: str) -> None:
    home = tmp_path / "flow"
    start(home, "a", 150)
    with hold(home, STORES) as held:
        told = recovery.resume_snapshots(held.home / "bytewax" / "a")
        assert (held.run_id, held.epoch, held.snapshots) == ("a", *told)
        start(tmp_path / "other", "b", 10)
        shutil.rmtree(home / "shards")
        Place(url, "flow").save(held)

    Place(url, "flow").restore(tmp_path / "there" / "flow")
    assert start(tmp_path / "there" / "flow", "b") == expected(N_EVENTS)
    assert not list(home.glob(".held-*"))


@pytest.mark.system
@pytest.mark.parametrize("aim", ["saved:5", "named:29", "pruned:3", "dropped:1"])
def test_a_savepoint_made_in_the_middle_of_a_checkpoint_is_whole(tmp_path: Path, aim: str) -> None:
    home = tmp_path / "flow"
    start(home, "first", 50)
    child = start_child(home, "a", f"STOP {aim}")
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    place = Place(str(tmp_path / "away"), "flow")
    save(place, home)
    child.send_signal(signal.SIGCONT)
    child.communicate(timeout=60)

    assert found(home) == expected(N_EVENTS)
    place.restore(tmp_path / "there" / "flow")
    assert start(tmp_path / "there" / "flow", "b") == expected(N_EVENTS)


def test_tables_that_are_there_are_not_sent_again_and_old_savepoints_go(
    tmp_path: Path, url: str
) -> None:
    home, place = tmp_path / "flow", Place(url, "flow")
    start(home, "a", 150)
    first = save(place, home, keep=2)
    again = save(place, home, keep=2)
    assert first.sent_files == first.files
    assert again.sent_files <= 2  # SQLite copies its files with another time in them
    for number, run_id in enumerate(["b", "c", "d"]):
        start(home, run_id, 160 + 10 * number)
        assert save(place, home, keep=2).sent_bytes > 0

    assert place.numbers() == [4, 5]
    named = set()
    for number in (4, 5):
        manifest = place._manifest(number)
        assert manifest is not None
        named |= {checksum for checksum, _ in manifest["files"].values()}
    assert {path.rpartition("/")[2] for path in contents(url, "files/*")} == named


@pytest.mark.parametrize("lost", ["manifest", "content", "byte"])
def test_a_savepoint_that_is_not_whole_is_passed_over(
    tmp_path: Path, url: str, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    home, place = tmp_path / "flow", Place(url, "flow")
    fs, root = fsspec.core.url_to_fs(url)
    start(home, "a", 100)
    save(place, home)
    before = contents(url, "files/*")
    start(home, "b", 150)
    save(place, home)
    fresh = sorted(set(contents(url, "files/*")) - set(before))
    if lost == "manifest":
        path = f"{root}/flow/savepoint-000002"
        fs.pipe_file(path, fs.cat_file(path)[:-20])
    elif lost == "content":
        fs.rm_file(fresh[0])
    else:
        content = fs.cat_file(fresh[0])
        fs.pipe_file(fresh[0], content[:-1] + bytes([content[-1] ^ 1]))

    with caplog.at_level(logging.WARNING, "pushflow"):
        number, _ = place.restore(tmp_path / "there" / "flow")
    assert number == 1
    assert "savepoint 2: " in caplog.text
    assert start(tmp_path / "there" / "flow", "c") == expected(N_EVENTS)


def test_where_no_savepoint_is_whole_it_says_so_and_leaves_nothing(
    tmp_path: Path, url: str
) -> None:
    home, place = tmp_path / "flow", Place(url, "flow")
    target = tmp_path / "there" / "flow"
    with pytest.raises(CheckpointError, match="no savepoint in"):
        place.restore(target)
    start(home, "a", 100)
    save(place, home)
    fs, _ = fsspec.core.url_to_fs(url)
    fs.rm_file(contents(url, "files/*")[0])
    with pytest.raises(CheckpointError, match=r"no savepoint in .*; .* is missing"):
        place.restore(target)
    assert list((tmp_path / "there").iterdir()) == []


def test_a_state_is_never_overwritten(tmp_path: Path, url: str) -> None:
    home, place = tmp_path / "flow", Place(url, "flow")
    start(home, "a", 100)
    save(place, home)
    with pytest.raises(CheckpointError, match="there is a state in"):
        place.restore(home)
    assert start(home, "b") == expected(N_EVENTS)


def test_a_start_that_lost_the_place_saves_nothing_more(tmp_path: Path, url: str) -> None:
    home = tmp_path / "flow"
    start(home, "a", 100)
    old, new = Place(url, "flow"), Place(url, "flow")
    old.claim("old")
    save(old, home, run_id="old")
    new.claim("new")
    with pytest.raises(Fenced, match="belong to run new by now, not old"):
        save(old, home, run_id="old")
    assert new.numbers() == [1]
    save(new, home, run_id="new")
    assert new.numbers() == [1, 2]


def test_a_content_that_was_half_sent_is_sent_again(tmp_path: Path, url: str) -> None:
    home, place = tmp_path / "flow", Place(url, "flow")
    start(home, "a", 100)
    fs, root = fsspec.core.url_to_fs(url)
    with hold(home, STORES) as held:
        place.save(held)
        fs.rm_file(f"{root}/flow/savepoint-000001")  # as a crash before the manifest would leave it
        half = contents(url, "files/*")[0]
        fs.pipe_file(half, fs.cat_file(half)[:10])
        assert place.save(held).sent_files == 1
    place.restore(tmp_path / "there" / "flow")
    assert start(tmp_path / "there" / "flow", "b") == expected(N_EVENTS)


def test_a_claim_removes_what_no_savepoint_names(tmp_path: Path, url: str) -> None:
    home, place = tmp_path / "flow", Place(url, "flow")
    start(home, "a", 100)
    save(place, home)
    kept = contents(url, "files/*")
    fs, root = fsspec.core.url_to_fs(url)
    fs.pipe_file(f"{root}/flow/files/{'0' * 64}", b"left by a crash")

    place.claim("b")

    assert contents(url, "files/*") == kept


def test_there_is_nothing_to_hold_without_a_state_or_with_a_checkpoint_missing(
    tmp_path: Path,
) -> None:
    home = tmp_path / "flow"
    with pytest.raises(CheckpointError, match="there is no state in"), hold(home, STORES):
        pass
    start(home, "a", 100)
    DAMAGES["missing"](newest_checkpoint(home, "a"))
    with pytest.raises(CheckpointError, match="is missing"), hold(home, STORES):
        pass
    assert not list(home.glob(".held-*"))
