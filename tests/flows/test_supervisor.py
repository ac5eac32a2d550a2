"""When a cluster is started again and how it ends, with real processes that know no Kafka."""

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import psutil
import pytest

from flows.children import FlowProcess
from flows.supervisor import Backoff, Supervisor, free_ports
from tests.conftest import ROOT

# What processes are made of. The run id ends with the number of the start.
HEAD = "import os, signal, sys, time; start = os.environ['PUSHFLOW_RUN_ID'].rpartition('-')[2]\n"
READY = "print('ready', flush=True)\n"
FINISH = "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n"
REFUSE = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
STAY = "time.sleep(600)\n"
WAIT = "while not os.path.exists(os.environ['GO']): time.sleep(0.01)\n"
LOYAL = "from flows.supervisor import end_with_supervisor; end_with_supervisor()\n"
STAYS = FINISH + READY + STAY


def at_first(text: str) -> str:
    """Return a script that is ready, waits for `go` and does `text` in the first start alone."""
    return f"{FINISH}{READY}if start == '1':\n {WAIT} {text}\n{STAY}"


class Said(io.StringIO):
    """What went to standard output or error."""

    def lines(self, begin: str = "") -> list[str]:
        """Return the lines that begin so."""
        return [line for line in self.getvalue().splitlines() if line.startswith(begin)]

    def pids(self, start: int) -> list[int]:
        """Return the process ids of a start, from 1."""
        words = self.lines("started")[start - 1].partition("pids ")[2].partition(",")[0]
        return [int(word) for word in words.split()]


