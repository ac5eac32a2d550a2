"""Incremental serving against full recomputation, over streams of events of many users."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.checkpoint import write_model
from models.dataset import time_bucket
from models.export import export_student
from models.features import HISTORY, N_CONTEXT
from models.incremental import Asked, IncrementalScorer, incremental_parts
from models.incremental_kernel import _bucket
from models.serving import StudentScorer
from models.student import Student, StudentConfig
from models.text import encode_texts

torch.set_num_threads(1)  # shared cores
N_ITEMS, N_USERS = 30, 6
IDS = [f"i{n}" for n in range(N_ITEMS)]
NARROW = StudentConfig(reach=(43, 7))


def make_student(config: StudentConfig) -> Student:
    torch.manual_seed(5)
    student = Student(config, N_ITEMS)
    for weight in student.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return student.eval()


class World:
    """Users whose events come one by one, and what serving would be asked."""

    def __init__(self, student: Student, folder: Path) -> None:
        self.parts = incremental_parts(student)
        write_model(folder / "s.pfm", export_student(student, IDS, {}))
        self.whole = StudentScorer(folder / "s.pfm")
        vectors = self.whole.embed_items(IDS, encode_texts([f"item {n}" for n in range(N_ITEMS)]))
        self.table = np.vstack((np.zeros((1, self.whole.dim)), vectors)).astype(np.float16)
        self.rng = np.random.default_rng(3)
        self.events: dict[str, list[tuple[int, int, int]]] = {}  # item, type, second

    def event(self, user: str) -> None:
        history = self.events.setdefault(user, [])
        last = history[-1][2] if history else 1_000
        second = last + int(self.rng.exponential(300)) + 1
        history.append((int(self.rng.integers(1, 31)), int(self.rng.integers(1, 12)), second))

    def asked(self, users: list[str]) -> Asked:
        columns = np.zeros((3, len(users), HISTORY), np.int64)
        for b, user in enumerate(users):
            newest = self.events.get(user, [])[-HISTORY:]
            if newest:
                columns[:, b, HISTORY - len(newest) :] = np.array(newest).T
        items, types, times = columns
        tokens = items + 100 * types + 10_000 * times
        now_s = times[:, -1] + 60
        context = self.rng.exponential(5.0, (len(users), N_CONTEXT)).astype(np.float32)
        return Asked(tokens, items, types, times, now_s, context)

    def recomputed(self, asked: Asked) -> NDArray[np.float32]:
        age_s = np.where(asked.items > 0, asked.now_s[:, None] - asked.time_s, 0)
        return self.whole.user_vectors(
            self.table, asked.items, asked.types, age_s.astype(np.float32), asked.context
        )

    def check(self, scorer: IncrementalScorer, users: list[str]) -> None:
        asked = self.asked(users)
        expected = self.recomputed(asked)
        found = scorer.user_vectors(users, asked, self.table)
        scale = expected.std()
        np.testing.assert_allclose(found / scale, expected / scale, atol=1e-3)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(make_student(NARROW), tmp_path)


USERS = [f"u{n}" for n in range(N_USERS)]


@pytest.mark.parametrize(
    "config",
    [
        NARROW,
        StudentConfig(reach=(20, 30), layer_heads=(1, 2), layer_feed_forward=(16, 48)),
        StudentConfig(layers=3, heads=4, width=32, feed_forward=24, reach=(1, 10, 12)),
        StudentConfig(layers=1, reach=(49,)),
    ],
)
def test_events_one_by_one_give_what_the_whole_history_gives(
    config: StudentConfig, tmp_path: Path
) -> None:
    world = World(make_student(config), tmp_path)
    scorer = IncrementalScorer(world.parts, 32)
    for _ in range(2 * HISTORY + 5):  # the window fills, and slides past all that was kept first
        for user in USERS:
            world.event(user)
        world.check(scorer, USERS)
    assert scorer.n_whole == N_USERS
    assert scorer.n_steps == N_USERS * (2 * HISTORY + 4)


def test_new_events_are_steps_as_long_as_one_before_them_is_left(world: World) -> None:
    scorer = IncrementalScorer(world.parts, 32)
    for _ in range(70):
        world.event("a")
    world.check(scorer, ["a"])
    for n_new in (3, 9, HISTORY - 2):
        for _ in range(n_new):
            world.event("a")
        world.check(scorer, ["a"])
    assert (scorer.n_whole, scorer.n_steps) == (1, HISTORY + 10)
    for _ in range(HISTORY):
        world.event("a")
    world.check(scorer, ["a"])
    assert (scorer.n_whole, scorer.n_steps) == (2, HISTORY + 10)


def test_an_action_that_takes_the_newest_place_is_one_step(world: World) -> None:
    scorer = IncrementalScorer(world.parts, 32)
    for _ in range(60):
        world.event("a")
    world.check(scorer, ["a"])
    for type_code in (4, 6):
        item, _, second = world.events["a"][-1]
        world.events["a"][-1] = (item, type_code, second + 20)
        world.check(scorer, ["a"])
    world.events["a"][-1] = (3, 7, world.events["a"][-1][2] + 5)
    world.event("a")
    world.check(scorer, ["a"])
    assert (scorer.n_whole, scorer.n_steps) == (1, 4)
    for _ in range(HISTORY + 3):
        world.event("a")
        world.check(scorer, ["a"])
    assert scorer.n_whole == 1


def test_the_same_history_again_is_asked_with_its_new_age_and_context(world: World) -> None:
    scorer = IncrementalScorer(world.parts, 32)
    world.event("a")
    world.check(scorer, ["a"])
    world.check(scorer, ["a"])
    assert (scorer.n_whole, scorer.n_steps) == (1, 1)


def test_a_late_event_and_a_forgotten_item_rebuild_the_user(world: World) -> None:
    scorer = IncrementalScorer(world.parts, 32)
    for _ in range(20):
        world.event("a")
    world.check(scorer, ["a"])
    late = world.events["a"][10]
    world.events["a"].insert(11, (late[0] % 30 + 1, 1, late[2]))
    world.check(scorer, ["a"])
    del world.events["a"][4]
    world.check(scorer, ["a"])
    assert (scorer.n_whole, scorer.n_steps) == (3, 0)


def test_who_was_asked_about_longest_ago_makes_room_and_is_rebuilt(world: World) -> None:
    scorer = IncrementalScorer(world.parts, 32)
    everybody = [f"u{n}" for n in range(40)]
    for _ in range(55):
        for user in everybody:
            world.event(user)
    world.check(scorer, everybody)
    assert len(scorer) == 32
    world.check(scorer, everybody[-32:])  # the last 32 are there
    assert (scorer.n_whole, scorer.n_steps) == (40, 32)
    world.event("u0")
    world.check(scorer, ["u0"])
    assert scorer.n_whole == 41
    assert len(scorer) == 32


def test_a_lost_memory_is_rebuilt_from_the_history(world: World) -> None:
    scorer = IncrementalScorer(world.parts, 32)
    for _ in range(60):
        world.event("a")
        world.event("b")
    world.check(scorer, ["a", "b"])
    scorer.forget("a")
    scorer.forget("nobody")
    assert len(scorer) == 1
    world.event("a")
    world.event("b")
    world.check(scorer, ["a", "b"])
    assert (scorer.n_whole, scorer.n_steps) == (3, 1)


def test_a_user_twice_in_a_batch_and_one_without_a_history(world: World) -> None:
    scorer = IncrementalScorer(world.parts, 32)
    for _ in range(60):
        world.event("a")
        world.event("b")
    world.check(scorer, ["a", "nobody", "b"])
    for user in ("a", "b", "a"):
        world.event(user)
    asked = world.asked(["a", "b", "a", "nobody"])
    found = scorer.user_vectors(["a", "b", "a", "nobody"], asked, world.table)
    expected = world.recomputed(asked)
    np.testing.assert_allclose(found / expected.std(), expected / expected.std(), atol=1e-3)


def test_a_student_that_looks_back_further_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="over 50 or more"):
        incremental_parts(make_student(StudentConfig()))
    with pytest.raises(ValueError, match="over 50 or more"):
        incremental_parts(make_student(replace(NARROW, reach=(43, 8))))


def test_bits_depend_on_the_history_only(world: World) -> None:
    kept, alone = IncrementalScorer(world.parts, 32), IncrementalScorer(world.parts, 32)
    for turn in range(HISTORY):
        for user in USERS:
            for _ in range(world.rng.integers(0, 4) if turn else 1):
                world.event(user)
        item, _, second = world.events["u0"][-1]
        world.events["u0"][-1] = (item, turn % 12 + 1, second)
        asked = world.asked(USERS)
        found = kept.user_vectors(USERS, asked, world.table)
        rebuilt = IncrementalScorer(world.parts, 32).user_vectors(USERS, asked, world.table)
        assert found.tobytes() == rebuilt.tobytes()
        one = alone.user_vectors(USERS[:1], Asked(*(column[:1] for column in asked)), world.table)
        assert one.tobytes() == found[:1].tobytes()
    assert kept.n_whole == N_USERS


def test_times_fall_in_the_buckets_of_training() -> None:
    borders = [2**n + more for n in range(40) for more in (-2, -1, 0)]
    found = [_bucket(seconds) for seconds in (-5, 0, *borders)]
    assert found == time_bucket(np.array([-5, 0, *borders])).tolist()


def test_what_does_not_fit_is_refused_and_changes_nothing(world: World) -> None:
    with pytest.raises(ValueError, match="room for 8 users"):
        IncrementalScorer(world.parts, 8)
    scorer = IncrementalScorer(world.parts, 32)
    for _ in range(9):
        world.event("a")
    world.check(scorer, ["a"])
    world.event("a")
    asked = world.asked(["a"])
    for column, wrong in (("items", N_ITEMS + 1), ("items", -1), ("types", 99)):
        broken = asked._replace(**{column: np.where(asked.items > 0, wrong, 0)})
        with pytest.raises(IndexError, match=r"not in the table|no code"):
            scorer.user_vectors(["a"], broken, world.table)
    with pytest.raises(ValueError, match="not float16"):
        scorer.user_vectors(["a"], asked, world.table.astype(np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="item vectors of 63"):
        scorer.user_vectors(["a"], asked, world.table[:, 1:])
    with pytest.raises(ValueError, match="not of 2 users"):
        scorer.user_vectors(["a", "b"], asked, world.table)
    world.check(scorer, ["a"])
    assert (scorer.n_whole, scorer.n_steps) == (1, 1)
