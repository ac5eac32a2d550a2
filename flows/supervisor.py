"""A cluster on one host: started, watched, and started again as a unit.

Reads   what the processes print, `ready` and `stopping` above all, and how they end.
Emits   one line for each start, `ready` when all its processes are, how it ended, and every line
        of a process with its number in front.
Owns    when a cluster is started again, how soon, and when that is of no use: by exit codes.

A cluster cannot go on without one of its processes, and Bytewax cannot take one in again. So when
one begins to stop all are asked to, when one dies all are ended, and a new start, with a run id of
its own, goes on from the last snapshot.

No process outlives its supervisor: its standard input is a pipe whose other end the supervisor
alone holds, and when that closes, as it does even at a kill -9, the process ends. A pipe does
this on every Unix, and without a race at the start.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from flows.settings import supervised_environment

NO_RESTART: Final = 2  # as for a wrong option: somebody must mend something first
NO_TOPIC: Final = 78  # EX_CONFIG; one that was there may come back, as when it is made anew
TOPICS_CHANGED: Final = 75  # EX_TEMPFAIL: a new start sees them as they are

_ROOT: Final = Path(__file__).parent.parent
_ORDERLY: Final = frozenset({0, TOPICS_CHANGED})
_POLL_S: Final = 0.05
# An orderly end takes the rest of an epoch, a checkpoint and the sinks' flush. What takes longer
# is killed, before Docker and Kubernetes kill us all after 30 s.
STOP_SECONDS: Final = 20.0
# Peers of a dead process can commit nothing more; they get this long to say what they saw.
PEER_SECONDS: Final = 2.0
FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 30.0  # a broker that comes back is noticed within this
STEADY_SECONDS: Final = 60.0  # a start that was ready for this long was a good one
# Below the ports that systems give to outgoing connections (from 32768 on Linux): those of a
# process's own clients could take its port before it listens there.
_PORTS: Final = range(15_000, 32_000)

Commands = Callable[[tuple[str, ...]], Sequence[Sequence[str]]]


class Next(Enum):
    """What follows the end of a cluster."""

    DONE = "done"
    AT_ONCE = "starting again at once"
    LATER = "starting again"
    NEVER = "not starting again: see above what to mend"


def verdict(codes: Sequence[int], *, was_ready: bool, was_ever_ready: bool) -> Next:
    """Return what follows, given the exit codes of all processes.

    `was_ready` is of the start that ended, `was_ever_ready` of this or any before.

    >>> def after(*codes, ready=True, ever=True):
    ...     return verdict(codes, was_ready=ready, was_ever_ready=ever).name
    >>> after(0, 0), after(-9, 1), after(1, NO_RESTART), after(1, TOPICS_CHANGED)
    ('DONE', 'LATER', 'NEVER', 'AT_ONCE')
    >>> after(TOPICS_CHANGED, ready=False)  # they might change for ever: not so fast
    'LATER'
    >>> after(NO_TOPIC, ready=False, ever=False), after(NO_TOPIC, ready=False)
    ('NEVER', 'LATER')
    """
    if NO_RESTART in codes or (NO_TOPIC in codes and not was_ever_ready):
        return Next.NEVER
    if TOPICS_CHANGED in codes and was_ready:
        return Next.AT_ONCE
    return Next.LATER if any(codes) else Next.DONE


class Backoff:
    """Seconds to wait before the next start: doubled each time up to 30, less up to a half.

    Parameters
    ----------
    random
        Returns a number from 0 to 1: many clusters that lost one broker shall not come back in
        step.

    Examples
    --------
    >>> backoff = Backoff(lambda: 1.0)
    >>> [backoff.after(ready_s=0.0) for _ in range(6)]
    [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    >>> backoff.after(ready_s=60.0)  # it ran well: begin anew
    1.0
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._longest_s = FIRST_WAIT_S

    def after(self, ready_s: float) -> float:
        """Return the wait after a start that was ready for so many seconds."""
        if ready_s >= STEADY_SECONDS:
            self._longest_s = FIRST_WAIT_S
        longest_s = self._longest_s
        self._longest_s = min(2 * longest_s, LONGEST_WAIT_S)
        return longest_s * (1 + self._random()) / 2


class Process:
    """One process of a cluster; its lines go to our standard error.

    Parameters
    ----------
    number
        Its place in the cluster.
    command, environment
        To start it with.
    """

    def __init__(self, number: int, command: Sequence[str], environment: dict[str, str]) -> None:
        self.number = number
        self.is_ready = self.is_stopping = False
        self._process = subprocess.Popen(  # noqa: S603 # our own code, no user's words
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops in order
        )
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    def _pass_on(self) -> None:
        for line in self._process.stdout or ():
            if (word := line.strip()) in (b"ready", b"stopping"):
                self.is_ready |= word == b"ready"
                self.is_stopping |= word == b"stopping"
                continue
            # A terminal that went away must not stop the reading: the process would hang.
            with contextlib.suppress(OSError):
                sys.stderr.write(f"[{self.number}] {line.decode(errors='replace').rstrip()}\n")
                sys.stderr.flush()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, minus the signal's number where one ended it; None while it runs."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.code is None:
            self._process.send_signal(number)

    def close(self) -> None:
        """Pass on its last lines; it has ended or been killed."""
        with self._process:
            self._reader.join()


class Ended(NamedTuple):
    """How a start of the cluster ended."""

    codes: dict[int, int]  # of those that ended by themselves, by number
    n_killed: int
    ready_s: float | None  # how long it was ready


class Supervisor:
    """Keeps a cluster running until `ask_to_stop`, its orderly end, or what nobody can mend here.

    Parameters
    ----------
    n
        Processes.
    commands
        Returns each process's command line, given the addresses of all.
    metrics_port
        Of process 0, the others count on from it; 0: none.
    stop_seconds, peer_seconds
        How long processes have to end when asked to, and when one of them has died.
    backoff
        Waits between starts.
    """

    def __init__(
        self,
        n: int,
        commands: Commands,
        *,
        metrics_port: int = 0,
        stop_seconds: float = STOP_SECONDS,
        peer_seconds: float = PEER_SECONDS,
        backoff: Backoff | None = None,
    ) -> None:
        self._n = n
        self._commands = commands
        self._metrics_port = metrics_port
        self._stop_seconds = stop_seconds
        self._peer_seconds = peer_seconds
        self._backoff = backoff or Backoff(random.SystemRandom().random)
        self._is_stopping = False  # a flag and a poll: a signal may come inside any lock

    def ask_to_stop(self) -> None:
        """Ask all processes to finish, and start none again; fit for a signal's handler."""
        self._is_stopping = True

    def run(self) -> int:
        """Run until the end, and return the exit code: 0 if all processes ended in order."""
        start, was_ever_ready = 0, False
        while True:
            start += 1
            ended = self._run_once(f"{time.time_ns() // 1_000_000}-{os.getpid()}-{start}")
            codes = [*ended.codes.values(), *ended.n_killed * [-signal.SIGKILL]]
            was_ready = ended.ready_s is not None
            was_ever_ready |= was_ready
            what_next = verdict(codes, was_ready=was_ready, was_ever_ready=was_ever_ready)
            if self._is_stopping:
                return self._after_stop(ended)
            _say(f"ended: {_causes(ended.codes)}; {what_next.value}")
            if what_next is Next.DONE:
                return 0
            if what_next is Next.NEVER:
                return NO_RESTART if NO_RESTART in codes else NO_TOPIC
            if what_next is Next.LATER and not self._wait(self._backoff.after(ended.ready_s or 0)):
                return 1 if was_ready else 0

    def _run_once(self, run_id: str) -> Ended:
        addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(self._n))
        cluster: list[Process] = []
        try:
            for number, command in enumerate(self._commands(addresses)):
                port = self._metrics_port and self._metrics_port + number
                values = {"PUSHFLOW_RUN_ID": run_id, "PUSHFLOW_METRICS_PORT": str(port)}
                cluster.append(Process(number, command, supervised_environment(values, _ROOT)))
            pids = " ".join(str(process.pid) for process in cluster)
            _say(f"started {run_id}: pids {pids}, addresses {' '.join(addresses)}")
            ready_s = self._watch(cluster)
            codes = _codes(cluster)  # first: who ended first
            self._let_end(cluster)
            codes |= _codes(cluster)
            return Ended(codes, len(cluster) - len(codes), ready_s)
        finally:
            for process in cluster:
                process.send(signal.SIGKILL)
            for process in cluster:
                process.close()

    def _watch(self, cluster: list[Process]) -> float | None:
        """Wait until one ends or begins to, or we shall stop; return how long all were ready."""
        ready_at = None
        while not self._shall_end(cluster) and not _codes(cluster):
            if ready_at is None and all(process.is_ready for process in cluster):
                ready_at = time.monotonic()
                _say("ready")
            time.sleep(_POLL_S)
        return None if ready_at is None else time.monotonic() - ready_at

    def _shall_end(self, cluster: list[Process]) -> bool:
        return self._is_stopping or any(process.is_stopping for process in cluster)

    def _let_end(self, cluster: list[Process]) -> None:
        """Wait until all have ended, or their time is up."""
        ends_at = time.monotonic() + self._stop_seconds
        was_asked = has_died = False
        while len(codes := _codes(cluster)) < len(cluster):
            if not was_asked and self._shall_end(cluster):
                was_asked = True
                for process in cluster:
                    process.send(signal.SIGTERM)
            if not has_died and not set(codes.values()) <= _ORDERLY:
                has_died = True
                ends_at = min(ends_at, time.monotonic() + self._peer_seconds)
            if time.monotonic() > ends_at:
                return
            time.sleep(_POLL_S)

    def _after_stop(self, ended: Ended) -> int:
        is_orderly = ended.n_killed == 0 and set(ended.codes.values()) <= _ORDERLY
        if is_orderly or ended.ready_s is None:  # no cluster reads before all are ready
            return 0
        _say(
            f"ended: {_causes(ended.codes)}; {ended.n_killed} killed, for they took longer than "
            f"{self._stop_seconds:.0f} s. Nothing is lost: the next start replays the last epochs"
        )
        return 1

    def _wait(self, seconds: float) -> bool:
        """Wait before the next start, and say whether there shall be one."""
        _say(f"next start in {seconds:.1f} s")
        end = time.monotonic() + seconds
        while not self._is_stopping and time.monotonic() < end:
            time.sleep(_POLL_S)
        return not self._is_stopping


