"""operators.state: what a snapshot names comes back from RocksDB, and nothing else does."""

import itertools
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.checkpoints import CorruptionError
from operators.lineage import CheckpointError
from operators.shards import SnapshotRef
from operators.state import Shard, StateStore

State = list[int]  # [events, sum of their numbers]


def encode(state: State) -> bytes:
    return b"%d %d" % tuple(state)


def decode(value: bytes) -> State:
    return [int(part) for part in value.split()]


def new(key: str) -> State:
    return [0, 0]


def open_store(root: Path, run_id: str, n_workers: int = 1, **options: Any) -> StateStore[State]:
    return StateStore(
        root,
        "users",
        encode=encode,
        decode=decode,
        new=new,
        run_id=run_id,
        n_workers=n_workers,
        **options,
    )


def count(shard: Shard[State], *users: str) -> None:
    """Count one event for each of `users`."""
    shard.touch()
    for user in users:
        shard.get(user)[0] += 1


def counts(shard: Shard[State]) -> dict[str, int]:
    return {user: state[0] for user, state in shard.scan()}


def checkpoints(root: Path, lineage: str) -> list[str]:
    return sorted(d.name for d in (root / "users" / lineage).iterdir() if d.name.isdigit())


def table_files(root: Path) -> set[str]:
    return {file.name for file in (root / "users" / "a-0" / "live").glob("*.sst")}


# Keys and states.


def test_state_comes_back_from_the_snapshot_and_not_from_after_it(tmp_path: Path) -> None:
    shard = open_store(tmp_path, "a").open_shard("07", None)
    count(shard, "ann", "bob", "ann")
    ref = shard.snapshot()
    count(shard, "ann", "eve")

    resumed = open_store(tmp_path, "b").open_shard("07", ref)

    assert counts(resumed) == {"ann": 2, "bob": 1}
    assert counts(shard) == {"ann": 3, "bob": 1, "eve": 1}


def test_deletion_survives_a_resume_and_a_later_get_starts_anew(tmp_path: Path) -> None:
    shard = open_store(tmp_path, "a").open_shard("07", None)
    count(shard, "ann", "bob", "eve")
    shard.snapshot()
    shard.touch()
    shard.delete("ann")
    shard.delete("bob")
    count(shard, "bob")

    resumed = open_store(tmp_path, "b").open_shard("07", shard.snapshot())

    assert shard.peek("ann") is None
    assert resumed.peek("ann") is None
    assert counts(resumed) == {"bob": 1, "eve": 1}


def test_a_state_held_across_a_scan_is_still_saved(tmp_path: Path) -> None:
    shard = open_store(tmp_path, "a").open_shard("07", None)
    shard.touch()
    state = shard.get("ann")
    assert counts(shard) == {"ann": 0}
    state[0] = 5

    resumed = open_store(tmp_path, "b").open_shard("07", shard.snapshot())

    assert counts(resumed) == {"ann": 5}


def test_get_without_touch_is_not_lost(tmp_path: Path) -> None:
    shard = open_store(tmp_path, "a").open_shard("07", None)
    shard.get("ann")[0] = 1
    shard.snapshot()
    shard.get("ann")[0] = 2

    resumed = open_store(tmp_path, "b").open_shard("07", shard.snapshot())

    assert counts(resumed) == {"ann": 2}


def test_scan_sees_only_its_shard_in_order_and_not_what_is_deleted_on_the_way(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path, "a")
    one, ten = store.open_shard("p1", None), store.open_shard("p10", None)
    count(one, "c", "a", "b", "张伟")
    count(ten, "z")
    seen = []
    for user, _ in one.scan():
        seen.append(user)
        one.delete("b")

    assert seen == ["a", "c", "张伟"]
    assert list(ten.scan_raw()) == [("z", b"1 0")]


def test_hot_states_stay_within_capacity_and_evicted_ones_come_back_the_same(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path, "a", hot_capacity=8)
    shard = store.open_shard("07", None)
    users = [f"user-{i}" for i in range(100)]
    most_hot = 0
    for user in users:
        count(shard, user)  # one epoch: what is over the capacity is written back early
        most_hot = max(most_hot, store.n_hot)
    ref = shard.snapshot()

    assert most_hot <= 8 + 8 // 4 + 1
    assert store.n_hot <= 8
    assert counts(shard) == dict.fromkeys(sorted(users), 1)
    assert counts(open_store(tmp_path, "b").open_shard("07", ref)) == counts(shard)


