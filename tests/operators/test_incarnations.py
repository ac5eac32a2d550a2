"""operators.incarnations: state changes hands whole, and what is torn is left behind."""

import itertools
import logging
import os
import re
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bytewax.testing import TestingSource

from operators import checkpoints, recovery
from operators.incarnations import all_stores, checkpoints_of, newest, take_over
from operators.lineage import CheckpointError, Fenced, Lineage
from operators.shards import SnapshotRef
from tests.operators.test_state import State, count, open_store
from tests.operators.test_state_flow import (
    N_EVENTS,
    STORES,
    Ping,
    build,
    expected,
    make_recovery,
    run,
)

DAY = timedelta(days=1)


def start(
    home: Path, run_id: str, abort_at: int | None = None, retain: int = 1
) -> dict[str, State]:
    """Take the state over, and count to the end or to a crash; return the counts."""
    recovery_store = take_over(home, run_id, STORES, make_recovery)
    source: list[Any] = [Ping(n) for n in range(N_EVENTS)]
    if abort_at is not None:
        source.insert(abort_at, TestingSource.ABORT())
    store = open_store(home / "shards", run_id, owner=home / "owner", retain=retain)
    counts: list[tuple[str, tuple[str, State]]] = []
    run(build(source, counts, lambda: store), recovery_store, keep=DAY)
    store.close()
    return dict(sorted(pair for _, pair in counts))


def names(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "bytewax").iterdir())


# Hands.


def test_each_start_gets_a_store_of_its_own_and_the_one_before_is_kept(tmp_path: Path) -> None:
    for number, run_id in enumerate(["z", "b", "m"]):
        start(tmp_path, run_id, 100 * number)
    assert start(tmp_path, "a") == expected(N_EVENTS)
    assert names(tmp_path) == ["a", "m"]
    assert [store.name for store in all_stores(tmp_path)] == ["m", "a"]
    assert (tmp_path / "owner").read_text() == "a\n"


def test_a_second_call_of_the_same_start_changes_nothing(tmp_path: Path) -> None:
    start(tmp_path, "a", 100)
    first = take_over(tmp_path, "b", STORES, make_recovery)
    before = recovery.load(first)
    assert take_over(tmp_path, "b", STORES, make_recovery) == first
    assert recovery.load(first) == before


def test_the_layout_of_the_first_release_is_taken_up(tmp_path: Path) -> None:
    start(tmp_path, "a", 100)
    for file in (tmp_path / "bytewax" / "a").glob("part-*"):
        file.rename(tmp_path / "bytewax" / file.name)
    shutil.rmtree(tmp_path / "bytewax" / "a")
    (tmp_path / "owner").unlink()
    (tmp_path / "shards" / "FORMAT").write_text("1\n")

    assert newest(tmp_path) == tmp_path / "bytewax"
    start(tmp_path, "b", 200)
    assert names(tmp_path) == ["b", "part-0.sqlite3", "part-1.sqlite3"]
    assert start(tmp_path, "c") == expected(N_EVENTS)
    assert names(tmp_path) == ["b", "c"]


@pytest.mark.parametrize("point", ["owned", "copied", "placed"])
def test_a_crash_while_the_state_changes_hands_leaves_a_start_possible(
    tmp_path: Path, point: str
) -> None:
    class CrashError(Exception):
        pass

    def fault(passed: str) -> None:
        if passed == point:
            raise CrashError

    for number in range(3):
        with pytest.raises(CrashError):
            take_over(tmp_path, f"crash-{number}", STORES, make_recovery, fault=fault)
        start(tmp_path, f"run-{number}", 100 * number + 7)

    assert start(tmp_path, "last") == expected(N_EVENTS)
    assert names(tmp_path) == ["last", "run-2"]