def supervise(
    flow: str,
    n: int,
    *,
    metrics_port: int,
    stop_seconds: float = STOP_SECONDS,
    arguments: Sequence[str] = (),
) -> int:
    """Run a flow as `n` supervised processes until SIGTERM or SIGINT; return the exit code."""
    begin = [sys.executable, "-m", "flows.cli", "run", flow, "--supervised", *arguments]

    def commands(addresses: tuple[str, ...]) -> list[list[str]]:
        if n == 1:
            return [begin]
        places = ",".join(addresses)
        return [[*begin, "--process-id", str(i), "--addresses", places] for i in range(n)]

    supervisor = Supervisor(n, commands, metrics_port=metrics_port, stop_seconds=stop_seconds)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.ask_to_stop())
    return supervisor.run()


def end_with_supervisor() -> None:
    """End this process, at once, when its standard input closes: its supervisor is gone.

    At once, for a supervisor that is started again may start the flow anew any moment.
    """

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="supervisor", daemon=True).start()


def free_ports(n: int) -> list[int]:
    """Return `n` ports of 127.0.0.1, in a row, that nobody listens on just now.

    >>> first, second = free_ports(2)
    >>> second - first
    1
    """
    firsts = range(_PORTS.start, _PORTS.stop - n)
    for first in random.SystemRandom().sample(firsts, len(firsts)):
        ports = [*range(first, first + n)]
        if all(map(_is_free, ports)):
            return ports
    raise OSError(f"no {n} free ports in a row from {_PORTS.start} to {_PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _codes(cluster: Sequence[Process]) -> dict[int, int]:
    return {process.number: code for process in cluster if (code := process.code) is not None}


def _causes(codes: dict[int, int]) -> str:
    """Return how those ended that did so by themselves, the first one first.

    >>> _causes({1: -9, 0: 1})
    'process 1 with signal 9 (Killed), process 0 with code 1'
    """
    causes = (f"process {number} with {_told(code)}" for number, code in codes.items())
    return ", ".join(causes) or "none by itself"


def _told(code: int) -> str:
    return f"code {code}" if code >= 0 else f"signal {-code} ({signal.strsignal(-code)})"


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        # In one piece: unbuffered, `print` writes the line's end apart, and a child's line may come
        # between, so that nobody would find "ready".
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
