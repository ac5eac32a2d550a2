"""A new release on the state of an old one: `tests/data/state-v1.tar.gz`, see `tests.golden_state`.

`old` goes on from what version 1 left after half of its messages; `whole` is this release on all
of them. A release that decides otherwise on purpose makes the halves differ: compare then what is
left, the users' states and the ids of decisions, and say so here.
"""

import shutil
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from operators.attribution_state import AttributionState
from tests import golden_state as golden
from tests.conftest import ROOT

ARCHIVE = ROOT / "tests" / "data" / "state-v1.tar.gz"


class Run(NamedTuple):
    """What a run wrote, and the states it left, by part and key."""

    written: list[Any]
    states: dict[str, dict[str, Any]]


def unpacked(folder: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def cleared(root: Path) -> Path:
    shutil.rmtree(root / "state")
    for flow in golden.PARTS:
        shutil.rmtree(root / f"recovery-{flow}")
    return root


def ran(root: Path, flow: str) -> Run:
    written = golden.run(root, flow, "today", golden.polls(root, flow))
    return Run(written, golden.states(root, flow, "today"))


@pytest.fixture(scope="module", params=["decide", "learn"])
def flow(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What version 1 left, of both flows."""
    root = unpacked(tmp_path_factory.mktemp("left"))
    return golden.states(root, "decide", "golden") | golden.states(root, "learn", "golden")


@pytest.fixture(scope="module")
def old(flow: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return ran(unpacked(tmp_path_factory.mktemp("old")), flow)


@pytest.fixture(scope="module")
def whole(flow: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return ran(cleared(unpacked(tmp_path_factory.mktemp("whole"))), flow)


@pytest.fixture(scope="module")
def half(flow: str, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What this release writes of the first half."""
    root = cleared(unpacked(tmp_path_factory.mktemp("half")))
    steps = golden.polls(root, flow)
    return golden.run(root, flow, "half", steps[: len(steps) // 2])


def test_the_archive_holds_what_an_upgrade_could_lose(left: dict[str, dict[str, Any]]) -> None:
    users, joined = left["users"].values(), left["attribution"].values()
    pending = [push for state in joined for push in state.pending.values()]

    assert any(user.cart for user in users)
    assert any(user.session.events for user in users)
    assert any(user.soon_ms for user in users)
    assert any(user.later_ms for user in users)
    assert any(state.sends for state in left["pushes"].values())
    assert {push.is_closed for push in pending} == {True, False}
    assert any(state.early for state in joined)
    assert any(state.recent for state in joined)
    assert not any(state.soon_ms or state.later_ms for state in joined)  # version 1 had none
    assert left["items"]


def test_what_is_written_is_as_if_nothing_had_happened(
    flow: str, old: Run, whole: Run, half: list[Any]
) -> None:
    assert old.written
    if flow == "decide":
        assert dict(half) | dict(old.written) == dict(whole.written)
        assert not dict(half).keys() & dict(old.written).keys()
    else:  # the newest row of each key, and all of them are told again after a restart
        assert old.written == whole.written


def test_states_are_as_if_nothing_had_happened(old: Run, whole: Run) -> None:
    assert {part: plain(of) for part, of in old.states.items()} == {
        part: plain(of) for part, of in whole.states.items()
    }


def plain(states: dict[str, Any]) -> dict[str, Any]:
    """Return states without what version 1 did not know: armed timers, and ids of events."""
    return {
        key: msgspec.structs.replace(state, soon_ms=0, later_ms=0, seen=bytearray())
        if isinstance(state, AttributionState)
        else state
        for key, state in states.items()
    }
