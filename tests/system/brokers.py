"""A broker to kill, and topics of one test's own on a real broker.

Owns    how a test starts, kills and asks `deploy/kafka/kafka`.
"""

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from operators.kafka_admin import create_topics
from tests.conftest import ROOT
from tests.contracts.kafka import Broker

_SCRIPT = [sys.executable, str(ROOT / "deploy" / "kafka" / "kafka")]
# Messages of tests are dated 2023: with a retention Kafka may drop them at any moment.
KEPT = {"retention.ms": "-1"}


def own_topics(client: dict[str, str]) -> Broker:
    """Return the broker, with topics named by a uuid."""
    test = f"test-{uuid.uuid4().hex[:12]}"
    return Broker(client, lambda topic: create_topics(client, [(topic, 4, 1, KEPT)]), test)


def script(command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run the start and stop script."""
    return subprocess.run(
        [*_SCRIPT, command, "--dir", str(folder)], check=False, capture_output=True, text=True
    )


def start(folder: Path) -> dict[str, str]:
    """Start the broker of a directory; return a client's settings."""
    started = script("start", folder)
    assert started.returncode == 0, started.stderr
    return {"bootstrap.servers": started.stdout.split()[-1]}


def process_id(folder: Path) -> int:
    """Return the broker's process id."""
    return int((folder / "node1" / "pid").read_text())


def kill(folder: Path) -> None:
    """Kill the broker as a power cut would."""
    os.kill(process_id(folder), signal.SIGKILL)
