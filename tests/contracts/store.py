"""What every feature store must do; a store's test class inherits it and says how to make one."""

from abc import ABC, abstractmethod

import orjson
import pytest

from models.features import CONTEXT, N_CONTEXT, spec_hash
from operators.feature_store import DecisionRow, FeatureStore
from operators.hops import FeatureRow
from operators.metrics import FALLBACKS

T0_MS = 1_700_000_000_000


def feature_row(user_id: str, value: float, time_ms: int = T0_MS) -> FeatureRow:
    return FeatureRow(user_id, time_ms, [value] * N_CONTEXT)


def decision_row(user_id: str, number: int) -> DecisionRow:
    payload = orjson.dumps({"decision_id": f"d{number}", "user_id": user_id})
    return user_id, f"d{number}", payload, T0_MS + number


def failures() -> float:
    """Return how many failures of a store were counted so far."""
    return FALLBACKS.labels("redis")._value.get()


class FeatureStoreContract(ABC):
    """Every test gets an empty store; `settle` waits until its writes can be read."""

    @pytest.fixture
    @abstractmethod
    def store(self) -> FeatureStore: ...

    def settle(self, store: FeatureStore) -> None:
        return

    def ids(self, store: FeatureStore, user_id: str, n: int = 100) -> list[str]:
        self.settle(store)
        return [decision["decision_id"] for decision in store.latest_decisions(user_id, n)]

    def test_features_come_back_by_name_with_time_and_spec(self, store: FeatureStore) -> None:
        values = [i + 0.25 for i in range(N_CONTEXT)]
        store.put_features([FeatureRow("u1", T0_MS, values)])
        self.settle(store)
        assert store.get_features(["u1"]) == [
            {"time_ms": T0_MS, "spec": spec_hash(), **dict(zip(CONTEXT, values, strict=True))}
        ]

    def test_unknown_users_are_none_in_their_place(self, store: FeatureStore) -> None:
        store.put_features([feature_row("u2", 2.0)])
        self.settle(store)
        first, second, third = store.get_features(["u1", "u2", "u3"])
        assert first is None and third is None
        assert second is not None and second["session_events"] == 2.0

    def test_newest_row_of_a_batch_wins(self, store: FeatureStore) -> None:
        store.put_features([feature_row("u1", 1.0), feature_row("u1", 2.0)])
        store.put_features([feature_row("u1", 3.0)])
        self.settle(store)
        (row,) = store.get_features(["u1"])
        assert row is not None and row["session_events"] == 3.0

    def test_not_a_number_is_stored_as_null(self, store: FeatureStore) -> None:
        store.put_features([feature_row("u1", float("nan"))])
        self.settle(store)
        (row,) = store.get_features(["u1"])
        assert row is not None and row["session_events"] is None

    def test_empty_batches_do_nothing(self, store: FeatureStore) -> None:
        store.put_features([])
        store.put_decisions([])
        self.settle(store)
        assert store.get_features([]) == []
        assert store.latest_decisions("u1", 5) == []

    def test_decisions_come_newest_first_and_apart_by_user(self, store: FeatureStore) -> None:
        store.put_decisions([decision_row("u1", 1), decision_row("u2", 2), decision_row("u1", 3)])
        assert self.ids(store, "u1") == ["d3", "d1"]
        assert self.ids(store, "u2") == ["d2"]

    def test_ten_decisions_are_kept_and_n_returned(self, store: FeatureStore) -> None:
        store.put_decisions([decision_row("u1", number) for number in range(15)])
        assert self.ids(store, "u1") == [f"d{number}" for number in range(14, 4, -1)]
        assert self.ids(store, "u1", 2) == ["d14", "d13"]
        assert self.ids(store, "u1", 0) == []

    def test_replayed_decisions_stand_once_and_in_the_same_order(self, store: FeatureStore) -> None:
        rows = [decision_row("u1", number) for number in range(4)]
        store.put_decisions(rows)
        store.put_decisions(rows[2:])
        assert self.ids(store, "u1") == ["d3", "d2", "d1", "d0"]

    def test_forgotten_user_is_gone_and_others_stay(self, store: FeatureStore) -> None:
        store.put_features([feature_row("u1", 1.0), feature_row("u2", 2.0)])
        store.put_decisions([decision_row("u1", 1), decision_row("u2", 2)])
        store.forget("u1")
        assert self.ids(store, "u1") == []
        assert self.ids(store, "u2") == ["d2"]
        first, second = store.get_features(["u1", "u2"])
        assert first is None and second is not None

    def test_forgotten_user_may_come_back(self, store: FeatureStore) -> None:
        store.put_features([feature_row("u1", 1.0)])
        store.forget("u1")
        store.put_features([feature_row("u1", 2.0)])
        self.settle(store)
        (row,) = store.get_features(["u1"])
        assert row is not None and row["session_events"] == 2.0

    def test_any_text_is_a_user_id(self, store: FeatureStore) -> None:
        odd = "用户 1:{x}*\n\x00"
        store.put_features([feature_row(odd, 1.0)])
        store.put_decisions([decision_row(odd, 1)])
        assert self.ids(store, odd) == ["d1"]
        assert store.get_features([odd])[0] is not None
