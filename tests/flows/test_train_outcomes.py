"""`pushflow train archive --outcomes` on a planted archive: gardens are opened, music is not."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from models.arms import N_ARM, N_POLICY_CONTEXT, policy_spec_hash
from models.serving import StudentScorer
from operators.messages import Action, Decision, Event, Feedback, Item, Learning, TriggerRef
from tests.flows import world as w
from tests.flows.test_outcomes import ANY, HOUR_MS, ITEMS, write

USERS, VIEWS, PUSHES = 30, 20, 600
SHARES = (0.2, 0.6, 0.2)  # of a garden, of music, of nothing: the log likes what is not opened


def push(number: int, rng: np.random.Generator) -> Decision:
    at_ms = w.START_MS + HOUR_MS // 2 + number * (VIEWS * HOUR_MS // PUSHES)
    offered = ITEMS[int(rng.integers(4))], ITEMS[4 + int(rng.integers(4))], ""
    arms = [
        Action(item, "", 0.0, share, [0.0] * N_ARM if item else [])
        for item, share in zip(offered, SHARES, strict=True)
    ]
    chosen = int(rng.random() < 0.75)
    learning = Learning(
        policy_id="squarecb", policy_version="1", model_version="", feature_spec=policy_spec_hash(),
        campaign_id="c", arm="", context=[0.0] * N_POLICY_CONTEXT, action_set=arms, chosen=chosen,
        propensity=SHARES[chosen], is_exploration=False, reward_deadline=at_ms + HOUR_MS,
    )  # fmt: skip
    return Decision(
        decision_id=f"d{number:04d}", trigger=TriggerRef("intent", ""),
        user_id=f"u{int(rng.integers(USERS)):02d}", decided_at=at_ms, outcome="send",
        reason_codes=[], delivery=ANY, content=None, learning=learning, explanation=[],
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive: users view anything by themselves, and open pushes of gardens."""
    directory, rng = tmp_path_factory.mktemp("archive"), np.random.default_rng(1)
    items = [Item(item_id=one, title=one.replace("-", " thing ")) for one in ITEMS]
    events = [
        Event(
            event_id=f"e{user}-{n}", user_id=f"u{user:02d}", type="view",
            item_id=ITEMS[int(rng.integers(len(ITEMS)))],
            time_ms=w.START_MS + n * HOUR_MS + user * 1_000,
        )
        for n in range(VIEWS) for user in range(USERS)
    ]  # fmt: skip
    pushes = [push(number, rng) for number in range(PUSHES)]
    feedback = [
        Feedback(
            feedback_id=f"f{one.decision_id}", decision_id=one.decision_id, user_id=one.user_id,
            type="opened", time_ms=one.decided_at + 60_000,
        )
        for one in pushes if one.learning.chosen == 0
    ]  # fmt: skip
    end_ms = w.START_MS + 3 * w.DAY_MS
    feedback.append(
        Feedback(feedback_id="u", decision_id="-", user_id="u00", type="accepted", time_ms=end_ms)
    )
    write(directory, items, events, pushes, feedback)
    return directory


def trained(place: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["train", "archive", str(place), "--epochs", "12", *options])


def test_the_student_learns_from_the_archive_what_a_push_earns(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "student.pfm"
    found = trained(place, "--outcomes", "--out", str(out))
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["pushes"] > 300
    assert told["pushes_later"] > 20
    # A quarter of what was sent is opened; with an even chance of either item it would be a half.
    assert told["reward_later_by_student"] > 2 * told["reward_later"] > 0
    assert StudentScorer(out).version == told["version"]


def test_without_outcomes_pushes_are_not_read(place: Path, tmp_path: Path) -> None:
    found = trained(place, "--out", str(tmp_path / "s.pfm"))
    assert found.exit_code == 0, found.output
    assert "reward_later" not in json.loads(found.stdout.splitlines()[-1])