def test_touched_states_are_not_evicted_while_an_activation_holds_them(tmp_path: Path) -> None:
    shard = open_store(tmp_path, "a", hot_capacity=2).open_shard("07", None)
    shard.touch()
    held = [shard.get(f"user-{i}") for i in range(20)]
    for state in held:
        state[0] = 7

    resumed = open_store(tmp_path, "b").open_shard("07", shard.snapshot())

    assert set(counts(resumed).values()) == {7}


class Step(NamedTuple):
    action: str
    shard: int
    user: str


STEPS = st.builds(
    Step,
    st.sampled_from(["count"] * 6 + ["delete", "delete", "scan", "snapshot", "crash"]),
    st.integers(0, 1),
    st.sampled_from(["", "a", "b", "c", "|", "}", "日本", "long" * 30]),
)


class Harness:
    """Two shards of a store beside two plain dicts, driven in the same way."""

    def __init__(self, root: Path) -> None:
        self.root, self.runs = root, itertools.count()
        self.saved: list[tuple[Any, dict[str, int]]] = [(None, {}), (None, {})]
        self.resume()

    def resume(self) -> None:
        self.store = open_store(self.root, f"run{next(self.runs)}", hot_capacity=2)
        refs = [ref for ref, _ in self.saved]
        self.shards = [self.store.open_shard(n, r) for n, r in zip("01", refs, strict=True)]
        self.plain = [dict(plain) for _, plain in self.saved]

    def apply(self, step: Step) -> None:
        shard, plain = self.shards[step.shard], self.plain[step.shard]
        if step.action == "count":
            count(shard, step.user)
            plain[step.user] = plain.get(step.user, 0) + 1
        elif step.action == "delete":
            shard.touch()
            shard.delete(step.user)
            plain.pop(step.user, None)
        elif step.action == "scan":
            assert counts(shard) == plain
        elif step.action == "snapshot":
            copies = [dict(p) for p in self.plain]
            self.saved = [(s.snapshot(), c) for s, c in zip(self.shards, copies, strict=True)]
        else:
            self.store.close()
            self.resume()


@settings(max_examples=25)
@given(steps=st.lists(STEPS, max_size=40))
def test_a_store_is_two_dicts_that_fall_back_to_their_snapshots(
    steps: list[Step], tmp_path_factory: pytest.TempPathFactory
) -> None:
    harness = Harness(tmp_path_factory.mktemp("state"))
    for step in steps:
        harness.apply(step)

    assert [counts(s) for s in harness.shards] == harness.plain
    assert [list(p) for p in map(counts, harness.shards)] == [sorted(p) for p in harness.plain]
    harness.store.close()


# Epochs, checkpoints and their clearing.


def test_what_an_epoch_touched_goes_to_disk_before_the_epoch_closes(tmp_path: Path) -> None:
    now = [0.0]
    store = open_store(
        tmp_path, "a", clock=lambda: now[0], write_back_seconds=0.05, flush_seconds=1.0
    )
    shard = store.open_shard("07", None)
    count(shard, "ann")
    shard.snapshot()
    before = table_files(tmp_path)

    count(shard, "bob")
    now[0] = 2.0
    count(shard, "eve")  # the touch writes bob back, and RocksDB begins
    deadline = time.monotonic() + 60
    while table_files(tmp_path) <= before and time.monotonic() < deadline:
        time.sleep(0.01)

    assert table_files(tmp_path) > before
    ref = shard.snapshot()
    assert counts(open_store(tmp_path, "b").open_shard("07", ref)) == {"ann": 1, "bob": 1, "eve": 1}


def test_shards_of_one_epoch_name_one_checkpoint_and_an_idle_epoch_costs_none(
    tmp_path: Path,
) -> None:
    calls: list[tuple[float, int]] = []
    ticks = itertools.count()
    store = open_store(
        tmp_path,
        "a",
        clock=lambda: float(next(ticks)),
        on_checkpoint=lambda seconds, n_touched: calls.append((seconds, n_touched)),
    )
    one, two = store.open_shard("01", None), store.open_shard("02", None)
    count(one, "ann", "bob")
    count(two, "eve")
    first = [one.snapshot(), two.snapshot()]
    one.touch()
    idle = one.snapshot()
    count(two, "eve")
    last = two.snapshot()

    assert first == [SnapshotRef("01", "a-0", 1), SnapshotRef("02", "a-0", 1)]
    assert (idle, last) == (SnapshotRef("01", "a-0", 1), SnapshotRef("02", "a-0", 2))
    assert calls == [(1.0, 3), (1.0, 0), (1.0, 1)]


