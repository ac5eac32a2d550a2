"""How long `decide` needs after kill -9 with a million users of state.

Times   from the start of the process to its first new decision, and the parts of it: imports and
        tables; what was written beyond the snapshot, and the source; state, timers and the first
        batch. Events go on at 2,000 a second all the time, so it begins with a backlog.
Leaves out  Redis, and the supervisor's wait before a start.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench.chaos_report import Row
from bench.load import Load
from bench.rig import Options, Rig
from tests.system.cluster import Nodes

N_USERS: Final = 1_000_000
N_FIRING: Final = 50_000  # of these, who lead to decisions
_PACE: Final = 2_000  # events a second
_SHARE: Final = 0.05  # of triggers
_N_KILLS: Final = 2
_PATIENCE_S: Final = 120.0  # for a process to come back, on a machine that is busy
_QUIET_S: Final = 20.0


class Pacer:
    """Sends events at a steady pace in a thread, until it is closed."""

    def __init__(self, rig: Rig, load: Load) -> None:
        self._rig, self._load = rig, load
        self.triggers: set[str] = set()  # event ids
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        began, n_sent = time.monotonic(), 0
        while not self._is_over.is_set():
            for message in self._load.events(_PACE // 100):
                if message.is_trigger:
                    self.triggers.add(message.event_id)
                self._rig.send_event(message)
                n_sent += 1
            time.sleep(max(0.0, began + n_sent / _PACE - time.monotonic()))

    def close(self) -> None:
        """Stop sending."""
        self._is_over.set()
        self._thread.join()


def recover(work: Path, nodes: Nodes, say: Callable[[str], None]) -> Row:
    """Load a million users, kill, and time the way back."""
    rig = Rig(
        {"bootstrap.servers": nodes.bootstrap}, Options(nodes.bootstrap, has_redis=False), work
    )
    try:
        load = Load(N_USERS, _SHARE, speed=1.0, n_firing=N_FIRING)
        say(f"recovery: {N_USERS:,} users are taken in")
        rig.warm(load)
        pacer = Pacer(rig, load)
        parts = []
        try:
            for _ in range(_N_KILLS):
                parts.append(_kill_and_time(rig))
                say("recovery: " + _told(parts[-1]))
        finally:
            pacer.close()
        _drain(rig, pacer.triggers)
        found = rig.decisions
        row = Row(f"{_N_KILLS} kill -9 with {N_USERS:,} users", "recovery", kills=_N_KILLS)
        row.expected, row.found = len(pacer.triggers), found.n_read
        row.lost = len(pacer.triggers - found.at.keys())
        row.twice, row.changed = found.n_read - len(found.at), len(found.at.keys() - pacer.triggers)
        row.note = "; ".join(map(_told, parts))
        return row
    finally:
        rig.close()


def _kill_and_time(rig: Rig) -> dict[str, float]:
    """Return seconds from the start of the process to the end of each part."""
    n_read = rig.decisions.n_read
    _await("decisions", lambda: rig.decisions.n_read > n_read + 100)
    time.sleep(3.0)  # epochs close each two seconds
    rig.child.kill()
    with contextlib.suppress(RuntimeError):  # it says that the child was killed
        rig.stop()
    time.sleep(0.2)  # what was on its way to the reader
    n_read, began = rig.decisions.n_read, time.monotonic()
    rig.start(has_redis=False)
    ready = time.monotonic()
    _await("events", lambda: rig.decoded() > 0)
    decoded = time.monotonic()
    _await("a new decision", lambda: rig.decisions.n_read > n_read)
    done = time.monotonic()
    return {
        "whole": done - began,
        "imports and tables": ready - began,
        "written ids, source": decoded - ready,
        "state, timers, first batch": done - decoded,
    }


def _drain(rig: Rig, triggers: set[str]) -> None:
    """Wait until all are decided, or nothing has come for a while: what is missing is lost."""
    n_read, since = 0, time.monotonic()
    while not triggers <= rig.decisions.at.keys():
        rig.child.check()
        if rig.decisions.n_read > n_read:
            n_read, since = rig.decisions.n_read, time.monotonic()
        elif time.monotonic() > since + _QUIET_S:
            return
        time.sleep(0.1)


def _told(parts: dict[str, float]) -> str:
    whole, *others = ((name, seconds) for name, seconds in parts.items())
    return f"{whole[1]:.1f} s (" + ", ".join(f"{name} {s:.1f}" for name, s in others) + ")"


def _await(what: str, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_PATIENCE_S:.0f} s for {what}")
        time.sleep(0.02)
