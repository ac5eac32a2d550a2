"""The whole of `learn`: rewards learned once, in event time, and published."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from bytewax.testing import TestingSink, TestingSource

from flows import learn
from models.arms import ARM, N_POLICY_CONTEXT, D, design, policy_spec_hash
from models.posterior import unpack_lower, unpack_vector
from operators.kafka_standing import Versions
from operators.messages import Action, Decision, Event, Feedback, Learning, PolicyShard
from operators.policy_table import PolicyTable
from tests.conftest import T0_MS, decision, event
from tests.flows import world as w

HOUR_MS = 3_600_000


def sent(decision_id: str, user_id: str, at_ms: int = T0_MS) -> Decision:
    arms = np.round(np.random.default_rng(int(decision_id[1:])).random(len(ARM)), 4).tolist()
    learning = Learning(
        policy_id="squarecb",
        policy_version="0-0",
        model_version="m",
        feature_spec=policy_spec_hash(),
        campaign_id="c",
        arm="policy",
        context=[0.5] * N_POLICY_CONTEXT,
        action_set=[Action("i1", "trend", 1.0, 0.8, arms), Action("none", "", 0.0, 0.2, [])],
        chosen=0,
        propensity=0.8,
        is_exploration=False,
        reward_deadline=at_ms + 4 * HOUR_MS,
    )
    return decision(decision_id, user_id, decided_at=at_ms, learning=learning)


def feedback(decision_id: str, user_id: str, kind: str, at_ms: int) -> Feedback:
    return Feedback(
        feedback_id=f"{decision_id}-{kind}",
        decision_id=decision_id,
        user_id=user_id,
        type=kind,  # type: ignore[arg-type]
        time_ms=at_ms,
    )


def rows(messages: list[Any], directory: Path, size: int = 3, **settings: Any) -> list[PolicyShard]:
    kinds = {Decision: "decisions", Feedback: "feedback", Event: "events"}
    raw = [w.messages_of([message], kinds[type(message)])[0] for message in messages]
    polls = w.merged(w.polls(raw, size, clock_kinds=(Decision, Feedback)))
    policy, _stats = w.run_learn(w.settings(directory, **settings), polls)
    return sorted(policy, key=lambda row: row.shard)


def moment(found: list[PolicyShard]) -> np.ndarray[Any, Any]:
    return np.sum([unpack_vector(row.moment, D) for row in found], axis=0)


def x_of(one: Decision) -> np.ndarray[Any, Any]:
    return design(one.learning.context, [one.learning.action_set[0].features])[0]


def test_an_open_is_learned_at_once_and_silence_when_the_window_closes(tmp_path: Path) -> None:
    first, second = sent("d1", "u1"), sent("d2", "u3")
    later = sent("d3", "u5", T0_MS + 5 * HOUR_MS)
    found = rows([first, second, feedback("d1", "u1", "opened", T0_MS + 60_000), later], tmp_path)

    assert sum(row.n_rewards for row in found) == 2
    assert moment(found) == pytest.approx(1.0 * x_of(first) - 0.05 * x_of(second))


def test_a_late_open_corrects_the_zero_that_was_learned(tmp_path: Path) -> None:
    first, later = sent("d1", "u1"), sent("d3", "u5", T0_MS + 5 * HOUR_MS)
    late = feedback("d1", "u1", "opened", T0_MS + 6 * HOUR_MS)
    found = rows([first, later, late], tmp_path)

    assert moment(found) == pytest.approx(x_of(first))
    assert sum(row.n_rewards for row in found) == 1


def test_a_replay_that_needed_no_correction_is_not_taken_for_an_older_row(tmp_path: Path) -> None:
    first, later = sent("d1", "u1"), sent("d3", "u5", T0_MS + 5 * HOUR_MS)
    opened = feedback("d1", "u1", "opened", T0_MS + 60_000)
    [corrected] = rows([first, later, opened], tmp_path / "live")
    [at_once] = rows([first, opened, later], tmp_path / "replay")
    [(_, there), (_, replayed)] = learn.policy_records([("", corrected), ("", at_once)])
    standing = Versions()
    standing.note(there.id.encode())

    assert (corrected.version, at_once.version) == (2, 1)
    assert not standing.withholds(replayed.id, replayed.value)


def test_feedback_twice_is_learned_once(tmp_path: Path) -> None:
    first = sent("d1", "u1")
    opened = feedback("d1", "u1", "opened", T0_MS + 60_000)

    assert moment(rows([first, opened, opened], tmp_path)) == pytest.approx(x_of(first))


def test_shards_add_up_to_what_one_learner_knows(tmp_path: Path) -> None:
    decisions = [sent(f"d{n}", f"u{n}") for n in range(1, 9)]
    opens = [feedback(d.decision_id, d.user_id, "opened", T0_MS + 1_000) for d in decisions]
    found = rows([*decisions, *opens], tmp_path)

    assert len(found) == 2
    x = np.array([x_of(d) for d in decisions])
    precision = np.sum([unpack_lower(row.precision, D) for row in found], axis=0)
    assert precision == pytest.approx(x.T @ x, abs=1e-9)


def test_pushes_are_weighed_by_when_they_were_decided(tmp_path: Path) -> None:
    first, newest = sent("d1", "u1"), sent("d2", "u3", T0_MS + 48 * HOUR_MS)
    opened = feedback("d1", "u1", "opened", T0_MS + 60_000)
    late = feedback("d2", "u3", "opened", T0_MS + 53 * HOUR_MS)
    clock = sent("d3", "u5", T0_MS + 54 * HOUR_MS)  # closes the newest one's window
    of = {"learning": {"half_life_days": 1.0}}
    found = rows([first, opened, newest, clock, late], tmp_path, **of)
    table = PolicyTable(gamma=60.0, floor=0.002, prior_precision=1.0)
    for row in found:
        table.apply(row.shard, row)
    table.refresh()

    x, weights = np.array([x_of(first), x_of(newest)]), np.array([0.25, 1.0])
    precision = (x.T * weights) @ x + np.eye(D)
    assert table.mean == pytest.approx(np.linalg.solve(precision, x.T @ weights), abs=1e-9)
    assert [(row.n_rewards, row.newest_ms) for row in found] == [(2, newest.decided_at)]


def test_items_seen_together_become_neighbours(tmp_path: Path) -> None:
    events = [
        event(f"e{user}{n}", f"u{user}", item_id=item, time_ms=T0_MS + n * 1_000)
        for user in range(5)
        for n, item in enumerate(("a", "b"))
    ]
    polls = w.merged(w.polls(w.messages_of(events, "events"), 4))
    _policy, stats = w.run_learn(w.settings(tmp_path), polls)

    by_id = {row.item_id: row for row in stats}
    assert [item for item, _ in by_id["a"].neighbours] == ["b"]
    assert [item for item, _ in by_id["b"].neighbours] == ["a"]
    assert by_id["a"].views == pytest.approx(5, rel=1e-3)


def test_a_crash_learns_nothing_twice(tmp_path: Path) -> None:
    decisions = [sent(f"d{n}", f"u{n}") for n in range(1, 9)]
    opens = [feedback(d.decision_id, d.user_id, "opened", T0_MS + 1_000) for d in decisions]
    raw = w.messages_of(decisions, "decisions") + w.messages_of(opens, "feedback")
    steps = w.merged(w.polls(raw, 2, clock_kinds=(Decision, Feedback)))
    policy: list[tuple[str, Any]] = []
    for crash_at in (2, 4, 6, len(steps)):
        crashing = [*steps[:crash_at], TestingSource.ABORT(), *steps[crash_at:]]
        of = w.settings(tmp_path, run_id=f"run-{crash_at}")
        ends = learn.Ends(TestingSource(crashing), TestingSink(policy), TestingSink([]))
        w.run_with_recovery(learn.build(of, ends), tmp_path / "recovery")
    ends = learn.Ends(TestingSource(steps), TestingSink(policy), TestingSink([]))
    w.run_with_recovery(
        learn.build(w.settings(tmp_path, run_id="last"), ends), tmp_path / "recovery"
    )

    newest = [msgspec.json.decode(r.value, type=PolicyShard) for r in dict(policy).values()]
    assert sum(row.n_rewards for row in newest) == 8
    assert moment(newest) == pytest.approx(np.sum([x_of(d) for d in decisions], axis=0))
