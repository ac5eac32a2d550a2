"""`pushflow train outcomes` on a planted archive: gardens are opened, music is dismissed."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli import app
from models.arms import N_ARM, N_POLICY_CONTEXT, policy_spec_hash
from models.teacher import Teacher, TeacherConfig
from models.teacher_file import TeacherFileError, load_outcomes, load_teacher, save_teacher
from operators.archive_files import Place
from operators.codec import encode
from operators.messages import (
    Action,
    Decision,
    Delivery,
    Event,
    Feedback,
    Item,
    Learning,
    TriggerRef,
)
from tests.flows import world as w
from tests.flows.test_archived import archive

HOUR_MS = 3_600_000
TASTES = ("garden", "music")
ITEMS = [f"{taste}-{n}" for taste in TASTES for n in range(4)]
USERS = 30
PUSHES = 600
SMALL = TeacherConfig(
    width=16, factors=0, hidden=16, layers=1, feed_forward=32, request=16, dropout=0.0
)
ANY = Delivery(channel="any", send_after=0, expires_at=0, priority="normal", collapse_key="")


def push(number: int, user: int, item_id: str) -> Decision:
    at_ms = w.START_MS + 10 * HOUR_MS + number * 60_000
    shares = (0.25, 0.75)
    arms = [Action(item_id, "", 0.0, shares[0], [0.0] * N_ARM), Action("", "", 0.0, shares[1], [])]
    learning = Learning(
        policy_id="squarecb", policy_version="1", model_version="", feature_spec=policy_spec_hash(),
        campaign_id="c", arm="", context=[0.0] * N_POLICY_CONTEXT, action_set=arms, chosen=0,
        propensity=shares[0], is_exploration=False, reward_deadline=at_ms + HOUR_MS,
    )  # fmt: skip
    return Decision(
        decision_id=f"d{number:04d}", trigger=TriggerRef("intent", ""), user_id=f"u{user:02d}",
        decided_at=at_ms, outcome="send", reason_codes=[], delivery=ANY, content=None,
        learning=learning, explanation=[],
    )  # fmt: skip


def write(
    directory: Path,
    items: list[Item],
    events: list[Event],
    pushes: list[Decision],
    feedback: list[Feedback],
) -> None:
    """Write an archive of these messages."""
    to = Place(str(directory))
    archive(to, "push.events.v1", [(e.time_ms, e.user_id, encode(e)) for e in events])
    archive(to, "push.items.v1", [(0, i.item_id, encode(i)) for i in items])
    archive(to, "push.decisions.v1", [(d.decided_at, d.user_id, encode(d)) for d in pushes])
    archive(to, "push.feedback.v1", [(f.time_ms, f.user_id, encode(f)) for f in feedback])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive: five views of each user's own taste, and pushes of any item."""
    directory = tmp_path_factory.mktemp("archive")
    rng = np.random.default_rng(1)
    items = [Item(item_id=one, title=one.replace("-", " thing ")) for one in ITEMS]
    items.append(Item(item_id="new", title="a thing that the teacher never met"))
    events = [
        Event(
            event_id=f"e{user}-{n}", user_id=f"u{user:02d}", type="view",
            item_id=ITEMS[4 * (user % 2) + (user + n) % 4], time_ms=w.START_MS + n * HOUR_MS + user,
        )
        for n in range(5) for user in range(USERS)
    ]  # fmt: skip
    pushes, feedback = [], []
    for number in range(PUSHES):
        user, item = int(rng.integers(USERS)), int(rng.integers(len(ITEMS) + 1))
        one = push(number, user, items[item].item_id)
        pushes.append(one)
        kind = "opened" if item // 4 == 0 else "dismissed"
        feedback.append(
            Feedback(
                feedback_id=f"f{number}", decision_id=one.decision_id, user_id=one.user_id,
                type=kind, time_ms=one.decided_at + 60_000,
            )
        )  # fmt: skip
    end_ms = w.START_MS + 3 * w.DAY_MS
    feedback += [
        Feedback(feedback_id=u, decision_id="-", user_id=u, type="accepted", time_ms=end_ms)
        for u in ("u00", "u01")
    ]
    write(directory, items, events, pushes, feedback)
    return directory


def test_heads_are_tuned_from_the_archive_and_the_file_holds_them(
    place: Path, tmp_path: Path
) -> None:
    # The teacher knows an item that the archive has not, and has its own order of items.
    item_ids = [*reversed(ITEMS), "gone"]
    taught, out, checkpoint = (tmp_path / name for name in ("t.safetensors", "o.safetensors", "o"))
    save_teacher(taught, Teacher(SMALL, len(item_ids)), item_ids, {})
    command = [
        *("train", "outcomes", str(place), "--teacher", str(taught), "--out", str(out)),
        *("--checkpoint", str(checkpoint), "--epochs", "12"),
    ]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout.splitlines()[-1])

    assert 450 < told["pushes"] + told["pushes_later"] < PUSHES  # those of "new" are left out
    # What becomes of each item is sure.
    assert told["opened_log_loss"] < 0.8 * told["opened_log_loss_of_base_rate"]
    assert told["dismissed_log_loss"] < 0.8 * told["dismissed_log_loss_of_base_rate"]
    model, known = load_outcomes(out)
    assert known == item_ids
    assert model.teacher.config == SMALL
    # What is finished is not tuned again, and is the same to the byte.
    again = CliRunner().invoke(app, command)
    assert json.loads(again.stdout.splitlines()[-1]) == told
    other = CliRunner().invoke(app, [*command, "--seed", "2"])
    assert other.exit_code == 1
    assert "Delete it to start" in " ".join(other.output.split())
    with pytest.raises(TeacherFileError, match="train teacher"):
        load_teacher(out)
    with pytest.raises(TeacherFileError, match="train outcomes"):
        load_outcomes(taught)


def test_texts_and_histories_are_in_the_teachers_rows(place: Path) -> None:
    from flows import archived
    from flows.decide import rules
    from flows.training import of_items

    to, of = Place(str(place)), w.settings(place / "unused")
    item_ids = [*reversed(ITEMS), "gone"]
    histories, texts = of_items(archived.events(to), archived.items(to), rules(of), item_ids)

    first = histories.rows[: histories.offsets[1]]
    assert histories.user_ids[0] == "u00"
    assert [item_ids[row - 1] for row in first] == [f"garden-{n % 4}" for n in range(5)]
    assert texts[0].startswith("music thing 3")
    assert texts[-1] == ""


def test_a_student_does_not_learn_from_pushes_of_the_only_item(place: Path, tmp_path: Path) -> None:
    command = ["train", "archive", str(place), "--outcomes", "--out", str(tmp_path / "s.pfm")]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 1
    assert "0 pushes of two known items or more" in " ".join(found.output.split())
