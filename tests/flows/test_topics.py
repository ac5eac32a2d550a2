"""What `pushflow topics create` asks of a cluster."""

import pytest

from flows.settings import Settings
from flows.topics import specs


@pytest.mark.parametrize(("copies", "in_sync"), [(1, {None}), (2, {None}), (3, {"2"}), (5, {"2"})])
def test_three_copies_are_two_in_sync(copies: int, in_sync: set[str | None]) -> None:
    found = specs(Settings(kafka={"replication": copies}))

    assert {config.get("min.insync.replicas") for _, _, _, config in found} == in_sync
    assert {replication for _, _, replication, _ in found} == {copies}
