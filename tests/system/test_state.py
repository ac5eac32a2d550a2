"""State looked into while a flow runs, and taken to a host that has none."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from flows.children import ChildError
from flows.decide import STORES
from flows.settings import child_environment
from operators import recovery
from operators.incarnations import checkpoints_of, newest
from operators.savepoints import Place
from operators.shards import SnapshotRef
from tests.conftest import ROOT
from tests.system.harness import (
    DECISIONS,
    EVENTS,
    N_PARTITIONS,
    PACE,
    Case,
    Stage,
    Verdict,
    by_id,
    judge,
    total,
    wait,
)

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture
def stage(one_stage: Stage) -> Stage:
    """One broker: what is tested here lies on our side of it."""
    return one_stage


def pushflow(directory: Path, *arguments: str, stage: Stage | None = None) -> tuple[int, Any, str]:
    """Run `pushflow state ...`; return its exit code, its last line's JSON, and what it said."""
    values = {"PUSHFLOW_STATE__DIRECTORY": str(directory)}
    if stage is not None:
        kafka = stage.settings.kafka
        values["PUSHFLOW_KAFKA__BOOTSTRAP_SERVERS"] = kafka.bootstrap_servers
        values["PUSHFLOW_KAFKA__TOPIC_PREFIX"] = kafka.topic_prefix
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "state", *arguments],
        env=child_environment(values, ROOT),
        cwd=directory.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = done.stdout.splitlines()
    return done.returncode, orjson.loads(lines[-1]) if lines else None, done.stderr


def state_steps(home: Path) -> dict[str, dict[str, Any]]:
    """Return the steps whose snapshots name checkpoints."""
    store = newest(home)
    assert store is not None
    _, told = recovery.resume_snapshots(store)
    return {s: v for s, v in told.items() if isinstance(next(iter(v.values())), SnapshotRef)}


def test_a_running_flow_can_be_looked_into_copied_and_checked(
    case: Case, stage: Stage, tmp_path: Path
) -> None:
    directory, away = tmp_path / "state", tmp_path / "away"
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)
    children = [*stage.start("decide"), *stage.start("learn")]
    stage.send(case.events)
    wait("all decisions", lambda: len(decisions.rows) >= len(case.expected), children)
    n_users = len({message.key for message in case.events})
    user = (case.events[0].key or b"").decode()

    def inspected() -> dict[str, Any]:
        code, found, said = pushflow(directory, "inspect", "decide", "--lags", stage=stage)
        assert code == 0, said
        return found  # type: ignore[no-any-return]

    def is_read() -> bool:
        return not any(inspected()["lags"][stage.topic(EVENTS)].values())

    assert wait("the epoch that holds all", is_read, children)
    found = inspected()
    export = pushflow(directory, "export", "decide", str(away), "--json", str(tmp_path / "states"))
    checked = pushflow(directory, "verify", "decide")
    learned = pushflow(directory, "verify", "learn")
    one = pushflow(directory, "inspect", "decide", "--user", user)
    nobody = pushflow(directory, "inspect", "decide", "--user", "nobody-at-all")
    refused = pushflow(directory, "import", "decide", str(away))
    for child in children:
        child.check()
    codes = [child.stop() for child in children]

    assert codes == [0, 0]
    assert found["stores"]["users"]["keys"] >= n_users
    assert [s["run_id"] for s in found["starts"]] == [found["owner"]]
    assert sum(found["sources"][stage.topic(EVENTS)].values()) == len(case.events)
    assert len(found["sinks"]["decide.decisions"]) == N_PARTITIONS
    assert export[0] == checked[0] == learned[0] == one[0] == 0, (export, checked, learned, one)
    assert checked[1]["wrong"] == learned[1]["wrong"] == []
    assert checked[1]["keys"]["users"] == found["stores"]["users"]["keys"]
    assert learned[1]["keys"]["items"] > 0
    assert one[1]["users"]["last_ms"] > 0
    assert nobody[0] == 1
    assert refused[0] == 1
    assert "there is a state in" in refused[2]
    rows = [orjson.loads(line) for line in (tmp_path / "states").read_bytes().splitlines()]
    states = {(row["store"], row["key"]): row["state"] for row in rows}
    assert len(states) == len(rows) == export[1]["json_rows"]
    assert states["users", user] == one[1]["users"]
    for flow in ("decide", "learn"):  # no step is forgotten
        assert state_steps(directory / flow).keys() == STORES[flow].keys()

    code, imported, said = pushflow(tmp_path / "elsewhere", "import", "decide", str(away))
    assert (code, imported["epoch"]) == (0, export[1]["epoch"]), said
    assert pushflow(tmp_path / "elsewhere", "verify", "decide")[1]["keys"] == checked[1]["keys"]