def test_cleanup_keeps_what_the_committed_epoch_named(tmp_path: Path) -> None:
    store = open_store(tmp_path, "a")
    one, two = store.open_shard("01", None), store.open_shard("02", None)
    count(one, "ann")
    count(two, "eve")
    refs = [one.snapshot(), two.snapshot()]
    for _ in range(3):  # shard 02 sleeps, so that its name stays checkpoint 1
        count(one, "ann")
        committed, refs[0] = refs[0], one.snapshot()

    assert checkpoints(tmp_path, "a-0") == ["1", "3", "4"]
    resumed = open_store(tmp_path, "b")
    assert counts(resumed.open_shard("02", refs[1])) == {"eve": 1}
    assert counts(resumed.open_shard("01", committed)) == {"ann": 3}


def test_retain_keeps_more_committed_checkpoints(tmp_path: Path) -> None:
    shard = open_store(tmp_path, "a", retain=2).open_shard("07", None)
    refs = []
    for _ in range(6):
        count(shard, "ann")
        refs.append(shard.snapshot())

    assert checkpoints(tmp_path, "a-0") == ["3", "4", "5", "6"]
    assert counts(open_store(tmp_path, "b").open_shard("07", refs[2])) == {"ann": 3}


def test_a_resumed_shard_is_settled_once_it_is_woken(tmp_path: Path) -> None:
    shard = open_store(tmp_path, "a").open_shard("07", None)
    count(shard, "ann")
    resumed = open_store(tmp_path, "b").open_shard("07", shard.snapshot())

    assert (shard.is_settled, resumed.is_settled) == (True, False)
    resumed.touch()
    assert resumed.snapshot() == SnapshotRef("07", "b-0", 1)
    assert resumed.is_settled


def test_old_lineages_go_only_when_every_shard_is_committed_in_this_run(tmp_path: Path) -> None:
    old = open_store(tmp_path, "old")
    names = {}
    for name in ("01", "02"):
        count(old.open_shard(name, None), "ann")
    names = {s.name: s.snapshot() for s in old._shards.values()}
    left, right = (open_store(tmp_path, "new", n_workers=3) for _ in range(2))  # one has no shard
    one, two = left.open_shard("01", names["01"]), right.open_shard("02", names["02"])
    for _ in range(3):
        count(one, "ann")
        one.snapshot()
    assert (tmp_path / "users" / "old-0").exists()
    for _ in range(2):
        count(two, "ann")
        two.snapshot()

    assert not (tmp_path / "users" / "old-0").exists()
    assert (counts(one), counts(two)) == ({"ann": 4}, {"ann": 3})


