"""Holding where it pays: decisions by a value file, and its training from the archive."""

from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import orjson
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.doctor import check_value
from flows.simulate import Population
from flows.tables import Tables
from flows.value_archived import archived_steps
from models.arms import N_POLICY_CONTEXT, POLICY_CONTEXT
from models.log_odds import Scale
from models.policies import recompute
from models.policy import Judged
from models.value import HOLD, SEND, Layers, ValueFileError, ValueFunction, write_value
from models.value_data import Worth
from operators.archive_files import Place
from operators.codec import encode
from operators.hops import RawMessage
from operators.messages import Decision, Event, Feedback, Item
from operators.policy_table import PolicyTable
from tests.flows import world as w
from tests.flows.test_archived import archive, tables

DAYS = 2
PUSHES_1D = POLICY_CONTEXT.index("pushes_1d")


class Lived(NamedTuple):
    """Two days of a few users, decided without a value file, and the archive of them."""

    messages: list[RawMessage]
    items: list[Item]
    decisions: list[Decision]
    place: Place


def decided(of_messages: list[RawMessage], items: list[Item], path: Path, file: str) -> list[bytes]:
    of = w.settings(path, ranking={"value_path": file, "action_set": 3})
    steps = w.merged(w.polls(of_messages, 200))
    return [value for _, value in w.run_decide(of, tables(of, items), steps)]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    directory = tmp_path_factory.mktemp("lived")
    world = Population(n_users=60, n_items=60, seed=5, start_ms=w.START_MS)
    items, events = world.items(), world.advance(w.START_MS + DAYS * w.DAY_MS)
    messages = w.messages_of(world.profiles(), "users") + w.messages_of(events, "events")
    raw = decided(messages, items, directory / "state", "")
    decisions = [msgspec.json.decode(value, type=Decision) for value in raw]
    feedback: dict[str, Feedback] = {}
    for decision in sorted(decisions, key=lambda d: d.decided_at):
        found = world.respond(decision, decision.decided_at)
        feedback |= {one.feedback_id: one for one in found}
    end_ms = w.START_MS + 12 * w.DAY_MS
    events.append(Event(event_id="last", user_id="user-000000", type="app_open", time_ms=end_ms))
    place = Place(str(directory / "archive"))
    archive(place, "push.events.v1", [(e.time_ms, e.user_id, encode(e)) for e in events])
    archive(place, "push.decisions.v1", [(d.decided_at, d.user_id, encode(d)) for d in decisions])
    rows = sorted(feedback.values(), key=lambda f: f.time_ms)
    rows += [
        Feedback(feedback_id=u, decision_id="-", user_id=u, type="accepted", time_ms=end_ms)
        for u in ("user-000000", "user-000001")
    ]
    archive(place, "push.feedback.v1", [(f.time_ms, f.user_id, encode(f)) for f in rows])
    return Lived(messages, items, decisions, place)


@pytest.fixture
def value_file(tmp_path: Path) -> Path:
    """Write a value by which a push costs 5 log(1 + pushes of a day) / 3, and a first one 0."""
    weights = np.zeros((N_POLICY_CONTEXT, 3), np.float32)
    weights[PUSHES_1D] = [0.0, -5.0, 0.0]
    path = tmp_path / "tired.pfv"
    write_value(path, Layers([weights], [np.zeros((1, 3), np.float32)]), {})
    return path


def test_the_tired_are_sent_less_and_every_probability_can_be_recomputed(
    lived: Lived, value_file: Path, tmp_path: Path
) -> None:
    raw = decided(lived.messages, lived.items, tmp_path / "state", str(value_file))
    found = [msgspec.json.decode(value, type=Decision) for value in raw]
    value = ValueFunction.load(value_file)

    def sent_to_tired(decisions: list[Decision]) -> tuple[int, int]:
        asked = [d for d in decisions if d.learning.context and d.learning.context[PUSHES_1D] > 0]
        return sum(d.outcome == "send" for d in asked), len(asked)

    before, after = sent_to_tired(lived.decisions), sent_to_tired(found)
    assert before[0] / before[1] > 0.6  # nothing is learned: three arms and "none" alike
    assert after[0] / after[1] < 0.2
    n_recomputed = 0
    for decision in found:
        learning = decision.learning
        if learning.judged is None:
            continue
        judged = Judged(np.array(learning.judged.values), np.array(learning.judged.spread))
        shares = recompute(
            learning.policy_id, judged, learning.judged.knobs, decision.decision_id.encode()
        )
        assert shares.tolist() == [action.probability for action in learning.action_set]
        if learning.policy_id != "uniform":
            assert judged.values[-1] == value.none_value(learning.context)
            assert learning.policy_version.endswith(f"+{value.version}")
            n_recomputed += judged.values[-1] > 0
    assert n_recomputed > 20


