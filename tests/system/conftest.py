"""A stage on either broker, and one input for all tests that hold flows to it."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.harness import Case, Stage, make_case


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Simulated shoppers, and what is decided about them undisturbed."""
    return make_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(params=["embedded_bootstrap", "kafka_bootstrap"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    """Topics of this test's own: on the embedded broker, and on a real one."""
    bootstrap = request.getfixturevalue(request.param)
    built = Stage(bootstrap, f"{uuid.uuid4().hex[:12]}.", tmp_path)
    yield built
    built.close()
