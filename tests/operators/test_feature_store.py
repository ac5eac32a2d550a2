"""operators.feature_store: the contract on each store, and what Redis may refuse."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from operators.feature_store import (
    FeatureStore,
    MemoryStore,
    RedisStore,
    StoreUnavailableError,
    connector,
)
from tests.contracts.store import FeatureStoreContract, decision_row, failures, feature_row
from tests.operators.conftest import Server


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


def test_write_that_a_full_redis_refuses_is_an_outage(server: Server) -> None:
    client = redis.Redis.from_url(server.url)
    client.config_set("maxmemory", 1)
    with pytest.raises(StoreUnavailableError, match="maxmemory"):
        RedisStore(connector(server.url)).put_features([feature_row("u1", 1.0)])
    client.close()
