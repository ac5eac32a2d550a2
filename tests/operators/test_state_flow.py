"""operators.state under Bytewax: aborts, kills and other numbers of workers change no count.

Run as a module, this file is the child that the crash test kills: a small Bytewax flow that
counts events by user, `python -m tests.operators.test_state_flow DIRECTORY RUN_ID N_WORKERS`.
"""

import itertools
import json
import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any, NamedTuple

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, cluster_main

from operators.incarnations import take_over
from operators.shards import SnapshotRef
from operators.state import StateStore
from tests.operators.test_state import State, open_store

ROOT = Path(__file__).parents[2]
STORES = {"counting.count": "users"}
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


def make_recovery(directory: Path) -> None:
    init_db_dir(directory, 2)


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


def run(flow: Dataflow, recovery: Path, n_workers: int = 1, keep: timedelta | None = None) -> None:
    """Run `flow` with an epoch for each batch."""
    cluster_main(
        flow,
        [],
        0,
        epoch_interval=timedelta(0),
        recovery_config=RecoveryConfig(recovery, keep),
        worker_count_per_proc=n_workers,
    )


@pytest.mark.parametrize("aborts", [[0], [9], [10], [11], [5, 6, 7, 300], [0, 100, 319]])
def test_aborted_flow_counts_the_same_as_an_unbroken_one(tmp_path: Path, aborts: list[int]) -> None:
    (tmp_path / "recovery").mkdir()
    init_db_dir(tmp_path / "recovery", 1)
    counts: list[tuple[str, tuple[str, State]]] = []
    for n_run, at in enumerate([*aborts, N_EVENTS]):
        # One abort a run: TestingSource resumes at a wrong place behind aborts it has passed.
        source: list[Any] = [Ping(n) for n in range(N_EVENTS)]
        source[at:at] = [TestingSource.ABORT()] if at < N_EVENTS else []
        counts.clear()
        store = open_store(tmp_path, f"run{n_run}", hot_capacity=16)
        flow = build(source, counts, lambda store=store: store)  # type: ignore[misc]
        run(flow, tmp_path / "recovery")
        store.close()

    assert dict(sorted(pair for _, pair in counts)) == expected(N_EVENTS)


# Starts of the flow in a row: the point of the store to kill at, how often it is passed before
# that, and the number of worker threads. The last start runs to its end.
ONE_WORKER = [
    ("owned:1", 1),  # before there is anything
    ("saved:3", 1),
    ("placed:1", 1),
    ("named:29", 1),  # within the block of shards that a snapshot walks through
    ("linked:1", 1),  # while resuming
    ("written:5", 1),
    ("spilled:2", 1),
    ("", 1),
]
RESCALED = [
    ("pruned:6", 2),
    ("copied:1", 1),  # while taking the state over
    ("adopted:1", 1),  # while copying in the other worker's shards
    ("saved:1", 2),
    ("dropped:1", 2),
    ("", 1),
]


def start(directory: Path, run_id: str, aim: str = "", n_workers: int = 1) -> "Popen[str]":
    """Start the flow in a child that stops itself, by the signal that `aim` begins with."""
    return Popen(
        [sys.executable, "-m", __name__, str(directory), run_id, str(n_workers)],
        cwd=ROOT,
        env=os.environ | {"AIM": aim},
        stdout=DEVNULL,
        stderr=PIPE,
        text=True,
    )


def found(directory: Path) -> dict[str, State]:
    """Return the counts of a flow that ran to its end."""
    counts: dict[str, State] = json.loads((directory / "found.json").read_text())
    return counts


@pytest.mark.system
@pytest.mark.parametrize("starts", [ONE_WORKER, RESCALED], ids=["one worker", "rescaled"])
def test_kill_9_at_any_point_of_a_checkpoint_loses_nothing_and_counts_nothing_twice(
    tmp_path: Path, starts: list[tuple[str, int]]
) -> None:
    children = []
    for n_run, (aim, n_workers) in enumerate(starts):
        child = start(tmp_path, f"run{n_run}", aim and f"KILL {aim}", n_workers)
        _, stderr = child.communicate(timeout=60)
        children.append((aim, child.returncode, stderr[-2_000:]))

    statuses = [status for _, status, _ in children]
    assert statuses == [-signal.SIGKILL] * (len(starts) - 1) + [0], children
    assert found(tmp_path) == expected(N_EVENTS)
    left = {d.name.rpartition("-")[0] for d in (tmp_path / "shards" / "users").iterdir()}
    assert left == {f"run{len(starts) - 1}"}


@pytest.mark.system
@pytest.mark.parametrize("aim", ["saved:3", "named:29", "written:5", "pruned:4"])
def test_a_run_that_was_cut_off_and_comes_back_spoils_nothing_of_its_successor(
    tmp_path: Path, aim: str
) -> None:
    zombie = start(tmp_path, "zombie", f"STOP {aim}")
    _, status = os.waitpid(zombie.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    successor = start(tmp_path, "successor", "STOP saved:3")
    _, status = os.waitpid(successor.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)

    zombie.send_signal(signal.SIGCONT)
    _, stderr = zombie.communicate(timeout=60)
    successor.send_signal(signal.SIGCONT)
    successor.communicate(timeout=60)

    assert zombie.returncode == 1
    assert "belongs to run successor by now, not to this run, zombie" in stderr, stderr
    assert successor.returncode == 0
    assert found(tmp_path) == expected(N_EVENTS)
    start(tmp_path, "last").communicate(timeout=60)  # what the successor left can be taken over
    assert found(tmp_path) == expected(N_EVENTS)


def _fault(aim: str) -> Callable[[str], None]:
    """Return a hook that stops this process when it passes the point aimed at: "KILL saved:3"."""
    name, _, where = aim.partition(" ")
    point, _, times = where.partition(":")
    countdown = itertools.count(int(times or 0), -1)

    def fault(passed: str) -> None:
        if passed == point and next(countdown) == 1:
            os.kill(os.getpid(), signal.Signals[f"SIG{name}"])

    return fault


def _child(directory: Path, run_id: str, n_workers: int) -> None:
    stores: dict[int, StateStore[State]] = {}
    fault = _fault(os.environ["AIM"])
    recovery = take_over(directory, run_id, STORES, make_recovery, fault=fault)

    def store_of_thread() -> StateStore[State]:
        thread = threading.get_ident()
        if thread not in stores:
            stores[thread] = open_store(
                directory / "shards",
                run_id,
                n_workers,
                hot_capacity=4,
                owner=directory / "owner",
                fault=fault,
            )
        return stores[thread]

    counts: list[tuple[str, tuple[str, State]]] = []
    source = [Ping(n) for n in range(N_EVENTS)]
    run(build(source, counts, store_of_thread), recovery, n_workers)
    (directory / "found.json").write_text(json.dumps(dict(sorted(pair for _, pair in counts))))


if __name__ == "__main__":
    _child(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