def test_a_run_cut_off_that_writes_to_its_own_store_is_not_taken_for_the_newest(
    tmp_path: Path,
) -> None:
    start(tmp_path, "a", 50)
    shutil.copytree(tmp_path / "bytewax" / "a", tmp_path / "kept")
    start(tmp_path, "b", 100)
    told = recovery.resume_snapshots(tmp_path / "bytewax" / "b")
    for file in (tmp_path / "kept").glob("part-*"):  # as if "a" wrote after "b" did
        file.touch()
        file.replace(tmp_path / "bytewax" / "a" / file.name)

    assert newest(tmp_path) == tmp_path / "bytewax" / "b"
    assert recovery.resume_snapshots(take_over(tmp_path, "c", STORES, make_recovery)) == told


def test_of_two_starts_at_once_the_later_wins(tmp_path: Path) -> None:
    def other_start(passed: str) -> None:
        if passed == "copied":
            take_over(tmp_path, "late", STORES, make_recovery)

    start(tmp_path, "a", 100)
    with pytest.raises(Fenced, match="late has taken over the state"):
        take_over(tmp_path, "early", STORES, make_recovery, fault=other_start)
    assert newest(tmp_path) == tmp_path / "bytewax" / "late"
    assert start(tmp_path, "next") == expected(N_EVENTS)


def test_the_state_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    start(tmp_path, "a", 100)
    (tmp_path / "shards" / "FORMAT").write_text("3\n")
    with pytest.raises(CheckpointError, match="run the newer pushflow"):
        take_over(tmp_path, "b", STORES, make_recovery)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "owner").read_text() == "a\n"


# The fence.


def test_a_store_whose_state_was_taken_over_saves_and_deletes_nothing_more(tmp_path: Path) -> None:
    old = open_store(tmp_path, "old", owner=tmp_path / "owner")
    shard = old.open_shard("07", None)
    refs = []
    for _ in range(2):
        count(shard, "ann")
        refs.append(shard.snapshot())
    (tmp_path / "owner").write_text("new\n")
    before = sorted((tmp_path / "users").rglob("*/"))
    new = open_store(tmp_path, "new", owner=tmp_path / "owner")
    resumed = new.open_shard("07", refs[-1])
    count(resumed, "ann")
    mine = resumed.snapshot()

    count(shard, "ann")
    for _ in range(2):
        with pytest.raises(Fenced, match="belongs to run new by now, not to this run, old"):
            shard.snapshot()

    assert [path for path in before if not path.exists()] == []
    for ref, n in [(refs[-1], 2), (mine, 3)]:
        path = tmp_path / "users" / ref.lineage / str(ref.number)
        checkpoints.check(path)
        assert list(checkpoints.rows(path, "07")) == [("ann", b"%d 0" % n)]


def test_an_owned_state_has_no_room_for_a_late_process_of_another_run(tmp_path: Path) -> None:
    (tmp_path / "owner").write_text("new\n")
    with pytest.raises(Fenced):
        Lineage(tmp_path, "users", "old", 1, owner=tmp_path / "owner")
    assert not (tmp_path / "users").exists()


# Falling back.


def newest_checkpoint(home: Path, run_id: str) -> Path:
    """Return the checkpoint that most shards of the newest epoch name."""
    named = recovery.resume_snapshots(home / "bytewax" / run_id)[1]["counting.count"].values()
    assert {ref.lineage for ref in named} == {f"{run_id}-0"}
    lineage = home / "shards" / "users" / f"{run_id}-0"
    return lineage / str(max(ref.number for ref in named))


