"""A new release on the state of an old one: `tests/data/state-v1.tar.gz`, see `tests.golden_state`.

`old` goes on from what version 1 left after half of its messages; `whole` is this release on all
of them, and `half` on the first half. Each field that version 1 kept is read as it was written, and
what the second half adds to it is what it adds to this release's own state.

Three things cannot be equal, and each is held to the most that can be:

- What version 1 pushed, it chose by the sources and columns of its time. Later decisions are
  compared to the last byte for users to whom both releases pushed the same, and for the others by
  what was decided on. To `learn`, decisions of version 1 in the messages teach nothing, for the
  policy has got columns since; its pushes count on.
- What users wrote in the first half version 1 did not keep. Users who wrote nothing in it are
  compared in full.
- Pairs of items weigh otherwise and fade more slowly since version 2: what version 1 knew is worth
  the same at the item's newest event, and the second half adds the same.
"""

import shutil
import tarfile
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from models.item_counts import _OLD_PAIR_HALF_LIFE_MS, _PAIR_HALF_LIFE_MS, ItemCounts
from operators.attribution_state import AttributionState
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
def half(flow: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What this release makes of the first half."""
    root = cleared(unpacked(tmp_path_factory.mktemp("half")))
    steps = golden.polls(root, flow)
    written = golden.run(root, flow, "half", steps[: len(steps) // 2])
    return Run(written, golden.states(root, flow, "half"))


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


@pytest.mark.parametrize("part", ["users", "pushes", "attribution", "items"])
def test_every_field_of_version_1_is_read_as_it_was_written(
    part: str, left: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    flow = "decide" if part in golden.PARTS["decide"] else "learn"
    packed = golden.states(unpacked(tmp_path), flow, "golden", is_packed=True)[part]

    assert packed.keys() == left[part].keys()
    for key, one in packed.items():
        assert one[0] == 1
        fields = msgspec.msgpack.decode(one[1:])
        state = left[part][key]
        if isinstance(state, ItemCounts):
            at = [state.__struct_fields__.index(name) for name in ("_interest", "_pairs")]
            old_interest, old_pairs = (fields[place] for place in at)
            now = by_newest(state, _OLD_PAIR_HALF_LIFE_MS) / by_newest(state, _PAIR_HALF_LIFE_MS)
            assert state._interest == pytest.approx(old_interest * now, rel=1e-12)
            assert state._pairs == pytest.approx(scaled(old_pairs, now), rel=1e-12)
            fields[at[0]], fields[at[1]] = state._interest, state._pairs
        assert carries(state, fields)


def carries(value: Any, stored: Any) -> bool:
    """Return whether a value is what was stored, but for fields that are new since."""
    if isinstance(value, msgspec.Struct) and isinstance(stored, dict):
        held = msgspec.msgpack.decode(msgspec.msgpack.encode(value))
        return all(held.get(name) == one for name, one in stored.items())
    if isinstance(value, msgspec.Struct):
        held = [getattr(value, name) for name in value.__struct_fields__]
        return len(held) >= len(stored) and all(map(carries, held, stored))
    if isinstance(value, dict):
        return value.keys() == stored.keys() and all(carries(value[k], stored[k]) for k in stored)
    if isinstance(value, list | tuple):
        return len(value) == len(stored) and all(map(carries, value, stored))
    if isinstance(value, array):
        return bool(value.typecode.encode() + value.tobytes() == stored)
    return bool(value == stored)


def by_newest(state: ItemCounts, half_life_ms: int) -> float:
    return float(2.0 ** ((state.base_ms - state.newest_ms) / half_life_ms))


def scaled(counts: dict[str, float], by: float) -> dict[str, float]:
    return {name: count * by for name, count in counts.items()}


@pytest.mark.parametrize("flow", ["decide"], indirect=True, scope="module")
class TestDecide:
    """What `decide` goes on to do."""

    def test_decisions_are_as_if_nothing_had_happened(
        self, left: dict[str, dict[str, Any]], old: Run, whole: Run, half: Run
    ) -> None:
        written, expected = dict(half.written) | dict(old.written), dict(whole.written)
        alike = users_alike(left, half)
        in_full = {one for one, value in expected.items() if decided(value).user_id in alike}

        assert old.written
        assert not dict(half.written).keys() & dict(old.written).keys()
        assert len(in_full & dict(old.written).keys()) > len(old.written) / 2
        assert {one: written[one] for one in in_full} == {one: expected[one] for one in in_full}
        assert triggers(written) == triggers(expected)

    def test_users_are_as_if_nothing_had_happened(self, old: Run, whole: Run, half: Run) -> None:
        assert old.states["users"].keys() == whole.states["users"].keys()
        for user_id, state in old.states["users"].items():
            before = half.states["users"].get(user_id, UserState())
            expected = without_times(whole.states["users"][user_id], before)
            if before.encoder:  # has written in the first half
                assert unwritten(state) == unwritten(expected)
            else:
                assert state == expected

    def test_pushes_of_before_count_on(
        self, left: dict[str, dict[str, Any]], old: Run, whole: Run, half: Run
    ) -> None:
        sent = {user: state.sends for user, state in left["pushes"].items() if state.sends}
        alike = users_alike(left, half)

        assert len(sent) > 1
        for user_id, state in old.states["pushes"].items():
            before = sent.get(user_id, [])
            assert state.sends[: len(before)] == before
            if user_id in alike:
                assert state == whole.states["pushes"][user_id]
        assert old.states["pushes"].keys() == whole.states["pushes"].keys()


def decided(value: bytes) -> Decision:
    return msgspec.json.decode(value, type=Decision)


def triggers(written: dict[str, bytes]) -> dict[str, Any]:
    """Return what was decided on, by decision_id."""
    found = {one: decided(value) for one, value in written.items()}
    return {one: (d.trigger, d.user_id, d.decided_at) for one, d in found.items()}


def users_alike(left: dict[str, dict[str, Any]], half: Run) -> set[str]:
    """Return the users of whom version 1 knew, and to whom it sent, what this release would."""
    pushes = half.states["pushes"]
    return {
        user_id
        for user_id, user in half.states["users"].items()
        if not user.encoder and left["pushes"].get(user_id) == pushes.get(user_id)
    }


def without_times(state: UserState, before: UserState) -> UserState:
    """Return a state as it is where version 1 did not keep when things were bought `before`."""
    known = dict(zip(before.bought, before.bought_s, strict=True))
    bought = zip(state.bought, state.bought_s, strict=True)
    times = array("I", [0 if known.get(item) == time_s else time_s for item, time_s in bought])
    return msgspec.structs.replace(state, bought_s=times)


def unwritten(state: UserState) -> UserState:
    session = msgspec.structs.replace(state.session, intent=b"")
    nothing: dict[str, Any] = {"taste": b"", "taste_weight": 0.0, "taste_ms": 0, "encoder": ""}
    return msgspec.structs.replace(state, session=session, **nothing)


@pytest.mark.parametrize("flow", ["learn"], indirect=True, scope="module")
class TestLearn:
    """What `learn` goes on to do."""

    def test_rows_are_as_if_nothing_had_happened(self, old: Run, whole: Run) -> None:
        assert old.written
        assert unpushed(old.written) == unpushed(whole.written)

    def test_users_are_as_if_nothing_had_happened(self, old: Run, whole: Run) -> None:
        states = old.states["attribution"], whole.states["attribution"]
        ours, theirs = ({user: unjoined(one) for user, one in part.items()} for part in states)
        assert ours == theirs

    def test_pushes_in_flight_are_waited_for(
        self, left: dict[str, dict[str, Any]], old: Run
    ) -> None:
        n_carried = 0
        for user_id, state in left["attribution"].items():
            now = old.states["attribution"][user_id]
            for decision_id, push in state.pending.items():
                if decision_id in now.pending:
                    n_carried += 1
                    kept = now.pending[decision_id]
                    assert kept.types[: len(push.types)] == push.types
                    same = [(one.item_id, one.deadline_ms, one.x) for one in (push, kept)]
                    assert same[0] == same[1]
        assert n_carried

    def test_the_second_half_adds_to_items_what_it_always_adds(
        self, left: dict[str, dict[str, Any]], old: Run, whole: Run, half: Run
    ) -> None:
        assert old.states["items"].keys() == whole.states["items"].keys()
        for item_id, state in old.states["items"].items():
            mine, at_start = whole.states["items"][item_id], half.states["items"][item_id]
            assert added(left["items"][item_id], state) == pytest.approx(
                added(at_start, mine), rel=1e-9, abs=1e-9
            )
            assert (state.base_ms, state.newest_ms, state.first_ms) == (
                mine.base_ms,
                mine.newest_ms,
                mine.first_ms,
            )


def added(before: ItemCounts, after: ItemCounts) -> dict[str, float]:
    """Return the difference of two states of one item, number by number."""
    then, now = numbers(before), numbers(after)
    return {name: value - then.get(name, 0.0) for name, value in now.items()}


def numbers(state: ItemCounts) -> dict[str, float]:
    found: dict[str, float] = {}
    for field in state.__struct_fields__:
        value = getattr(state, field)
        if isinstance(value, dict):
            found |= {f"{field}.{name}": count for name, count in value.items()}
        elif isinstance(value, list):
            found |= {f"{field}.{place}": count for place, count in enumerate(value)}
        elif not field.endswith("_ms"):
            found[field] = value
    return found


def unjoined(state: AttributionState) -> AttributionState:
    """Return a state without what version 1 did not keep, and without its decisions."""
    unknown = {"soon_ms": 0, "later_ms": 0, "seen": bytearray(), "bought": {}}
    return msgspec.structs.replace(state, **unknown, pending={}, early={})


def unpushed(written: list[Any]) -> list[Any]:
    """Return the items' rows without pushes, and without what the first half left otherwise."""
    rows = [(key, msgspec.json.decode(value)) for key, value in written if value is not None]
    assert not any(row.get("n_rewards") for _, row in rows)  # other columns teach nothing
    unequal = ("pushes", "opens", "neighbours", "interest", "by_hour")
    return [(key, row | dict.fromkeys(unequal, 0.0)) for key, row in rows if "item_id" in row]
