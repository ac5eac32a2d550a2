"""Compression from end to end, on a chain of items that a student learns in a few epochs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from flows.compress import FASTER, KEEPS_INT8, Compressed, Data, Plan, compress
from models.checkpoint import write_model
from models.features import HISTORY, N_CONTEXT
from models.serving import StudentScorer
from models.splits import by_time
from models.student import StudentConfig
from models.teacher import Teacher, TeacherConfig
from models.text import encode_texts
from models.train import TrainConfig
from tests.models.chain import ITEMS, chains, follower

torch.set_num_threads(1)  # shared cores
SMALL = StudentConfig(width=32, feed_forward=64, request=32, dropout=0.1)
TRAINING = TrainConfig(student=SMALL, epochs=10, batch_size=8, learning_rate=1e-2)
PLAN = Plan(
    reach=(12, 5),
    feed_forward=32,
    training=TRAINING,
    recovery=replace(TRAINING, epochs=2, learning_rate=3e-3),
    requests=300,
    repeats=True,
)


@pytest.fixture(scope="module")
def found() -> Compressed:
    split = by_time(chains(), validation=0.1, test=0.1)
    return compress(Data(split, ITEMS, ITEMS), PLAN)


def test_every_step_is_measured_and_int8_keeps_its_quality(found: Compressed) -> None:
    steps = {step.name: step for step in found.steps}
    assert list(steps) == ["student", "narrowed", "pruned", "int8 dynamic", "int8 static"]
    student, static = steps["student"], steps["int8 static"]
    assert student.test > 0.5  # chance has 0.11 of 40 items; the chain is clear nine times in ten
    assert max(student.parity, steps["narrowed"].parity, steps["pruned"].parity) < 1e-3
    floats = [step.test for step in found.steps if step.name in ("student", "narrowed", "pruned")]
    assert static.test >= KEEPS_INT8 * min(floats)
    assert static.network_bytes < student.network_bytes
    assert all(step.ms > 0 for step in found.steps)


def test_what_serves_is_the_last_step_that_the_rule_kept(found: Compressed) -> None:
    assert 0 < FASTER < 1
    kept = [step.name for step in found.steps if step.verdict.startswith("kept")]
    assert found.chosen == (kept[-1] if kept else "student")
    assert all(
        step.verdict.startswith(("kept: ", "left out: ", "the steps start")) for step in found.steps
    )


def test_the_model_that_came_of_it_serves(found: Compressed, tmp_path: Path) -> None:
    write_model(tmp_path / "s.pfm", found.model)
    scorer = StudentScorer(tmp_path / "s.pfm")
    vectors = scorer.embed_items(ITEMS, encode_texts(ITEMS))
    table = np.vstack((np.zeros((1, scorer.dim), np.float32), vectors))
    after = np.array(follower())
    rows = np.zeros((len(ITEMS), HISTORY), np.int64)
    last = np.arange(len(ITEMS))
    for place in range(HISTORY - 10, HISTORY):  # ten steps along the chain
        rows[:, place] = last + 1
        last = after[last]
    ages = (np.arange(HISTORY, 0, -1) * 3_600 * (rows > 0)).astype(np.float32)
    context = np.zeros((len(ITEMS), N_CONTEXT), np.float32)
    users = scorer.user_vectors(table, rows, (rows > 0).astype(np.int64), ages, context)
    best = (users @ table[1:].T).argmax(axis=1)
    assert (best == last).mean() > 0.5  # chance has 0.025


def test_a_teachers_file_of_other_items_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sequences.txt"
    path.write_text("".join(f"u{n} a b c d e f g h\n" for n in range(20)))
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes(b"no teacher")
    run = CliRunner().invoke(
        app, ["train", "compress", "sequences", str(path), "--teacher", str(teacher)]
    )
    assert run.exit_code == 1
    assert "cannot read the teacher's file" in run.output


def test_weights_from_item_to_item_are_told_beside_a_teacher_alone(tmp_path: Path) -> None:
    path = tmp_path / "sequences.txt"
    path.write_text("".join(f"u{n} a b c d e f g h\n" for n in range(20)))
    run = CliRunner().invoke(app, ["train", "compress", "sequences", str(path), "--linear", "8"])
    assert run.exit_code == 1
    assert "name its file with --teacher" in run.output


def test_a_student_that_hears_weights_from_item_to_item_is_another_one() -> None:
    split = by_time(chains(60, 10), validation=0.1, test=0.1)
    torch.manual_seed(0)
    sizes = TeacherConfig(width=16, factors=8, hidden=16, feed_forward=32)
    taught = Teacher(sizes, len(ITEMS)).eval()
    plan = replace(PLAN, reach=(), training=replace(TRAINING, epochs=1))
    plan = replace(plan, recovery=replace(plan.recovery, epochs=1))
    heard = replace(plan, distillation=replace(plan.distillation, linear=8.0))
    made = [compress(Data(split, ITEMS, ITEMS), own, teacher=taught) for own in (plan, heard)]
    students = [one.steps[1] for one in made]  # the first row is the teacher's
    assert students[0].name == students[1].name == "student"
    assert students[0].parity != students[1].parity


def test_the_command_prints_the_steps_and_writes_the_file(tmp_path: Path) -> None:
    path, out = tmp_path / "sequences.txt", tmp_path / "s.pfm"
    path.write_text("".join(f"u{n} a b c d e f g h\n" for n in range(20)))
    asked = ["--out", str(out), "--epochs", "1", "--recovery", "1", "--reach", ""]
    run = CliRunner().invoke(app, ["train", "compress", "sequences", str(path), *asked])
    assert run.exit_code == 0, run.output
    told = orjson.loads(run.stdout.splitlines()[-1])
    assert [step["name"] for step in told["steps"]] == [
        "student", "pruned", "int8 dynamic", "int8 static",
    ]  # fmt: skip
    assert told["version"] == StudentScorer(out).version
