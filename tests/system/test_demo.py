import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import pytest

from flows.audit_report import run
from flows.audit_sources import DECISIONS, Directory, read
from flows.served_student import PARITY
from flows.settings import Settings
from tests.conftest import ROOT

pytestmark = [pytest.mark.system, pytest.mark.slow]


def start(folder: Path, *options: str) -> "subprocess.Popen[str]":
    """Start a small demo in a process of its own."""
    with (folder / "stderr").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.demo", "--users", "300", "--epochs", "1", *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


def read_until(stream: IO[str], word: str) -> None:
    """Read lines up to the first with `word`."""
    for line in stream:
        if word in line:
            return
    pytest.fail(f"the demo ended before it said {word!r}")


def report_of(demo: "subprocess.Popen[str]") -> tuple[dict[str, Any], list[str]]:
    """Return the last line of what is left of the output, and the lines before it."""
    output, _ = demo.communicate(timeout=480)
    *lines, last = output.splitlines()
    found = json.loads(last)
    assert isinstance(found, dict)
    return found, lines


def assert_table(models: list[dict[str, Any]], lines: list[str]) -> None:
    """Assert that each model has its row, the one that serves too."""
    assert [row["name"] for row in models[:3]] == ["teacher", "student", "distilled"]
    assert models[3]["name"] in {"student, int8", "distilled, int8"}
    for row in models:
        [line] = [line for line in lines if f" {row['name']} " in line and "│" in line]
        assert f"{row['ndcg']:.4f}" in line
        assert ("serves" in line) == row["serves"]
    assert all(row["parity"] <= PARITY for row in models[1:3])


def test_a_whole_run_loses_nothing_and_decides_nothing_twice(tmp_path: Path) -> None:
    files = "--report", str(tmp_path / "report.json"), "--log", str(tmp_path / "log")
    demo = start(tmp_path, "--seconds", "12", *files)

    found, lines = report_of(demo)

    assert demo.returncode == 0
    assert (found["lost"], found["duplicates"], found["exit_codes"]) == (0, 0, [0, 0])
    assert found["events_decoded"] == found["events_sent"] > 0
    assert found["dead_letters"] == found["rubbish_sent"] > 0
    assert sum(found["decisions"].values()) == found["triggers"] > 0
    assert found["rewards_learned"] > 0
    assert json.loads((tmp_path / "report.json").read_text()) == found
    assert (tmp_path / "report.png").stat().st_size > 1_000
    assert_table(found["models"], lines)
    [served] = [row["version"] for row in found["models"] if row["serves"]]
    log = Directory(tmp_path / "log")
    assert {one.learning.model_version for one in read(log, DECISIONS)} - {"", "none"} == {served}
    audit = run(Settings(), log).audit
    assert audit.n_decisions == found["triggers"]
    assert audit.is_clean, audit.examples
    assert audit.n_from_posterior == audit.n_asked > 0


def test_an_interrupt_ends_the_run_early_with_its_summary(tmp_path: Path) -> None:
    report = "--report", str(tmp_path / "report.json")
    demo = start(tmp_path, "--seconds", "600", *report)
    assert demo.stdout is not None
    read_until(demo.stdout, "events/s")
    time.sleep(3)

    demo.send_signal(signal.SIGINT)
    found, _ = report_of(demo)

    assert demo.returncode == 0
    assert found["seconds"] < 60
    assert (found["lost"], found["duplicates"], found["exit_codes"]) == (0, 0, [0, 0])
