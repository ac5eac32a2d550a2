"""The whole of `decide`: the same decisions whatever the batches, workers and crashes."""

import collections
from pathlib import Path

import msgspec
import pytest
import torch
from bytewax.testing import TestingSource

from flows.settings import Settings
from flows.tables import Tables
from models.checkpoint import write_model
from models.export import export_student
from models.rollout import is_in_share
from models.serving import StudentScorer
from models.student import Student, StudentConfig
from operators.hops import RawMessage
from operators.messages import Decision, ModelCard, ModelTrial, TrialStage
from tests.flows import world as w


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> w.World:
    return w.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def expected(world: w.World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    of = w.settings(tmp_path_factory.mktemp("expected"))
    written = w.run_decide(of, world.tables(of), w.merged(w.polls(world.messages, 100)))
    assert len(written) == len(dict(written))
    return dict(written)


def test_the_world_has_decisions_of_every_kind(expected: dict[str, bytes]) -> None:
    decisions = [msgspec.json.decode(value, type=Decision) for value in expected.values()]

    outcomes = collections.Counter(d.outcome for d in decisions)
    triggers = {d.trigger.type for d in decisions}
    assert outcomes["send"] > 20
    assert outcomes.keys() == {"send", "defer", "suppress", "holdout"}
    assert triggers >= {"intent", "cart_left", "session_ended"}
    assert {d.learning.model_version for d in decisions if d.outcome == "send"} != {"none"}
    assert not any(d.learning.policy_version.startswith("0-") for d in decisions)


@pytest.mark.parametrize("n_workers", [1, 2])
@pytest.mark.parametrize("size", [1, 100, 1_000])
def test_batch_sizes_and_workers_change_no_byte(
    world: w.World, expected: dict[str, bytes], tmp_path: Path, size: int, n_workers: int
) -> None:
    of = w.settings(tmp_path)
    messages = [m for m in world.messages if size > 1 or m.topic == "users" or m.offset < 800]
    steps = w.merged(w.polls(messages, size))
    written = w.run_decide(of, world.tables(of), steps, n_workers=n_workers)

    assert len(written) == len(dict(written))
    if size > 1:
        assert dict(written) == expected
    else:  # one message a batch is slow: the first 800 events, which decide as they did
        assert len(written) > 100
        assert dict(written).items() <= expected.items()


def with_trial(
    world: w.World, of: Settings, rival: Path, stage: TrialStage, share: float
) -> Tables:
    """Return the tables with another student on trial."""
    tables = world.tables(of)
    named = {"version": "", "checksum": "", "feature_spec": ""}
    trial = ModelTrial(path=str(rival), stage=stage, share=share, **named)
    tables.models.apply(
        "student", ModelCard(name="student", path=str(world.model), trial=trial, **named)
    )
    tables.models.settle()
    return tables


@pytest.fixture(scope="module")
def rival(world: w.World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a student that has learned nothing, for the world's items."""
    torch.manual_seed(7)
    torch.set_num_threads(1)
    item_ids = [item.item_id for item in world.items]
    made = Student(StudentConfig(width=16, layers=1, heads=2), len(item_ids)).eval()
    torch.nn.init.normal_(made.ids.weight)
    path = tmp_path_factory.mktemp("rival") / "r.pfm"
    write_model(path, export_student(made, item_ids, {}))
    return path


def test_a_canary_decides_for_its_users_whatever_the_batches_and_touches_no_other(
    world: w.World, expected: dict[str, bytes], rival: Path, tmp_path: Path
) -> None:
    runs = []
    for size in (100, 1_000):
        of = w.settings(tmp_path / str(size), models={"max_slowdown": 1e9})
        tables = with_trial(world, of, rival, "canary", 0.5)
        runs.append(w.run_decide(of, tables, w.merged(w.polls(world.messages, size))))

    assert len(runs[0]) == len(expected)
    assert dict(runs[0]) == dict(runs[1])
    version = StudentScorer(rival).version
    n_canary = 0
    for decision_id, value in runs[0]:
        decision = msgspec.json.decode(value, type=Decision)
        if is_in_share(decision.user_id, version, 0.5):
            n_canary += decision.learning.model_version == version
            assert (decision.learning.trial is None) == (len(decision.learning.action_set) == 1)
        else:
            assert value == expected[decision_id]
    assert n_canary > 50


def test_a_model_in_the_shadow_leaves_its_scores_in_decisions_and_nothing_else(
    world: w.World, expected: dict[str, bytes], rival: Path, tmp_path: Path
) -> None:
    of = w.settings(tmp_path, models={"max_slowdown": 1e9})
    tables = with_trial(world, of, rival, "shadow", 0.5)
    written = w.run_decide(of, tables, w.merged(w.polls(world.messages, 100)))

    version = StudentScorer(rival).version
    n_shadowed = n_due = 0
    for decision_id, value in written:
        found = msgspec.json.decode(value)
        has_arms = len(found["learning"]["action_set"]) > 1
        n_due += has_arms and is_in_share(found["user_id"], version, 0.5)
        trial = found["learning"].pop("trial")
        plain = msgspec.json.decode(expected[decision_id])
        assert plain["learning"].pop("trial") is None
        assert found == plain
        if trial is not None:
            n_shadowed += 1
            assert trial["stage"] == "shadow"
            assert len(trial["scores"]) == len(found["learning"]["action_set"]) - 1
    assert n_shadowed == n_due > 30


def test_a_crash_after_any_batch_decides_the_same(
    world: w.World, expected: dict[str, bytes], tmp_path: Path
) -> None:
    steps = w.merged(w.polls(world.messages, 100))
    written: list[tuple[str, bytes]] = []
    for crash_at in range(1, len(steps) + 2, 2):
        of = w.settings(tmp_path / "state", run_id=f"run-{crash_at}")
        # A list with one abort for each run: Bytewax's source resumes at the wrong place where
        # it has passed an abort before.
        crashing = [*steps[:crash_at], TestingSource.ABORT(), *steps[crash_at:]]
        written += w.run_decide(of, world.tables(of), crashing, recovery=tmp_path / "recovery")
    of = w.settings(tmp_path / "state", run_id="last")
    written += w.run_decide(of, world.tables(of), steps, recovery=tmp_path / "recovery")

    assert dict(written) == expected


def test_rubbish_between_events_takes_nothing_from_them(
    world: w.World, expected: dict[str, bytes], tmp_path: Path
) -> None:
    of = w.settings(tmp_path)
    dirty: list[RawMessage] = []
    for n, message in enumerate(world.messages):
        dirty.append(message)
        dirty.append(message._replace(value=b"\xff{" + str(n).encode()))
    steps = w.merged(w.polls(dirty, 100))
    written = w.run_decide(of, world.tables(of), steps)

    assert dict(written) == expected
    assert sum(len(poll.dead) for poll in steps) == len(world.messages)