def test_a_policy_in_log_odds_takes_the_value_on_its_own_scale(value_file: Path) -> None:
    value, scale = ValueFunction.load(value_file), Scale(-0.05, 1.0)
    tired = np.zeros(N_POLICY_CONTEXT)
    tired[PUSHES_1D] = 0.04  # a push costs 0.2
    plain, logistic = (
        PolicyTable(prior_precision=1.0, policy=name, value=value, scale=scale)
        for name in ("squarecb", "logistic_ucb")
    )

    assert plain.none_value("squarecb", tired) == 0.2
    # Of (0.2 + 0.05) / 1.05 against 0.05 / 1.05.
    wanted = np.log(0.25 / 0.8) - np.log(0.05 / 1.0)
    assert logistic.none_value("logistic_ucb", tired) == pytest.approx(wanted)
    assert logistic.none_value("logistic_ucb", np.zeros(N_POLICY_CONTEXT)) == 0.0
    assert plain.none_value("uniform", tired) == 0.0


def test_a_value_file_that_cannot_be_used_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "torn.pfv"
    path.write_bytes(b"PK torn")
    of = w.settings(tmp_path, ranking={"value_path": str(path)})

    with pytest.raises(ValueFileError, match=r"cannot read the value file .*pushflow train value"):
        Tables(of, clock=lambda: 0.0)
    finding = check_value(path)
    assert (finding.status, finding.check) == ("fail", "value")


def test_the_archive_gives_what_was_sent_and_what_was_held(lived: Lived) -> None:
    worth = Worth(session=0.5, half_life_days=7.0, ahead_days=7.0)
    steps, user_ids = archived_steps(w.settings(Path("unused")), lived.place, worth=worth)
    asked = [d for d in lived.decisions if d.learning.context]
    by_moment = {(d.user_id, d.decided_at): d for d in asked}

    found = {SEND: 0, HOLD: 0}
    for n, action in enumerate(steps.actions.tolist()):
        of_user = [d for d in asked if d.user_id == user_ids[steps.users[n]]]
        same = [
            d
            for d in of_user
            if np.float32(d.learning.context).tolist() == steps.states[n].tolist()
        ]
        assert any((d.outcome == "send") == (action == SEND) for d in same)
        found[action] += 1
    assert found[HOLD] == sum(d.reason_codes == ["policy_none"] for d in by_moment.values())
    assert found[SEND] > 50
    assert steps.is_known.all()
    assert steps.earned[steps.actions == HOLD].tolist() == [0.0] * found[HOLD]
    # An open is worth 1, a push without an answer -0.05: both are there.
    assert {-0.05, 1.0} <= set(steps.earned[steps.actions == SEND].round(6).tolist())
    assert (steps.rewards > steps.earned).any()  # sessions


def test_the_command_trains_from_the_archive_and_decide_takes_the_file(
    lived: Lived, tmp_path: Path
) -> None:
    out = tmp_path / "value.pfv"
    place = str(lived.place._root)
    run = CliRunner().invoke(
        app, ["train", "value", place, "--out", str(out), "--epochs", "1", "--seed", "3"]
    )

    assert run.exit_code == 0, run.output
    told = orjson.loads(run.stdout.strip().splitlines()[-1])
    assert told["version"] == ValueFunction.load(out).version
    assert told["value"].keys() == {"as logged", "where it pays", "always", "never"}
    assert check_value(out).status == "ok"
    early = CliRunner().invoke(app, ["train", "value", place, "--until", "2026-01-07"])
    assert early.exit_code == 1
    assert "a longer log" in early.output
