"""A new release on the state of an old one: `tests/data/state-v1.tar.gz`, see `tests.golden_state`.

`old` goes on from what version 1 left after half of its messages; `whole` is this release on all
of them. A release that decides otherwise on purpose makes the halves differ: compare then what is
left, the users' states and the ids of decisions, and say so here.

Since version 1 the policy has got columns, so what version 1 decided teaches this release nothing:
neither its pushes in flight, nor the decisions of the second half. They are left out of what
`learn` is compared by. And what a user wrote, and when they bought something, is kept only since
version 3 of their states, and goes into decisions: these are compared by their ids, triggers and
times, and states by all that version 1 kept. What it pushed itself counts on. Pairs of items weigh
otherwise than they did, and fade more slowly: they are left out too.
"""

import shutil
import tarfile
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from models.item_counts import COUNTED, ItemCounts
from operators.attribution_state import AttributionState
from operators.fatigue import PushState
from operators.messages import Decision
from operators.user_state import UserState
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
        assert triggers(half) | triggers(old.written) == triggers(whole.written)
        assert not dict(half).keys() & dict(old.written).keys()
    else:  # the newest row of each key, and all of them are told again after a restart
        assert unpushed(old.written) == unpushed(whole.written)


def test_states_are_as_if_nothing_had_happened(old: Run, whole: Run) -> None:
    assert {part: plain(of) for part, of in old.states.items()} == {
        part: plain(of) for part, of in whole.states.items()
    }


@pytest.mark.parametrize("flow", ["decide"], indirect=True, scope="module")
def test_pushes_of_before_still_count(left: dict[str, dict[str, Any]], old: Run) -> None:
    sent = {user_id: state.sends for user_id, state in left["pushes"].items() if state.sends}
    kept = {user_id: old.states["pushes"][user_id].sends[: len(sent[user_id])] for user_id in sent}

    assert len(sent) > 1
    assert kept == sent


def triggers(written: list[Any]) -> dict[str, Any]:
    """Return what was decided on, by decision_id."""
    found = [msgspec.json.decode(value, type=Decision) for _, value in written]
    return {d.decision_id: (d.trigger, d.user_id, d.decided_at) for d in found}


def unpushed(written: list[Any]) -> list[Any]:
    """Return the items' rows of `learn` without pushes and opens, and what version 1 left out."""
    rows = [(key, msgspec.json.decode(value)) for key, value in written if value is not None]
    assert not any(row.get("n_rewards") for _, row in rows)  # other columns teach nothing
    items = [(key, row) for key, row in rows if "item_id" in row]
    unknown = ("pushes", "opens", "neighbours", "interest", "by_hour")
    unknown += ("first_buys", "repeat_buys", "repeat_days")
    return [(key, row | dict.fromkeys(unknown, 0.0)) for key, row in items]


def plain(states: dict[str, Any]) -> dict[str, Any]:
    """Return states without what version 1 did not know, and what it decided."""
    return {key: _plain(state) for key, state in states.items()}


def _plain(state: Any) -> Any:
    if isinstance(state, AttributionState):
        unknown = {"soon_ms": 0, "later_ms": 0, "seen": bytearray(), "bought": {}}
        return msgspec.structs.replace(state, **unknown, pending={}, early={})
    if isinstance(state, UserState):
        assert len(state.bought_s) == len(state.bought)
        session = msgspec.structs.replace(state.session, intent=b"")
        written = {"taste": b"", "taste_weight": 0.0, "taste_ms": 0, "encoder": ""}
        return msgspec.structs.replace(state, session=session, bought_s=array("I"), **written)
    if isinstance(state, PushState):
        return PushState()  # other items, see above
    if isinstance(state, ItemCounts):
        counts = zip(COUNTED, state._counts, strict=True)
        kept = [0.0 if kind in ("push", "open") else count for kind, count in counts]
        unknown = ("_first_buys", "_repeat_buys", "_repeat_log_days", "_hours")
        unknown += ("_pairs", "_interest")
        return msgspec.structs.replace(state, _counts=kept, **dict.fromkeys(unknown, 0.0))
    return state
