"""A stage on either broker, and one input for all tests that hold flows to it."""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import absent
from tests.system.brokers import script
from tests.system.harness import Case, Stage, make_case


@pytest.fixture
def client(kafka_bootstrap: str) -> dict[str, str]:
    """A client's settings for the real broker."""
    return {"bootstrap.servers": kafka_bootstrap}


@pytest.fixture
def mortal_kafka(tmp_path: Path) -> Iterator[Path]:
    """The directory of a broker of this test's own, to kill."""
    if not (shutil.which("java") and shutil.which("mvn")):
        absent("java and mvn, for a broker to kill")
    started = script("start", tmp_path / "kafka")
    assert started.returncode == 0, started.stderr
    yield tmp_path / "kafka"
    assert script("stop", tmp_path / "kafka").returncode == 0


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Simulated shoppers, and what is decided about them undisturbed."""
    return make_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(params=["embedded_bootstrap", "kafka_bootstrap"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    """Topics of this test's own: on the embedded broker, and on a real one."""
    yield from own_stage(request.getfixturevalue(request.param), tmp_path)


@pytest.fixture
def one_stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    """The same on one broker, where both would say the same: a real one if there is one."""
    try:
        bootstrap = request.getfixturevalue("kafka_bootstrap")
    except pytest.skip.Exception:
        bootstrap = request.getfixturevalue("embedded_bootstrap")
    yield from own_stage(bootstrap, tmp_path)


def own_stage(bootstrap: str, work: Path) -> Iterator[Stage]:
    """Hold a stage with topics of its own."""
    built = Stage(bootstrap, f"{uuid.uuid4().hex[:12]}.", work)
    yield built
    built.tell()  # pytest shows it where the test failed
    built.close()
