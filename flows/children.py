"""Flows as child processes of the demo: started, watched, asked for their counters, stopped.

Reads   the children's Prometheus endpoints and the tails of their logs.
Owns    the rule that a child which dies stops the demo, and shows what it said last.
"""

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import orjson
from prometheus_client.parser import text_string_to_metric_families

from flows.settings import child_environment
from flows.supervisor import free_ports
from flows.tally import Counters

_ROOT: Final = Path(__file__).parent.parent
_TAIL_LINES: Final = 25
_READY: Final = re.compile(r"^ready\s*$", re.MULTILINE)
_STARTED: Final = re.compile(r"^started \S+: pids ([\d ]+),", re.MULTILINE)
_SCRAPE_S: Final = 0.5  # between two looks: a scrape costs a child a few milliseconds

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]  # (name, labels) -> value


class ChildError(RuntimeError):
    """What the demo needs does not run; the message says what, with the end of its log."""


class FlowProcess:
    """`pushflow run NAME` as a child process.

    Parameters
    ----------
    name
        `decide`, `learn` or `catalog`.
    values
        Its settings as PUSHFLOW_* variables; it sees none of ours.
    work
        Directory for its log, and its working directory, so that no pushflow.toml is found.
    arguments
        More words on its command line, such as its place in a cluster.
    processes
        Not 0: run it as a supervised cluster of so many processes.

    Notes
    -----
    It gets a session of its own: Ctrl-C in the terminal reaches the demo alone, which then stops
    it in order.
    """

    def __init__(
        self,
        name: str,
        values: dict[str, str],
        work: Path,
        arguments: Sequence[str] = (),
        processes: int = 0,
    ) -> None:
        self.name = name
        self.port = free_ports(max(processes, 1))[0]
        if processes:
            arguments = [*arguments, "--processes", str(processes)]
        self.log = work / f"{name}.log"
        environment = child_environment(values | {"PUSHFLOW_METRICS_PORT": str(self.port)}, _ROOT)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 # our own code, no user's words
                [sys.executable, "-m", "flows.cli", "run", name, *arguments],
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def cluster(self) -> list[int]:
        """The process ids of a supervised cluster's newest start; [] before the first."""
        starts = list(_STARTED.finditer(self._said()))
        return [int(pid) for pid in starts[-1][1].split()] if starts else []

    @property
    def n_ready(self) -> int:
        """How often it said that it reads: a supervised cluster says so at each start."""
        return len(_READY.findall(self._said()))

    def wait_ready(self, timeout_s: float, times: int = 1) -> None:
        """Wait until the child says that it reads, for so many times since its start."""
        deadline = time.monotonic() + timeout_s
        while self.n_ready < times:
            self.check()
            if time.monotonic() > deadline:
                raise ChildError(f"{self.name} is not ready after {timeout_s:.0f} s{self._tail()}")
            time.sleep(0.1)

    def check(self) -> None:
        """Raise if the child has ended."""
        if (code := self.code) is not None:
            raise ChildError(f"{self.name} has ended with code {code}{self._tail()}")

    def samples(self, process: int = 0) -> Samples:
        """Return the counters and gauges of a process of it; {} where it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port + process, timeout=2)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return {}
        finally:
            connection.close()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    @property
    def code(self) -> int | None:
        """The exit code; None while the child runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Send SIGTERM, and do not wait."""
        if self.code is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self, timeout_s: float = 20.0) -> int:
        """Ask the child to finish, kill it if it does not; return its exit code."""
        self.ask_to_stop()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def last_words(self, n_characters: int = 6_000) -> str:
        """Return the end of its log; a child that runs writes there where its threads are."""
        if self.code is None:
            for pid in self.cluster or [self.pid]:
                os.kill(pid, signal.SIGUSR1)
            time.sleep(0.5)
        state = "runs" if self.code is None else f"ended with {self.code}"
        return f"{self.log} {state}: ...{self._said()[-n_characters:]}"

    def kill(self) -> None:
        """End the child as a power cut would."""
        self._process.kill()
        self._process.wait()

    def _said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def _tail(self) -> str:
        lines = self._said().splitlines()
        return f"; the end of {self.log}:\n" + "\n".join(lines[-_TAIL_LINES:])


def kafka_variables(client: Mapping[str, str]) -> dict[str, str]:
    """Return a client's settings as variables for a child.

    >>> kafka_variables({"bootstrap.servers": "h:1", "linger.ms": "2"})["PUSHFLOW_KAFKA__EXTRA"]
    '{"linger.ms":"2"}'
    """
    extra = {name: value for name, value in client.items() if name != "bootstrap.servers"}
    return {
        "PUSHFLOW_KAFKA__BOOTSTRAP_SERVERS": client["bootstrap.servers"],
        "PUSHFLOW_KAFKA__EXTRA": orjson.dumps(extra).decode(),
    }


class Counting:
    """Looks at the counters of `decide` and `learn` in a thread of its own, twice a second."""

    def __init__(self, decide: FlowProcess, learn: FlowProcess) -> None:
        self._decide, self._learn = decide, learn
        self.latest = Counters()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="counting", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(_SCRAPE_S):
            self.look()

    def look(self) -> Counters:
        """Look now; a child that does not answer keeps its last counters."""
        decide, learn = self._decide.samples(), self._learn.samples()
        if decide and learn:
            self.latest = counters(decide, learn)
        return self.latest

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()


def counters(decide: Samples, learn: Samples) -> Counters:
    """Return what the demo shows of both children's samples.

    >>> topic = frozenset({("topic", "push.events.v1")})
    >>> reasons = [frozenset({("reason", r)}) for r in ("bad_json", "table_bad_json")]
    >>> name = "pushflow_dead_letters_total"
    >>> samples = {("pushflow_messages_decoded_total", topic): 7.0,
    ...            (name, reasons[0]): 2.0, (name, reasons[1]): 1.0}
    >>> counters(samples, {})[:3]  # a table's bad row is no dead letter
    (7, 0, 2)
    """

    def total(samples: Samples, name: str, keep: Callable[[str], bool] = lambda _: True) -> int:
        values = (
            value
            for (found, labels), value in samples.items()
            if found == name and all(keep(text) for _, text in labels)
        )
        return int(sum(values))

    decoded, dead = "pushflow_messages_decoded_total", "pushflow_dead_letters_total"
    return Counters(
        decoded_events=total(decide, decoded, lambda text: text.endswith("push.events.v1")),
        decoded_feedback=total(decide, decoded, lambda text: text.endswith("push.feedback.v1")),
        dead_letters=total(decide, dead, lambda text: not text.startswith("table_")),
        triggers=total(decide, "pushflow_triggers_total"),
        decisions=total(decide, "pushflow_decisions_total"),
        rewards=total(learn, "pushflow_rewards_total"),
    )


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    return free_ports(1)[0]
