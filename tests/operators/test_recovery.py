"""operators.recovery against Bytewax itself: what we read is what Bytewax then resumes from."""

import pickle
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.inputs import AbortExecution, FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, cluster_main

from operators import recovery
from operators.lineage import CheckpointError
from operators.recovery import oldest_snapshots, resume_snapshots
from operators.shards import SnapshotRef

ROOT = Path(__file__).parents[2]
N_ITEMS, N_KEYS = 24, 5  # of each of two parts
EPOCH = timedelta(milliseconds=1)


class Part(StatefulSourcePartition[int, int]):
    """Counts to `last`, and on while it must; aborts at `abort_at`."""

    def __init__(
        self, next_item: int, last: int, abort_at: int | None, until: threading.Event
    ) -> None:
        self.next_item, self._last = next_item, last
        self._abort_at, self._until = abort_at, until

    def next_batch(self) -> list[int]:
        if self.next_item == self._abort_at:
            raise AbortExecution
        if self.next_item >= self._last and self._until.is_set():
            raise StopIteration
        self.next_item += 1
        return [self.next_item]

    def next_awake(self) -> datetime:
        return datetime.now(UTC) + 2 * EPOCH  # so that each item has an epoch, or more

    def snapshot(self) -> int:
        return self.next_item


class Source(FixedPartitionedSource[int, int]):
    def __init__(self, resumed: dict[str, dict[str, Any]], *part: Any) -> None:
        self._resumed, self._part = resumed, part

    def list_parts(self) -> list[str]:
        return ["a", "b"]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> Part:
        if resume_state is not None:
            self._resumed.setdefault(step_id, {})[for_part] = resume_state
        return Part(resume_state or 0, *self._part)


class Total(StatefulBatchLogic[int, int, SnapshotRef]):
    """Adds up a key's items; every seventh item discards the key."""

    def __init__(self, resumed: dict[str, dict[str, Any]], state: SnapshotRef | None) -> None:
        self._key, self._total = "", 0
        # Bytewax does not say for which key it builds, so the state does.
        if state is not None:
            self._key, self._total = state.shard, state.number
            resumed.setdefault("flow.total", {})[state.shard] = state

    def on_batch(self, values: list[int]) -> tuple[Iterable[Any], bool]:
        self._key = str(values[0] % N_KEYS)
        self._total += sum(values)
        return [self._total], any(n % 7 == 0 for n in values)

    def snapshot(self) -> SnapshotRef:
        return SnapshotRef(self._key, "", self._total)


def run(
    directory: Path,
    abort_at: int | None = None,
    *,
    last: int = N_ITEMS,
    n_workers: int = 1,
    epoch: timedelta = EPOCH,
    keep: timedelta = timedelta(0),
    until: threading.Event | None = None,
) -> dict[str, dict[str, Any]]:
    """Run to `last` or to a crash at `abort_at`; return what the steps were resumed with."""
    if until is None:
        until = threading.Event()
        until.set()
    resumed: dict[str, dict[str, Any]] = {}
    flow = Dataflow("flow")
    items = op.input("items", flow, Source(resumed, last, abort_at, until))
    keyed = op.key_on("key", items, lambda n: str(n % N_KEYS))
    totals = op.stateful_batch("total", keyed, lambda state: Total(resumed, state))
    op.output("out", totals, TestingSink([]))
    config = RecoveryConfig(directory, keep)
    cluster_main(
        flow, [], 0, epoch_interval=epoch, recovery_config=config, worker_count_per_proc=n_workers
    )
    return resumed


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """An empty store of three files."""
    directory = tmp_path / "store"
    directory.mkdir()
    init_db_dir(directory, 3)
    return directory


@pytest.mark.parametrize("keep", [timedelta(0), 2 * EPOCH, timedelta(hours=1)])
def test_what_is_read_is_what_bytewax_resumes_from(store: Path, keep: timedelta) -> None:
    for abort_at in (0, 5, 13, None):
        epoch, told = resume_snapshots(store)
        assert told == run(store, abort_at, keep=keep)
        assert resume_snapshots(store)[0] >= epoch
    assert resume_snapshots(store)[1]["flow.items"] == {"a": N_ITEMS, "b": N_ITEMS}


def test_the_same_holds_when_the_number_of_workers_changes(store: Path) -> None:
    # No aborts: the other worker would wait for ever.
    for last, n_workers in ((5, 2), (9, 1), (13, 3), (N_ITEMS, 2)):
        epoch, told = resume_snapshots(store)
        assert told == run(store, last=last, n_workers=n_workers)
        assert resume_snapshots(store)[0] > epoch
        assert resume_snapshots(store)[1]["flow.items"] == {"a": last, "b": last}


