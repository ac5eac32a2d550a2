"""A Kafka cluster of a test's own, and a network that can be cut.

Owns    the nodes' processes (deploy/kafka/kafka), and a network namespace whose cable to us is
        a pair of devices on a bridge. Both are gone after `close`.

A cut takes down our end of the pair: the other side keeps its address and its connections, and
its packets go nowhere, as with a cable pulled out at the switch. The address of the broker is the
bridge's, which stays up, so that processes on our side reach it all the time.
"""

import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import ElectionType, TopicPartition
from confluent_kafka.admin import AdminClient, PartitionMetadata

from tests.conftest import ROOT

_SCRIPT = [sys.executable, str(ROOT / "deploy" / "kafka" / "kafka")]
_CLONE_NEWNET = 0x40000000


class Nodes:
    """A cluster to kill, stop and start again, node by node; nodes count from 1.

    Parameters
    ----------
    folder
        For the nodes' data.
    n_nodes, host
        As for the script.
    """

    def __init__(self, folder: Path, n_nodes: int = 1, host: str = "127.0.0.1") -> None:
        self._folder = folder
        self.all = range(1, n_nodes + 1)
        self.bootstrap = self._run("start", f"--nodes={n_nodes}", f"--host={host}").split()[-1]
        # log_level 2: it would tell of each node that we stop, ten times a second.
        self._admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 2})

    def _run(self, command: str, *options: str) -> str:
        words = [*_SCRIPT, command, "--dir", str(self._folder), *options]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()[-500:]}")
        return done.stdout

    def start(self, node: int = 0) -> None:
        """Start what does not run, one node or all, and wait until it answers."""
        self._run("start", f"--node={node}")

    def stop(self, node: int = 0) -> None:
        """Stop one node or all in order: a node hands its partitions over first."""
        self._run("stop", f"--node={node}")

    def kill(self, node: int) -> None:
        """End a node as a power cut would."""
        os.kill(int((self._folder / f"node{node}" / "pid").read_text()), signal.SIGKILL)

    def partitions(self, topic: str) -> list[PartitionMetadata]:
        """Return each partition with its leader, replicas and those in sync."""
        found = self._admin.list_topics(topic, timeout=10).topics[topic].partitions
        return [found[number] for number in sorted(found)]

    def elect_preferred(self, topic: str) -> None:
        """Move each partition's leader to its first replica."""
        places = [TopicPartition(topic, p.id) for p in self.partitions(topic)]
        self._admin.elect_leaders(ElectionType.PREFERRED, places).result(30)

    def close(self) -> None:
        """Stop all nodes."""
        self.stop()


def has_java() -> bool:
    """Say whether a cluster can be had here."""
    return bool(shutil.which("java") and shutil.which("mvn"))


class Island:
    """A network namespace at the end of a cable.

    Attributes
    ----------
    host
        Our address, as it is reached from the namespace too.

    Raises
    ------
    OSError, subprocess.CalledProcessError
        Where the machine or our rights do not allow it.
    """

    def __init__(self) -> None:
        # Names and addresses of our own, also beside other runs; the range is a private one.
        number = random.SystemRandom().randrange(1 << 14)
        net = f"10.{192 + (number >> 8)}.{number & 255}"
        self.host = f"{net}.1"
        self._name, self._bridge, self._end = f"pf{number}", f"pfb{number}", f"pfe{number}"
        far = f"pff{number}"
        try:
            _ip("netns", "add", self._name)
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("addr", "add", f"{self.host}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            _ip("link", "add", self._end, "type", "veth", "peer", "name", far)
            _ip("link", "set", self._end, "master", self._bridge, "up")
            _ip("link", "set", far, "netns", self._name)
            for device in ("lo", far):
                _ip("-n", self._name, "link", "set", device, "up")
            _ip("-n", self._name, "addr", "add", f"{net}.2/24", "dev", far)
        except subprocess.CalledProcessError:
            self.close()
            raise

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Let this thread, and the processes that it starts, live in the namespace."""
        with Path("/proc/thread-self/ns/net").open() as ours:
            with Path("/run/netns", self._name).open() as theirs:
                _set_namespace(theirs.fileno())
            try:
                yield
            finally:
                _set_namespace(ours.fileno())

    def cut(self) -> None:
        """Pull the cable."""
        _ip("link", "set", self._end, "down")

    def mend(self) -> None:
        """Plug the cable in again."""
        _ip("link", "set", self._end, "up")

    def close(self) -> None:
        """Remove what is there; the pair goes with the namespace."""
        for words in (("netns", "del", self._name), ("link", "del", self._bridge)):
            subprocess.run(["ip", *words], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _set_namespace(handle: int) -> None:
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if libc.setns(handle, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