def cut(pattern: str, rest: float) -> Callable[[Path], None]:
    """Return what leaves only a part of a file."""

    def damage(checkpoint: Path) -> None:
        file = next(checkpoint.glob(pattern))
        whole = file.read_bytes()
        file.unlink()  # a hard link: the other checkpoints keep the whole file
        file.write_bytes(whole[: int(len(whole) * rest)])

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": shutil.rmtree,
    "no CURRENT": lambda path: (path / "CURRENT").unlink(),
    "no table": lambda path: next(path.glob("*.sst")).unlink(),
    "short table": cut("*.sst", 0.9),
    "empty table": cut("*.sst", 0.0),
    "short manifest": cut("MANIFEST-*", 0.6),
    "empty manifest": cut("MANIFEST-*", 0.0),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_torn_checkpoint_is_passed_over_for_the_one_before_it(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    start(tmp_path, "a", 200)
    torn = newest_checkpoint(tmp_path, "a")
    whole, _ = recovery.resume_snapshots(tmp_path / "bytewax" / "a")
    damage(torn)

    with caplog.at_level(logging.WARNING, "pushflow"):
        assert start(tmp_path, "b") == expected(N_EVENTS)

    assert f"checkpoint {torn} is " in caplog.text
    assert re.search(rf"back from epoch {whole} to epoch \d+, which is whole", caplog.text)


def test_a_whole_state_is_resumed_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(tmp_path, "a", 200)
    with caplog.at_level(logging.INFO, "pushflow"):
        epoch = recovery.load(take_over(tmp_path, "b", STORES, make_recovery)).epoch
    assert epoch == recovery.load(tmp_path / "bytewax" / "a").epoch
    assert caplog.text == ""


def test_falling_back_works_again_after_falling_back(tmp_path: Path) -> None:
    for number, run_id in enumerate(["a", "b", "c"]):
        start(tmp_path, run_id, 100 * number + 50)
        shutil.rmtree(newest_checkpoint(tmp_path, run_id))
    assert start(tmp_path, "d") == expected(N_EVENTS)


def test_with_nothing_to_fall_back_to_the_start_says_what_is_torn_and_the_mend(
    tmp_path: Path,
) -> None:
    start(tmp_path, "a", 200, retain=0)
    torn = newest_checkpoint(tmp_path, "a")
    _collect_all_but_newest(tmp_path / "bytewax" / "a")
    os.truncate(torn / "CURRENT", 0)

    for run_id in ("b", "c"):
        with pytest.raises(CheckpointError, match=rf"checkpoint {torn} is torn: .* To mend: move"):
            take_over(tmp_path, run_id, STORES, make_recovery)


def _collect_all_but_newest(store: Path) -> None:
    """Do what Bytewax does when it keeps no more epochs than it must."""
    epoch = recovery.load(store).epoch
    with recovery._locked(store) as parts:
        for part in parts:
            part.execute("DELETE FROM commits")
            part.execute("INSERT INTO commits SELECT part_index, ?, ? FROM parts", [epoch - 1] * 2)
            part.execute("COMMIT")


def test_every_byte_of_a_manifest_counts(tmp_path: Path) -> None:
    """However much of it is lost, the checkpoint is whole or is said to be torn."""
    shard = open_store(tmp_path, "a").open_shard("07", None)
    for number in range(3):
        count(shard, *(f"user-{number}-{n}" for n in range(5)))
        ref = shard.snapshot()
    path = tmp_path / "users" / ref.lineage / str(ref.number)
    rows = list(checkpoints.rows(path, "07"))
    manifest = next(path.glob("MANIFEST-*"))
    whole = manifest.read_bytes()
    manifest.unlink()
    n_torn = 0
    for size in itertools.chain(range(0, len(whole), 7), [len(whole)]):
        manifest.write_bytes(whole[:size])
        try:
            checkpoints.check(path)
        except CheckpointError:
            n_torn += 1
        else:
            assert list(checkpoints.rows(path, "07")) == rows
    assert n_torn > len(whole) // 7 // 2


def test_a_reference_is_all_that_a_checkpoint_is_found_by(tmp_path: Path) -> None:
    ref = SnapshotRef("07", "a-0", 3)
    found = checkpoints_of(
        tmp_path, {"counting.count": {"07": ref}, "counting.pings": {"x": 4}}, STORES
    )
    assert found == {tmp_path / "shards" / "users" / "a-0" / "3": [("counting.count", ref)]}