def test_a_changed_byte_is_found_by_verify(case: Case, stage: Stage, tmp_path: Path) -> None:
    directory = tmp_path / "state"
    decisions = stage.collect(DECISIONS, by_id)
    stage.fill_tables(case)
    [child] = stage.start("decide")
    stage.send(case.events[: len(case.events) // 4])
    wait("a decision", lambda: len(decisions.rows) > 0, [child])
    assert child.stop() == 0
    assert pushflow(directory, "verify", "decide")[0] == 0
    home = directory / "decide"
    told = {"decide.users": state_steps(home)["decide.users"]}
    named = checkpoints_of(home, told, STORES["decide"])
    table = max((path for checkpoint in named for path in checkpoint.glob("*.sst")), key=_size)
    content = bytearray(table.read_bytes())
    content[1_000] ^= 0xFF  # in the first block of rows
    table.write_bytes(content)

    code, found, _ = pushflow(directory, "verify", "decide")

    assert code == 1
    assert any("is torn: Corruption" in wrong for wrong in found["wrong"])


def _size(path: Path) -> int:
    return path.stat().st_size


def test_a_host_without_state_goes_on_from_a_savepoint_of_the_one_that_died(
    case: Case, stage: Stage, tmp_path: Path
) -> None:
    remote = f"file://{tmp_path}/remote"
    values = {"PUSHFLOW_STATE__REMOTE": remote, "PUSHFLOW_STATE__REMOTE_SECONDS": "0.5"}
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)
    place, third = Place(remote, "decide"), len(case.events) // 3
    for host in range(2):
        [child] = stage.start("decide", **values)
        n_rows, last = len(decisions.rows), max(place.numbers(), default=0)
        stage.send(case.events[host * third : (host + 1) * third], PACE)
        assert wait("decisions", lambda n=n_rows: len(decisions.rows) > n, [child])  # type: ignore[misc]
        assert wait("a savepoint", lambda n=last: max(place.numbers(), default=0) > n, [child])  # type: ignore[misc]
        child.kill()
        shutil.rmtree(tmp_path / "state")
    [child] = stage.start("decide", **values)
    stage.send(case.events[2 * third :], PACE)
    wait("all decisions", lambda: len(decisions.rows) >= len(case.expected), [child])
    assert total(child, "pushflow_savepoints_total", "failed") == 0

    assert child.stop() == 0
    assert judge(decisions.close(), case.expected) == Verdict(len(case.expected), 0, 0, 0, 0)
    assert "took savepoint" in child.log.read_text()


def test_a_remote_place_that_fails_does_not_stop_the_flow(
    case: Case, stage: Stage, tmp_path: Path
) -> None:
    values = {
        "PUSHFLOW_STATE__REMOTE": f"file://{tmp_path}/remote",
        "PUSHFLOW_STATE__REMOTE_SECONDS": "0.2",
    }
    stage.fill_tables(case)
    decisions = stage.collect(DECISIONS, by_id)
    [child] = stage.start("decide", **values)
    assert wait("a savepoint", (tmp_path / "remote" / "decide" / "owner").exists, [child])
    (tmp_path / "remote").rename(tmp_path / "away")
    (tmp_path / "remote").write_text("a file where a directory was")
    stage.send(case.events)
    wait("all decisions", lambda: len(decisions.rows) >= len(case.expected), [child])
    failed = lambda: total(child, "pushflow_savepoints_total", "failed") > 1  # noqa: E731
    assert wait("failures are counted", failed, [child])

    assert child.stop() == 0
    assert judge(decisions.close(), case.expected) == Verdict(len(case.expected), 0, 0, 0, 0)
    assert child.log.read_text().count("no savepoint in state.remote") == 1

    shutil.rmtree(tmp_path / "state")  # now there is nothing to begin with
    with pytest.raises(ChildError, match=r"state\.remote cannot be read"):
        stage.start("decide", **values)
