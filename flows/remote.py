"""Savepoints in shared or object storage, so that a flow can start on a host that has no state.

Reads   the state's directory, and `state.remote`.
Emits   a savepoint every `state.remote_seconds`, and one at an orderly end.
Owns    the thread that makes them in the first process; the flow never waits for it.

A place that fails is told once, counted, and tried again; the flow goes on. The recovery store is
copied by a process of its own, for Bytewax has it open in this one (see `operators.recovery`).
"""

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flows.decide import STORES
from flows.settings import Settings, child_environment
from operators import recovery
from operators.incarnations import is_empty
from operators.lineage import CheckpointError, Fenced
from operators.metrics import SAVEPOINTS
from operators.savepoints import Place, hold

log = logging.getLogger("pushflow")

KEEP: Final = 2  # the newest, and one more in case that is not whole
_ROOT: Final = Path(__file__).parent.parent
_COPY_SECONDS: Final = 60.0


class RemoteUnavailable(RuntimeError):
    """`state.remote` cannot be read at a start that has no state: a savepoint may be in it."""


def fetch(settings: Settings, flow: str) -> None:
    """Take the newest savepoint from `state.remote`, where it is set and there is no state here.

    Raises
    ------
    CheckpointError
        When there are savepoints, and none is whole.
    RemoteUnavailable
        When it cannot be told whether there are any.
    """
    home = settings.state.directory / flow
    if not settings.state.remote or not is_empty(home):
        return
    try:
        place = Place(settings.state.remote, flow)
        numbers = place.numbers()
    except Exception as error:  # each file system raises its own
        raise RemoteUnavailable(
            f"no state in {home}, and state.remote cannot be read: {error}. There may be a "
            "savepoint in it; to begin without one set PUSHFLOW_STATE__REMOTE to nothing"
        ) from error
    if not numbers:
        log.info(
            "no state in %s, and no savepoint in %s: a first start", home, settings.state.remote
        )
        return
    number, epoch = place.restore(home)
    log.info("no state in %s: took savepoint %d, epoch %d, from state.remote", home, number, epoch)


@contextmanager
def saving(settings: Settings, flow: str, *, is_on: bool) -> Iterator[None]:
    """Make savepoints while the flow runs, where `state.remote` is set; a last one at its end."""
    if not settings.state.remote or not is_on:
        yield
        return
    saver = RemoteSaver(settings, flow)
    try:
        yield
    except BaseException:
        saver.stop()
        raise
    saver.stop()
    saver.save()  # the flow has ended, and its last epoch is committed


class RemoteSaver:
    """Makes savepoints in a thread, until `stop`.

    Parameters
    ----------
    settings
        With `state.remote`, `state.remote_seconds` and `run_id`.
    flow
        "decide", "learn" or "catalog".

    Notes
    -----
    What is sent are files that are not there yet: what changed, and now and then what RocksDB
    merged. The checksum of a file is taken once. At most `KEEP` savepoints are kept.
    """

    def __init__(self, settings: Settings, flow: str) -> None:
        self._settings, self._flow = settings, flow
        self._stop = threading.Event()
        self._place: Place | None = None
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="savepoints", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop, once the savepoint under way is made."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._settings.state.remote_seconds):
            if not self.save():
                return

    def save(self) -> bool:
        """Make a savepoint, or say why not; return whether another may be tried."""
        state = self._settings.state
        try:
            if self._place is None:
                place = Place(state.remote, self._flow)
                place.claim(self._settings.run_id)
                self._place = place
            with hold(state.directory / self._flow, STORES[self._flow], _copy_elsewhere) as held:
                saved = self._place.save(held, run_id=self._settings.run_id, keep=KEEP)
        except Fenced as error:
            log.warning("%s: no more savepoints from here", error)
            return False
        except Exception as error:  # each file system raises its own
            SAVEPOINTS.labels("failed").inc()
            if not self._failed:
                log.warning(
                    "no savepoint in state.remote: %s; trying again, the flow goes on", error
                )
            self._failed = True
            return True
        SAVEPOINTS.labels("saved").inc()
        if self._failed:
            log.info("savepoints in state.remote again")
        self._failed = False
        log.debug("%s", saved)
        return True


def _copy_elsewhere(source: Path, target: Path) -> None:
    command = [sys.executable, "-m", recovery.__name__, str(source), str(target)]
    done = subprocess.run(  # noqa: S603 # our own module
        command,
        env=child_environment({}, _ROOT),
        capture_output=True,
        text=True,
        timeout=_COPY_SECONDS,
        check=False,
    )
    if done.returncode:
        raise CheckpointError(f"{source} cannot be copied: {done.stderr.strip()[-500:]}")
