"""Models that change under load: nothing is lost, and one that is corrupt changes nothing."""

import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
import torch

from flows import rollout
from flows.children import FlowProcess
from models.checkpoint import read_model, write_model
from models.export import export_student
from models.rollout import is_in_share
from models.serving import StudentScorer
from models.student import Student, StudentConfig
from operators.hops import RawMessage
from operators.messages import Decision, ModelRef
from tests.system.harness import DECISIONS, PACE, Case, Stage, Verdict, by_id, judge, total, wait

pytestmark = [pytest.mark.system, pytest.mark.slow]

SHARE = 0.5
# Tables are followed. Of two models one may seem many times slower on a busy machine.
FOLLOWING = {
    "PUSHFLOW_RANKING__FROZEN": "false",
    "PUSHFLOW_MODELS__MAX_SLOWDOWN": "1000000",
}


class Seen(NamedTuple):
    """A decision, when it could be read, and the model that made it."""

    decision: Decision
    at_s: float
    value: bytes

    @property
    def version(self) -> str:
        return self.decision.learning.model_version


def seen(message: RawMessage) -> Seen:
    value = message.value or b""
    return Seen(msgspec.json.decode(value, type=Decision), time.monotonic(), value)


def another(case: Case, path: Path) -> ModelRef:
    """Write a student that has learned nothing, for the same items."""
    torch.manual_seed(7)
    _, model = read_model(case.world.model)
    made = Student(StudentConfig(width=16, layers=1, heads=2), len(model.item_ids)).eval()
    torch.nn.init.normal_(made.ids.weight)
    write_model(path, export_student(made, model.item_ids, {}))
    return rollout.ref_of(path)


def send(stage: Stage, messages: list[RawMessage]) -> dict[str, float]:
    """Send events steadily; return when each was sent, by its id."""
    sent: dict[str, float] = {}
    began = time.monotonic()
    for number, message in enumerate(messages):
        if number % 10 == 0:
            time.sleep(max(0.0, began + number / PACE - time.monotonic()))
        stage.put(message)
        sent[msgspec.json.decode(message.value or b"")["event_id"]] = time.monotonic()
    stage.writer.flush()
    return sent


def is_taken_up(stage: Stage, child: FlowProcess, served: str, trial: str) -> bool:
    """Wait until the process says that it serves one model and tries another."""

    def is_so() -> bool:
        reports = rollout.read(stage.settings).reports
        return [(r.served, r.trial) for r in reports] == [(served, trial)]

    return wait(f"{served} beside {trial}", is_so, [child])


def test_models_change_under_load_and_no_decision_is_lost(
    one_stage: Stage, case: Case, tmp_path: Path
) -> None:
    stage = one_stage
    found = stage.collect(DECISIONS, seen)
    stage.fill_tables(case)
    other = another(case, tmp_path / "other.pfm")
    first = StudentScorer(case.world.model).version
    [child] = stage.start("decide", **FOLLOWING)
    card = rollout.read(stage.settings).card
    shadow = rollout.on_trial(card, other, "shadow", SHARE, rollout.ends(stage.settings))
    canary = rollout.promoted(shadow, SHARE, {})
    served = rollout.promoted(canary, SHARE, {})
    back = rollout.rolled_back(served)
    steps = [
        (shadow, (first, other.version)),
        (canary, (first, other.version)),
        (served, (other.version, "")),
        (back, (first, "")),
    ]

    parts = np.array_split(np.arange(len(case.events)), len(steps) + 1)
    sent: dict[str, float] = {}
    for (step, versions), part in zip(steps, parts, strict=False):
        # The file is read and the tables are made while events come.
        rollout.write(stage.settings, step)
        sent |= send(stage, [case.events[n] for n in part])
        assert is_taken_up(stage, child, *versions)
    sent |= send(stage, [case.events[n] for n in parts[-1]])
    assert wait("decisions", lambda: len(found.rows) >= len(case.expected), [child])
    assert child.stop() == 0

    rows: list[Seen] = found.close()
    verdict = judge([(r.decision.decision_id, r.value) for r in rows], case.expected)
    assert verdict._replace(other_bytes=0) == Verdict(len(case.expected), 0, 0, 0, 0)
    made = Counter(row.version for row in rows)
    assert min(made[first], made[other.version]) > 50
    trials = [r.decision.learning.trial for r in rows if r.decision.learning.trial is not None]
    assert Counter(trial.stage for trial in trials).keys() == {"shadow", "canary"}
    assert {trial.version for trial in trials} == {other.version}
    on_trial = [r.decision.user_id for r in rows if r.decision.learning.trial is not None]
    assert all(is_in_share(user, other.version, SHARE) for user in on_trial)
    _tell_latency(rows, sent)


def _tell_latency(rows: list[Seen], sent: dict[str, float]) -> None:
    waits = [
        row.at_s - sent[row.decision.trigger.event_id]
        for row in rows
        if row.decision.trigger.event_id in sent
    ]
    p50, p99, worst = np.percentile(np.array(waits) * 1_000, [50, 99, 100]).tolist()
    print(f"{len(waits)} decisions by events: p50 {p50:.0f}, p99 {p99:.0f}, max {worst:.0f} ms")


def test_a_corrupt_model_changes_no_byte(one_stage: Stage, case: Case, tmp_path: Path) -> None:
    stage = one_stage
    found = stage.collect(DECISIONS, by_id)
    stage.fill_tables(case)
    other = another(case, tmp_path / "other.pfm")
    content = bytearray((tmp_path / "other.pfm").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "other.pfm").write_bytes(content)
    [child] = stage.start("decide", **FOLLOWING)
    half = len(case.events) // 2

    stage.send(case.events[:half], pace=PACE)
    rollout.write(stage.settings, rollout.served(rollout.read(stage.settings).card, other))
    assert wait("refusal", lambda: _is_refused(stage, other.version), [child])
    stage.send(case.events[half:], pace=PACE)
    assert wait("decisions", lambda: len(found.rows) >= len(case.expected), [child])
    n_refused = total(child, "pushflow_models_refused_total", "corrupt")
    assert child.stop() == 0

    assert judge(found.close(), case.expected) == Verdict(len(case.expected), 0, 0, 0, 0)
    assert n_refused == 1


def _is_refused(stage: Stage, version: str) -> bool:
    return any(version in report.refusals for report in rollout.read(stage.settings).reports)
