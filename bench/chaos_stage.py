"""What chaos is played on: a cluster of `decide`, a small disk, a load that goes on.

Owns    their lives. The broker is `tests.system.cluster.Nodes`, the topics and the children are
        `tests.system.harness.Stage`'s.
"""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.chaos_input import Input
from flows.children import FlowProcess
from operators.hops import RawMessage
from tests.system.harness import Stage, total

_PIECE = 50  # messages sent at once: 10 ms at 5,000 a second
_STOP_S = 120.0  # an orderly end: `Stage.supervise` gives processes 100 s on a busy machine


class Cluster:
    """Processes of `decide`: children of ours, or of a supervisor that is.

    Parameters
    ----------
    stage
        Whose state and topics it works on.
    size
        Processes.
    is_supervised
        Have `pushflow run decide --processes` start them, and start them again.
    """

    def __init__(self, stage: Stage, size: int = 1, *, is_supervised: bool = False) -> None:
        self.size = size
        self.is_supervised = is_supervised
        self.children = (
            [stage.supervise("decide", size)] if is_supervised else stage.start("decide", size=size)
        )

    @property
    def ended(self) -> list[FlowProcess]:
        """Children that have ended."""
        return [child for child in self.children if child.code is not None]

    def n_epochs(self) -> int:
        """Return how many epochs every process has closed since it started."""
        places = range(self.size) if self.is_supervised else [0]
        return min(
            int(total(child, "pushflow_checkpoint_seconds_count", "users", place))
            for child in self.children
            for place in places
        )

    def kill(self) -> int:
        """Kill all there is; return how many processes that was."""
        for child in self.children:
            child.kill()
        return self.size

    def stop(self) -> list[int]:
        """Ask once, as a supervisor does; return the exit codes that are not 0."""
        for child in self.children:
            child.ask_to_stop()
        deadline = time.monotonic() + _STOP_S
        while len(self.ended) < len(self.children) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.kill()
        return [child.code for child in self.children if child.code]

    def log(self) -> str:
        """Return what the first child has said."""
        return self.children[0].log.read_text(encoding="utf-8", errors="replace")


def last_words(said: str) -> str:
    """Return the last line that says something."""
    return next((line.strip() for line in reversed(said.split("\n")) if line.strip()), "")


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[str]:
    """Mount a tmpfs at `path` for the block; yield "" or why that is not possible."""
    path.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "pushflow-chaos", str(path)]
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        reason = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        reason = str(error)
    try:
        yield reason
    finally:
        if not reason:
            subprocess.run(["umount", "--lazy", str(path)], check=False)


def fill(directory: Path) -> None:
    """Write zeros into files until the disk is full; called again, what was freed since."""
    size = 1 << 20
    with (directory / f"filler-{time.monotonic_ns()}").open("wb", buffering=0) as file:
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2  # the last bytes too: a log file must not find room


def free(directory: Path) -> None:
    """Remove what `fill` has written."""
    for file in directory.glob("filler-*"):
        file.unlink()


class Load:
    """Sends the input at a steady pace in a thread, whatever becomes of the others.

    Parameters
    ----------
    stage
        Whose topics to send to.
    source
        What to send.
    pace
        Events a second. What was held up is made up for.
    """

    def __init__(self, stage: Stage, source: Input, pace: float) -> None:
        self._stage, self._source, self._pace = stage, source, pace
        self._is_over = threading.Event()
        self._error: Exception | None = None
        self.n_sent = 0
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Send the last events, and wait until the broker has all."""
        self.stop()
        self._put(self._source.closing())
        self._stage.writer.flush()

    def stop(self) -> None:
        """End the load where it stands; raise what went wrong in it."""
        self._is_over.set()
        self._thread.join()
        self.check()

    def check(self) -> None:
        """Raise what went wrong."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        began = time.monotonic()
        try:
            while not self._is_over.is_set():
                # A slot is sent whole, so that the input is what it has handed out.
                messages = self._source.more()
                for at in range(0, len(messages), _PIECE):
                    time.sleep(max(0.0, began + self.n_sent / self._pace - time.monotonic()))
                    self._put(messages[at : at + _PIECE])
            self._stage.writer.flush()
        except Exception as error:  # raised where the run is watched
            self._error = error

    def _put(self, messages: list[RawMessage]) -> None:
        for message in messages:
            self._stage.put(message)
        self.n_sent += len(messages)
