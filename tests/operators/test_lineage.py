"""operators.lineage: directories are claimed once, and go when no resume can ask for them."""

from pathlib import Path

import pytest

from operators.lineage import CheckpointError, Lineage
from operators.shards import SnapshotRef


def close_epochs(lineage: Lineage, n: int, *shards: str) -> None:
    """Close `n` epochs, in each of which `shards` were awake."""
    for _ in range(n):
        lineage.add(shards, Path.mkdir)
        lineage.commit_before(
            {shard: SnapshotRef(shard, lineage.name, lineage.number) for shard in shards}
        )


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    Lineage(tmp_path, "users", "a", 1)
    assert (tmp_path / "FORMAT").read_text() == "2\n"
    (tmp_path / "FORMAT").write_text("3\n")
    with pytest.raises(CheckpointError, match="run the newer pushflow"):
        Lineage(tmp_path, "users", "b", 1)
    assert (tmp_path / "FORMAT").read_text() == "3\n"


def test_an_older_format_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "FORMAT").write_text("1\n")
    Lineage(tmp_path, "users", "a", 1)
    assert (tmp_path / "FORMAT").read_text() == "2\n"


def test_each_worker_of_a_run_gets_its_own_and_one_too_many_is_refused(tmp_path: Path) -> None:
    assert [Lineage(tmp_path, "users", "a", 2).name for _ in range(2)] == ["a-0", "a-1"]
    with pytest.raises(ValueError, match="needs a run id of its own"):
        Lineage(tmp_path, "users", "a", 2)


@pytest.mark.parametrize("run_id", ["", "a/b", "x" * 65, "a\n"])
def test_a_run_id_that_is_no_plain_directory_name_is_refused(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(ValueError, match="run_id must be 1 to 64"):
        Lineage(tmp_path, "users", run_id, 1)


def test_an_old_lineage_goes_once_all_that_it_named_is_committed(tmp_path: Path) -> None:
    old = Lineage(tmp_path, "users", "old", 1)
    close_epochs(old, 1, "01", "02")
    new = Lineage(tmp_path, "users", "new", 1)
    close_epochs(new, 2, "01")
    assert old.path.exists()

    close_epochs(new, 1, "01", "02")

    assert not old.path.exists()


def test_a_torn_last_line_commits_nothing(tmp_path: Path) -> None:
    old = Lineage(tmp_path, "users", "old", 1)
    close_epochs(old, 1, "1")
    left, right = (Lineage(tmp_path, "users", "new", 2) for _ in range(2))
    (left.path / "shards").write_text("named 1\ncommitted 1")  # perhaps the start of 17
    close_epochs(right, 1, "2")
    assert old.path.exists()

    (left.path / "shards").write_text("named 1\ncommitted 1\n")
    close_epochs(right, 1, "2")

    assert not old.path.exists()
