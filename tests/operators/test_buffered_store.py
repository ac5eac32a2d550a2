"""operators.buffered_store: the contract of a store, and the writer through outages."""

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from operators.buffered_store import BufferedStore
from operators.feature_store import (
    DecisionRow,
    FeatureStore,
    MemoryStore,
    RedisStore,
    StoreUnavailableError,
    connector,
)
from operators.hops import FeatureRow
from operators.metrics import REDIS_DROPPED
from tests.contracts.store import FeatureStoreContract, decision_row, failures, feature_row
from tests.operators.conftest import Server

WAIT_S = 20.0  # for a thread on a busy machine; tests end as soon as it is done


class TestBufferedStore(FeatureStoreContract):
    @pytest.fixture
    def store(self) -> Iterator[BufferedStore]:
        buffered = BufferedStore(MemoryStore(), clock=time.monotonic, flush_ms=1)
        yield buffered
        buffered.close(WAIT_S)

    def settle(self, store: FeatureStore) -> None:
        assert isinstance(store, BufferedStore)
        assert store.flush(WAIT_S)


class Gate(MemoryStore):
    """A memory store that can be away, and notes what is put."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = threading.Event()
        self.tries = 0
        self.chunks: list[list[str]] = []

    def put_features(self, rows: Sequence[FeatureRow]) -> None:
        self.tries += 1
        if not self.is_open.is_set():
            raise StoreUnavailableError("closed")
        self.chunks.append([row.user_id for row in rows])
        super().put_features(rows)


def wait_for(store: Gate, tries: int) -> None:
    end = time.monotonic() + WAIT_S
    while store.tries < tries and time.monotonic() < end:
        time.sleep(0.001)
    assert store.tries >= tries


def test_rows_wait_for_the_store_and_each_failure_is_counted() -> None:
    gate, errors, before = Gate(), list[Exception](), failures()
    buffered = BufferedStore(gate, clock=time.monotonic, flush_ms=1, on_error=errors.append)
    buffered.put_features([feature_row("u1", 1.0)])
    wait_for(gate, 3)
    buffered.put_features([feature_row("u1", 2.0), feature_row("u2", 2.0)])
    gate.is_open.set()
    assert buffered.flush(WAIT_S)
    assert [row and row["session_events"] for row in gate.get_features(["u1", "u2"])] == [2.0, 2.0]
    assert failures() - before == len(errors) >= 3
    assert buffered.close(WAIT_S)


def test_rows_of_one_user_become_one_write() -> None:
    gate = Gate()
    gate.is_open.set()
    buffered = BufferedStore(gate, clock=time.monotonic, flush_ms=60_000)
    buffered.put_features([feature_row("u1", float(i)) for i in range(1_000)])
    assert buffered.close(WAIT_S)
    assert gate.chunks == [["u1"]]


def test_many_rows_go_in_chunks_and_none_is_left_out() -> None:
    gate = Gate()
    gate.is_open.set()
    buffered = BufferedStore(gate, clock=time.monotonic, flush_ms=60_000)
    buffered.put_features([feature_row(f"u{i}", 1.0) for i in range(1_200)])
    buffered.put_decisions([decision_row(f"u{i}", i) for i in range(300)])
    assert buffered.flush(WAIT_S)
    assert [len(chunk) for chunk in gate.chunks] == [52] * 23 + [4]  # half is for decisions
    assert all(gate.latest_decisions(f"u{i}", 1) for i in range(300))
    assert buffered.close(WAIT_S)


def test_a_backlog_of_rows_keeps_no_decision_waiting() -> None:
    gate = Gate()
    gate.is_open.set()
    buffered = BufferedStore(gate, clock=time.monotonic, flush_ms=60_000)
    buffered.put_features([feature_row(f"u{n:03d}", n) for n in range(300)])
    buffered.put_decisions([decision_row("u000", n) for n in range(12)])

    assert buffered.flush(WAIT_S)
    buffered.close(WAIT_S)

    assert [len(chunk) for chunk in gate.chunks] == [52, 100, 100, 48]
    assert len(gate.latest_decisions("u000", 20)) == 10


def test_oldest_rows_are_dropped_and_counted_beyond_the_bound() -> None:
    gate, before = Gate(), REDIS_DROPPED._value.get()
    buffered = BufferedStore(
        gate, clock=time.monotonic, flush_ms=60_000, max_pending=3, max_pending_decisions=2
    )
    buffered.put_features([feature_row(f"u{i}", 1.0) for i in range(5)])
    buffered.put_decisions([decision_row("u1", i) for i in range(4)])
    assert buffered.n_pending == 5
    assert REDIS_DROPPED._value.get() - before == 4
    gate.is_open.set()
    assert buffered.close(WAIT_S)
    assert gate.chunks == [["u2", "u3", "u4"]]
    assert [d["decision_id"] for d in gate.latest_decisions("u1", 9)] == ["d3", "d2"]


def test_forgetting_takes_back_what_waits_and_outlasts_an_outage() -> None:
    gate = Gate()
    gate.put_decisions([decision_row("u1", 1)])
    buffered = BufferedStore(gate, clock=time.monotonic, flush_ms=1)
    buffered.put_features([feature_row("u1", 1.0)])
    wait_for(gate, 1)  # the row is on its way, and fails
    buffered.put_decisions([decision_row("u1", 2), decision_row("u2", 3)])
    buffered.forget("u1")
    gate.is_open.set()
    assert buffered.flush(WAIT_S)
    assert gate.get_features(["u1"]) == [None]
    assert gate.latest_decisions("u1", 9) == []
    assert len(gate.latest_decisions("u2", 9)) == 1
    assert buffered.close(WAIT_S)


def test_row_after_an_erasure_is_written_after_it_however_many_wait() -> None:
    store = MemoryStore()
    buffered = BufferedStore(store, clock=time.monotonic, flush_ms=60_000)
    for i in range(600):  # more than a chunk
        buffered.forget(f"u{i}")
    buffered.put_features([feature_row("u599", 1.0)])
    assert buffered.flush(WAIT_S)
    assert store.get_features(["u599"]) != [None]
    assert buffered.close(WAIT_S)


def test_close_says_that_rows_were_lost() -> None:
    buffered = BufferedStore(Gate(), clock=time.monotonic, flush_ms=1)
    buffered.put_features([feature_row("u1", 1.0)])
    assert not buffered.close(timeout_seconds=0.05)
    assert buffered.n_pending == 1


def test_bug_in_the_writer_stops_the_flow() -> None:
    buffered = BufferedStore(MemoryStore(), clock=time.monotonic, flush_ms=1)
    buffered.put_features([FeatureRow("u1", 1, [1.0])])  # too few columns
    with pytest.raises(TypeError, match="argument"):
        buffered.flush(WAIT_S)
    with pytest.raises(TypeError, match="argument"):
        buffered.put_features([feature_row("u1", 1.0)])


def test_writer_catches_up_when_redis_comes_back(server: Server) -> None:
    store, before = RedisStore(connector(server.url)), failures()
    buffered = BufferedStore(store, clock=time.monotonic, flush_ms=5)
    buffered.put_features([feature_row("u0", 0.0)])
    assert buffered.flush(WAIT_S)

    server.kill()
    for i in range(1, 1_500):
        buffered.put_features([feature_row(f"u{i}", float(i))])
    decisions: list[DecisionRow] = [decision_row(f"u{i}", i) for i in range(200)]
    buffered.put_decisions(decisions)
    assert not buffered.flush(0.1)
    with pytest.raises(StoreUnavailableError):
        buffered.get_features(["u1"])

    server.start()
    assert buffered.flush(WAIT_S)
    rows: list[dict[str, Any] | None] = store.get_features([f"u{i}" for i in range(1_500)])
    assert [row and row["session_events"] for row in rows] == [None, *map(float, range(1, 1_500))]
    assert [d["decision_id"] for d in buffered.latest_decisions("u7", 1)] == ["d7"]
    assert failures() > before
    assert buffered.close(WAIT_S)


def test_the_rows_of_one_flush_are_spread_over_the_time_until_the_next() -> None:
    gate, end = Gate(), time.monotonic() + WAIT_S
    gate.is_open.set()
    buffered = BufferedStore(gate, clock=time.monotonic, flush_ms=60_000)
    buffered.put_features([feature_row(f"u{n}", 1.0) for n in range(300)])
    buffered._wake.set()  # as if the minute were over
    while buffered.n_pending > 200:
        assert time.monotonic() < end
        time.sleep(0.001)
    time.sleep(0.1)  # the next hundred would long be written
    # They are in a quarter of a minute, or when somebody waits for them.
    assert [len(chunk) for chunk in gate.chunks] == [100]
    assert buffered.flush(WAIT_S)
    assert [len(chunk) for chunk in gate.chunks] == [100, 100, 100]
    assert buffered.close(WAIT_S)