class Running:
    """A supervisor at work in a thread, what it says, and what it passes on of its processes."""

    def __init__(self, *scripts: str, **options: float) -> None:
        commands = [[sys.executable, "-c", HEAD + script] for script in scripts]
        self._supervisor = Supervisor(
            len(scripts),
            lambda _: commands,
            backoff=Backoff(lambda: 0.0),
            **options,  # type: ignore[arg-type] # metrics_port is an int
        )
        self.said, self.passed_on = Said(), Said()
        self._code: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with redirect_stdout(self.said), redirect_stderr(self.passed_on):
            self._code = self._supervisor.run()

    def wait_ready(self, times: int = 1) -> None:
        """Wait until all were ready so often."""
        until(lambda: self.said.lines("ready") == ["ready"] * times)

    def end(self) -> int | None:
        """Wait for the end by itself, and return the exit code."""
        self._thread.join(60)
        return self._code

    def stop(self) -> int | None:
        """Ask to stop, and wait for the end."""
        self._supervisor.ask_to_stop()
        return self.end()


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def are_gone(pids: list[int]) -> bool:
    """Say whether processes have ended; one that nobody has waited for yet counts too."""
    alive = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in alive)


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that processes wait for."""
    path = tmp_path / "go"
    monkeypatch.setenv("GO", str(path))
    return path


def test_ready_is_not_said_before_all_are() -> None:
    running = Running(STAYS, "time.sleep(0.5); sys.exit(1)", peer_seconds=0.1)
    until(lambda: len(running.said.lines("next start")) >= 2)

    assert running.stop() == 0  # nothing was read, so there is nothing to replay
    assert running.said.lines("ready") == []


def test_a_cluster_that_is_asked_to_stop_ends_in_order() -> None:
    running = Running(STAYS, STAYS)
    running.wait_ready()

    assert running.stop() == 0
    assert len(running.said.lines("started")) == 1
    assert are_gone(running.said.pids(1))


def test_when_one_dies_all_are_started_again_under_another_run_id(go: Path) -> None:
    running = Running(STAYS, at_first("os.kill(os.getpid(), 9)"), peer_seconds=0.2)
    running.wait_ready()
    go.touch()
    running.wait_ready(2)
    code = running.stop()

    first, second = running.said.lines("started")
    assert code == 0
    assert running.said.lines("ended") == [
        "ended: process 1 with signal 9 (Killed); starting again"
    ]
    assert first.split()[1] != second.split()[1]
    assert set(running.said.pids(1)).isdisjoint(running.said.pids(2))
    assert are_gone(running.said.pids(1))


def test_when_one_begins_to_stop_all_are_asked_to(go: Path) -> None:
    alone = f"{READY}{WAIT}print('stopping', flush=True)\n{FINISH}{STAY}"  # it waits for its peer
    running = Running(alone, STAYS)
    running.wait_ready()
    go.touch()

    assert running.end() == 0
    assert len(running.said.lines("started")) == 1


def test_changed_topics_that_one_process_has_seen_are_enough(go: Path) -> None:
    changed = f"signal.signal(signal.SIGTERM, lambda *_: os._exit(75))\n{READY}"
    saw = changed + f"if start == '1':\n {WAIT} print('stopping', flush=True)\n{STAY}"
    running = Running(saw, STAYS)
    running.wait_ready()
    go.touch()
    running.wait_ready(2)

    assert running.stop() == 0
    assert running.said.lines("next start") == []


def test_a_cluster_that_cannot_end_in_order_is_started_again(go: Path) -> None:
    hangs = f"{REFUSE}{READY}if start == '1':\n {WAIT} print('stopping', flush=True)\n{STAY}"
    running = Running(hangs, stop_seconds=0.2)
    running.wait_ready()
    go.touch()
    running.wait_ready(2)

    assert running.stop() == 1
    assert running.said.lines("ended: none by itself; starting again") != []


def test_what_a_restart_cannot_mend_is_not_started_again() -> None:
    running = Running(STAYS, "sys.exit(2)", peer_seconds=0.1)

    assert running.end() == 2
    assert len(running.said.lines("started")) == 1
    assert are_gone(running.said.pids(1))


@pytest.mark.parametrize("code", [2, 78])
def test_the_exit_code_of_a_set_up_that_cannot_run_is_passed_on(code: int) -> None:
    running = Running(f"sys.exit({code})")

    assert running.end() == code
    assert len(running.said.lines("started")) == 1


def test_changed_topics_start_the_cluster_again_at_once(go: Path) -> None:
    changed = at_first("sys.exit(75)")
    running = Running(changed, changed)
    running.wait_ready()
    go.touch()
    running.wait_ready(2)

    assert running.stop() == 0
    assert running.said.lines("next start") == []


def test_topics_that_change_before_any_start_is_ready_are_waited_for() -> None:
    running = Running("if start == '1': sys.exit(75)\n" + STAYS)
    running.wait_ready()

    assert running.stop() == 0
    assert running.said.lines("next start") == ["next start in 0.5 s"]


def test_a_topic_that_was_there_is_waited_for(go: Path) -> None:
    running = Running("if start == '2': sys.exit(78)\n" + at_first("sys.exit(75)"))
    running.wait_ready()
    go.touch()
    running.wait_ready(2)

    assert running.stop() == 0
    assert len(running.said.lines("started")) == 3


def test_starts_that_fail_come_less_and_less_often() -> None:
    running = Running("sys.exit(1)")
    until(lambda: len(running.said.lines("next start")) >= 3)

    assert running.stop() == 0
    waits = [line.removeprefix("next start in ") for line in running.said.lines("next start")]
    assert waits[:3] == ["0.5 s", "1.0 s", "2.0 s"]


def test_where_all_end_in_order_the_supervisor_does_too() -> None:
    running = Running(READY, READY)

    assert running.end() == 0
    assert len(running.said.lines("started")) == 1


def test_a_process_that_does_not_stop_is_killed_and_told_of() -> None:
    running = Running(STAYS, REFUSE + READY + STAY, stop_seconds=0.5)
    running.wait_ready()

    assert running.stop() == 1
    assert running.said.lines("ended: process 0 with code 0; 1 killed")
    assert are_gone(running.said.pids(1))


def test_each_line_carries_its_process_number_whatever_its_bytes() -> None:
    odd = r"sys.stdout.buffer.write(b'\xff odd\n'); sys.stdout.flush(); "
    running = Running("print('one', file=sys.stderr)", odd + "print('two')")

    assert running.end() == 0
    assert running.passed_on.lines("[0]") == ["[0] one"]
    assert running.passed_on.lines("[1]") == ["[1] \ufffd odd", "[1] two"]


def test_each_process_has_a_metrics_port_of_its_own() -> None:
    tells = "print(os.environ['PUSHFLOW_METRICS_PORT'])"

    some = Running(tells, tells, metrics_port=9_100)
    assert some.end() == 0
    none = Running(tells, tells)
    assert none.end() == 0

    assert sorted(some.passed_on.lines()) == ["[0] 9100", "[1] 9101"]
    assert sorted(none.passed_on.lines()) == ["[0] 0", "[1] 0"]


def test_processes_share_the_cores_by_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    tells = "print(os.environ['OMP_NUM_THREADS'], os.environ['OPENBLAS_NUM_THREADS'])"

    running = Running(tells)

    assert running.end() == 0
    assert running.passed_on.lines("[0]") == ["[0] 1 3"]


def supervisor_of(*scripts: str, **pipes: int) -> "subprocess.Popen[str]":
    """Start a supervisor as a process of its own."""
    commands = [[sys.executable, "-c", HEAD + script] for script in scripts]
    text = (
        "from flows.supervisor import Supervisor\n"
        f"Supervisor({len(scripts)}, lambda _: {commands!r}).run()"
    )
    command = [sys.executable, "-c", text]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, **pipes)


def test_no_process_outlives_a_killed_supervisor() -> None:
    with supervisor_of(LOYAL + REFUSE + READY + STAY, LOYAL + REFUSE + READY + STAY) as process:
        assert process.stdout is not None
        out = Said(process.stdout.readline() + process.stdout.readline())
        process.kill()

    assert out.lines("ready") == ["ready"]
    until(lambda: are_gone(out.pids(1)))


def test_a_reader_that_goes_away_does_not_hold_up_the_processes(tmp_path: Path) -> None:
    done = tmp_path / "done"
    talks = f"[print('x' * 100) for _ in range(20_000)]; open({str(done)!r}, 'w').close()"
    with supervisor_of(talks, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.close()
        until(done.exists)
        process.kill()


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["--addresses", "127.0.0.1:1"], {}),
        ([], {"PUSHFLOW_RUN_ID": "monday"}),
        ([], {"PUSHFLOW_KAFKA__PARTITIONS": "none"}),
    ],
)
def test_what_cannot_be_meant_is_not_started(
    tmp_path: Path, arguments: list[str], values: dict[str, str]
) -> None:
    child = FlowProcess("decide", values, tmp_path, arguments, processes=2)
    until(lambda: child.code is not None)

    assert child.code == 2
    assert child.n_ready == 0
    assert "started" not in child.log.read_text()


def test_ports_are_free_and_in_a_row() -> None:
    first, second, third = free_ports(3)

    assert (second, third) == (first + 1, first + 2)


def on_stop(text: str) -> str:
    """Return a script that is ready, and does `text` when it is asked to stop."""
    return f"def stop(*_):\n {text}\nsignal.signal(signal.SIGTERM, stop)\n{READY}{STAY}"


def test_a_death_late_in_a_stop_leaves_the_others_their_time(go: Path) -> None:
    dies = on_stop("time.sleep(1.5); open(os.environ['GO'], 'w').close(); os._exit(1)")
    ends = on_stop(f"{WAIT.strip()}\n time.sleep(0.3); os._exit(0)")
    running = Running(dies, ends, peer_seconds=1.4)
    running.wait_ready()

    assert running.stop() == 1
    assert running.said.lines("ended: process 0 with code 1, process 1 with code 0; 0 killed")
    assert go.exists()
