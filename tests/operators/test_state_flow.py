"""operators.state under Bytewax: aborts, kills and other numbers of workers change no count.

Run as a module, this file is the child that the crash test kills: a small Bytewax flow that
counts events by user, `python -m tests.operators.test_state_flow DIRECTORY RUN_ID N_WORKERS`.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, cluster_main

from operators.shards import SnapshotRef
from operators.state import StateStore
from tests.operators.test_state import State, open_store

ROOT = Path(__file__).parents[2]
N_SHARDS, N_USERS, N_EVENTS, BATCH = 8, 40, 320, 10


class Ping(NamedTuple):
    """Event number `n` of a user; every 97th forgets the user."""

    n: int

    @property
    def user(self) -> str:
        return f"user-{self.n * 7919 % N_USERS}"

    @property
    def shard(self) -> str:
        return f"{self.n * 7919 % N_USERS % N_SHARDS:02d}"


def expected(n_events: int) -> dict[str, State]:
    """Return what counting without any break gives."""
    states: dict[str, State] = defaultdict(lambda: [0, 0])
    for n in range(n_events):
        _count_ping(Ping(n), states.__getitem__, states.pop)
    return dict(sorted(states.items()))


def _count_ping(ping: Ping, get: Callable[[str], State], delete: Callable[[str], Any]) -> None:
    state = get(ping.user)
    state[0] += 1
    state[1] += ping.n
    if ping.n % 97 == 0:
        delete(ping.user)


class CountLogic(StatefulBatchLogic[Ping, tuple[str, State], SnapshotRef]):
    """Counts the pings of one shard, and emits all counters at the end of input."""

    def __init__(self, store: StateStore[State], resume: SnapshotRef | None) -> None:
        self.store = store
        self.shard = store.open_shard(resume.shard, resume) if resume else None

    def on_batch(self, values: list[Ping]) -> tuple[Iterable[Any], bool]:
        if self.shard is None:  # Bytewax does not tell a new logic its key
            self.shard = self.store.open_shard(values[0].shard, None)
        self.shard.touch()
        for ping in values:
            _count_ping(ping, self.shard.get, self.shard.delete)
        return [], False

    def on_notify(self) -> tuple[Iterable[Any], bool]:
        assert self.shard is not None
        self.shard.touch()
        return [], False

    def on_eof(self) -> tuple[Iterable[Any], bool]:
        assert self.shard is not None
        self.shard.touch()
        return list(self.shard.scan()), False

    def notify_at(self) -> datetime | None:
        return None if self.shard is None or self.shard.is_settled else datetime.now(UTC)

    def snapshot(self) -> SnapshotRef:
        assert self.shard is not None
        return self.shard.snapshot()


def build(
    source: list[Any], found: list[Any], store_of_thread: Callable[[], StateStore[State]]
) -> Dataflow:
    flow = Dataflow("counting")
    pings = op.input("pings", flow, TestingSource(source, batch_size=BATCH))
    keyed = op.key_on("shard", pings, lambda ping: ping.shard)
    counted = op.stateful_batch("count", keyed, lambda ref: CountLogic(store_of_thread(), ref))
    op.output("found", counted, TestingSink(found))
    return flow


def _run(flow: Dataflow, directory: Path, n_workers: int = 1) -> None:
    """Run `flow` with an epoch for each batch."""
    cluster_main(
        flow,
        [],
        0,
        epoch_interval=timedelta(0),
        recovery_config=RecoveryConfig(directory / "recovery"),
        worker_count_per_proc=n_workers,
    )


@pytest.mark.parametrize("aborts", [[0], [9], [10], [11], [5, 6, 7, 300], [0, 100, 319]])
def test_aborted_flow_counts_the_same_as_an_unbroken_one(tmp_path: Path, aborts: list[int]) -> None:
    (tmp_path / "recovery").mkdir()
    init_db_dir(tmp_path / "recovery", 1)
    found: list[tuple[str, tuple[str, State]]] = []
    for run, at in enumerate([*aborts, N_EVENTS]):
        # One abort a run: TestingSource resumes at a wrong place behind aborts it has passed.
        source: list[Any] = [Ping(n) for n in range(N_EVENTS)]
        source[at:at] = [TestingSource.ABORT()] if at < N_EVENTS else []
        found.clear()
        store = open_store(tmp_path, f"run{run}", hot_capacity=16)
        _run(build(source, found, lambda store=store: store), tmp_path)  # type: ignore[misc]
        store.close()

    assert dict(sorted(pair for _, pair in found)) == expected(N_EVENTS)


# Starts of the flow in a row: the point of the store to kill at, how often it is passed before
# that, and the number of worker threads. The last start runs to its end.
ONE_WORKER = [
    ("saved:3", 1),
    ("named:29", 1),  # within the block of shards that a snapshot walks through
    ("linked:1", 1),  # while resuming
    ("written:5", 1),
    ("spilled:2", 1),
    ("", 1),
]
RESCALED = [
    ("pruned:6", 2),
    ("adopted:1", 1),  # while copying in the other worker's shards
    ("saved:1", 2),
    ("dropped:1", 2),
    ("", 1),
]


@pytest.mark.system
@pytest.mark.parametrize("starts", [ONE_WORKER, RESCALED], ids=["one worker", "rescaled"])
def test_kill_9_at_any_point_of_a_checkpoint_loses_nothing_and_counts_nothing_twice(
    tmp_path: Path, starts: list[tuple[str, int]]
) -> None:
    (tmp_path / "recovery").mkdir()
    init_db_dir(tmp_path / "recovery", 2)
    children = []
    for run, (aim, n_workers) in enumerate(starts):
        child = subprocess.run(
            [sys.executable, "-m", __name__, str(tmp_path), f"run{run}", str(n_workers)],
            cwd=ROOT,
            env=os.environ | {"KILL_AT": aim},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        children.append((aim, child.returncode, child.stderr[-2_000:]))

    statuses = [status for _, status, _ in children]
    assert statuses == [-signal.SIGKILL] * (len(starts) - 1) + [0], children
    assert json.loads((tmp_path / "found.json").read_text()) == expected(N_EVENTS)
    left = {d.name.rpartition("-")[0] for d in (tmp_path / "state" / "users").iterdir()}
    assert left == {f"run{len(starts) - 1}"}


def _fault(aim: str) -> Callable[[str], None]:
    """Return a hook that kills this process when it passes the point aimed at."""
    point, _, times = aim.partition(":")
    countdown = itertools.count(int(times or 0), -1)

    def fault(passed: str) -> None:
        if passed == point and next(countdown) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    return fault


def _child(directory: Path, run_id: str, n_workers: int) -> None:
    stores: dict[int, StateStore[State]] = {}
    fault = _fault(os.environ["KILL_AT"])

    def store_of_thread() -> StateStore[State]:
        thread = threading.get_ident()
        if thread not in stores:
            stores[thread] = open_store(
                directory / "state", run_id, n_workers, hot_capacity=4, fault=fault
            )
        return stores[thread]

    found: list[tuple[str, tuple[str, State]]] = []
    source = [Ping(n) for n in range(N_EVENTS)]
    _run(build(source, found, store_of_thread), directory, n_workers)
    (directory / "found.json").write_text(json.dumps(dict(sorted(pair for _, pair in found))))


if __name__ == "__main__":
    _child(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