def test_two_lineages_meet_in_one_store_and_part_again(tmp_path: Path) -> None:
    stores = [open_store(tmp_path, "a", n_workers=2) for _ in range(2)]
    refs = []
    for i, store in enumerate(stores * 2):
        shard = store.open_shard(f"{i:02d}", None)
        count(shard, *(f"user-{i}-{j}" for j in range(i + 1)))
        refs.append(shard.snapshot())

    joined = open_store(tmp_path, "b")
    shards = [joined.open_shard(ref.shard, ref) for ref in refs]
    count(shards[3], "late")
    together = [shard.snapshot() for shard in shards]
    parted = [open_store(tmp_path, "c", n_workers=2) for _ in range(2)]
    again = [parted[i // 2].open_shard(ref.shard, ref) for i, ref in enumerate(together)]

    assert {ref.lineage for ref in refs} == {"a-0", "a-1"}
    assert {ref.lineage for ref in together} == {"b-0"}
    assert [len(counts(shard)) for shard in again] == [1, 2, 3, 5]


def test_a_shard_adopted_after_the_store_opened_is_in_the_next_checkpoint(tmp_path: Path) -> None:
    stores = [open_store(tmp_path, "a", n_workers=2) for _ in range(2)]
    one, two = (s.open_shard(n, None) for s, n in zip(stores, ("01", "02"), strict=True))
    count(one, "ann")
    count(two, "eve")
    refs = [one.snapshot(), two.snapshot()]

    store = open_store(tmp_path, "b")
    early = store.open_shard("01", refs[0])
    count(early, "ann")  # a timer, while Bytewax still loads
    late = store.open_shard("02", refs[1])
    named = early.snapshot(), late.snapshot()

    assert {ref.lineage for ref in named} == {"b-0"}
    assert counts(open_store(tmp_path, "c").open_shard("02", named[1])) == {"eve": 1}


def test_a_late_shard_of_the_same_lineage_but_a_newer_checkpoint_is_not_taken_stale(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path, "a")
    one, two = store.open_shard("01", None), store.open_shard("02", None)
    count(one, "ann")
    count(two, "eve", "eva")
    old = one.snapshot()
    two.snapshot()
    count(two, "eve")
    two.delete("eva")
    newer = two.snapshot()

    resumed = open_store(tmp_path, "b")
    count(resumed.open_shard("01", old), "ann")
    late = resumed.open_shard("02", newer)

    assert counts(late) == {"eve": 2}


def test_a_shard_that_starts_empty_does_not_find_another_run_s_leftovers(tmp_path: Path) -> None:
    store = open_store(tmp_path, "a")
    one, two = store.open_shard("01", None), store.open_shard("02", None)
    count(one, "ann")
    count(two, "eve")
    ref = one.snapshot()

    resumed = open_store(tmp_path, "b")
    fresh = resumed.open_shard("02", None)
    count(resumed.open_shard("01", ref), "ann")

    assert fresh.peek("eve") is None
    assert counts(fresh) == {}


# What can be wrong.


@pytest.mark.parametrize("at", [0.001, 0.3, 0.8])
def test_a_changed_byte_is_told_and_never_read_as_the_end_of_the_shard(
    tmp_path: Path, at: float
) -> None:
    store = open_store(tmp_path, "a")
    shard, base = store.open_shard("01", None), store.open_shard("02", None)
    count(shard, *(f"user-{n}" for n in range(5_000)))
    count(base, "ann")
    ref = shard.snapshot()
    [table] = (tmp_path / "users" / "a-0" / str(ref.number)).glob("*.sst")
    content = bytearray(table.read_bytes())
    n_rows = content.find(b"rocksdb.block.based.table")  # properties follow the rows and filters
    content[int(n_rows * at) + 20] ^= 0xFF
    table.write_bytes(content)

    resumed = open_store(tmp_path, "b").open_shard("01", ref)
    with pytest.raises(CorruptionError, match="Corruption: block checksum mismatch"):
        list(resumed.scan())
    moved = open_store(tmp_path, "c")
    moved.open_shard("02", None).touch()  # so that "01" is copied in, not linked
    with pytest.raises(CheckpointError, match=r"cannot be opened: .*checksum mismatch"):
        moved.open_shard("01", ref)


@pytest.mark.parametrize("lost", ["CURRENT", "*.sst", "MANIFEST-*"])
@pytest.mark.parametrize("is_base", [True, False])
def test_a_torn_checkpoint_is_named_with_the_mend(tmp_path: Path, lost: str, is_base: bool) -> None:
    store = open_store(tmp_path, "a", n_workers=2)
    other = open_store(tmp_path, "a", n_workers=2).open_shard("02", None)
    count(other, "eve")
    shard = store.open_shard("01", None)
    count(shard, "ann")
    ref = shard.snapshot()
    path = tmp_path / "users" / "a-0" / "1"
    for file in path.glob(lost):
        file.unlink()

    resumed = open_store(tmp_path, "b")
    if not is_base:  # then it is copied from, not linked
        count(resumed.open_shard("02", other.snapshot()), "eve")
    with pytest.raises(CheckpointError, match=f"{path} .*To mend: move"):
        resumed.open_shard("01", ref).touch()


def test_a_missing_checkpoint_is_named_with_the_mend(tmp_path: Path) -> None:
    ref = SnapshotRef("07", "gone-0", 3)
    with pytest.raises(CheckpointError, match=r"users/gone-0/3 of shard 07 is missing. To mend"):
        open_store(tmp_path, "a").open_shard("07", ref)


@pytest.mark.parametrize("name", ["", "a|b", "x" * 17, "a\nb"])
def test_a_shard_name_that_would_spoil_the_keys_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="1 to 16 printable characters"):
        open_store(tmp_path, "a").open_shard(name, None)