def test_a_rewound_copy_resumes_from_each_epoch_that_is_still_held(store: Path) -> None:
    run(store, 13, epoch=timedelta(0), keep=timedelta(hours=1))  # collects nothing
    held = recovery.load(store)
    assert (held.oldest_epoch, held.epoch) == (1, 14)
    for epoch in range(1, 15):
        target = store.parent / str(epoch)
        recovery.copy(store, target)
        recovery.rewind(target, epoch)

        assert resume_snapshots(target) == (epoch, held.before(epoch))
        assert run(target) == held.before(epoch)
        assert resume_snapshots(target)[1]["flow.items"] == {"a": N_ITEMS, "b": N_ITEMS}
    assert recovery.load(store) == held


def test_an_epoch_that_is_collected_cannot_be_gone_back_to(store: Path) -> None:
    run(store, 13, keep=EPOCH)
    held = recovery.load(store)
    assert held.epoch - held.oldest_epoch == 1
    with pytest.raises(ValueError, match=f"can resume from epochs {held.oldest_epoch} to"):
        recovery.rewind(store, held.oldest_epoch - 1)
    assert recovery.load(store) == held


def test_the_oldest_snapshot_is_what_a_resume_from_the_oldest_epoch_asks_for(store: Path) -> None:
    run(store, 13, epoch=timedelta(0))
    held = recovery.load(store)

    assert oldest_snapshots(store, "flow.items") == held.before(held.oldest_epoch)["flow.items"]
    assert oldest_snapshots(store, "flow.nothing") == {}


def test_a_copy_drops_what_was_snapshotted_in_an_epoch_that_never_finished(store: Path) -> None:
    run(store, 5, epoch=timedelta(0))
    epoch, told = resume_snapshots(store)
    late = pickle.dumps(SnapshotRef("9", "", 1))
    with closing(sqlite3.connect(store / "part-0.sqlite3")) as part, part:
        row = ("flow.total", "9", epoch, late)
        part.execute(
            "INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change) VALUES (?, ?, ?, ?)",
            row,
        )
    recovery.copy(store, store.parent / "copy")

    for directory in (store, store.parent / "copy"):
        run(directory, 6, epoch=timedelta(0))  # key "9" stays asleep
    # As Bytewax itself has it, the snapshot of the lost epoch counts.
    assert resume_snapshots(store)[1]["flow.total"]["9"] == SnapshotRef("9", "", 1)
    assert "9" not in resume_snapshots(store.parent / "copy")[1]["flow.total"]
    assert "9" not in told["flow.total"]


def test_copies_made_while_workers_write_can_each_be_resumed_from(store: Path) -> None:
    """Copied by another process, as POSIX locks demand."""
    enough = threading.Event()
    flow = threading.Thread(target=run, args=(store,), kwargs={"n_workers": 2, "until": enough})
    flow.start()
    copies: list[Path] = []
    epochs: list[int] = []
    while len(copies) < 5 or epochs[0] == epochs[-1]:
        copies.append(store.parent / f"copy-{len(copies)}")
        command = [sys.executable, "-m", "operators.recovery", str(store), str(copies[-1])]
        subprocess.run(command, check=True, cwd=ROOT)
        epochs.append(resume_snapshots(copies[-1])[0])
        assert flow.is_alive()
    enough.set()
    flow.join()

    assert epochs == sorted(epochs)
    for copied in copies:
        told = resume_snapshots(copied)[1]
        assert run(copied) == told


def test_a_torn_file_and_a_missing_file_are_told_in_a_sentence(store: Path) -> None:
    run(store, 5)
    (store / "part-1.sqlite3").rename(store.parent / "away")
    with pytest.raises(CheckpointError, match="has 2 files of 3"):
        recovery.load(store)
    (store / "part-1.sqlite3").write_bytes(b"no database at all, but as long as a header is" * 40)
    with pytest.raises(CheckpointError, match=r"store cannot be read: .* To mend: "):
        recovery.load(store)


def test_a_snapshot_that_would_call_something_is_refused(store: Path) -> None:
    with closing(sqlite3.connect(store / "part-0.sqlite3")) as part, part:
        row = ("flow.total", "9", 0, pickle.dumps(subprocess.Popen))
        part.execute(
            "INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change) VALUES (?, ?, ?, ?)",
            row,
        )
    with pytest.raises(CheckpointError, match=r"a snapshot holds a subprocess\.Popen"):
        resume_snapshots(store)


HOLD = """
import sqlite3, sys
part = sqlite3.connect(sys.argv[1])
part.execute("BEGIN IMMEDIATE")
part.execute("DELETE FROM parts")
print("held", flush=True)
input()
"""


def test_a_process_that_is_stuck_in_a_commit_does_not_hold_up_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_BUSY_S", 0.1)
    store = tmp_path / "store"
    store.mkdir()
    init_db_dir(store, 2)
    file = next(store.glob("part-*.sqlite3"))
    stuck = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with stuck:
        assert stuck.stdout is not None
        assert stuck.stdout.readline() == b"held\n"
        recovery.copy(store, tmp_path / "copy")
        stuck.kill()

    assert recovery.load(tmp_path / "copy").n_parts == 2
