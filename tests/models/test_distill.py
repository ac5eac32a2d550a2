"""What the student hears of its teacher."""

import numpy as np
import pytest
import torch

from models.dataset import Windows, training_windows
from models.distill import Distillation, TeacherGuide
from models.features import TEXT_DIM
from models.softmax import NEVER
from models.teacher import Teacher, TeacherConfig
from tests.models.chain import ITEMS, chains

TEXTS = np.zeros((len(ITEMS), TEXT_DIM), np.float32)
KNOWN = np.arange(1, 36)  # the last five were not met


def teacher_of(backbone: str) -> Teacher:
    torch.manual_seed(0)
    sizes = TeacherConfig(backbone=backbone, width=16, factors=8, hidden=16, feed_forward=32)
    return Teacher(sizes, len(ITEMS)).eval()


def batch() -> Windows:
    histories = chains(6, 8)
    rng = np.random.default_rng(0)
    return next(training_windows(histories, until_s=10**9, batch_size=4, rng=rng))


def guide(backbone: str, **said: int) -> TeacherGuide:
    return TeacherGuide([teacher_of(backbone)], TEXTS, KNOWN, config=Distillation(**said), seed=0)


def test_each_example_has_the_best_items_and_some_of_the_rest_once_each() -> None:
    asked = batch()
    whole = guide("gpt2", top=30, tail=30)(asked)
    some = guide("gpt2", top=5, tail=7)(asked)
    n_examples = int((asked.weights > 0).sum())
    assert whole.candidates.shape == (n_examples, 35)  # there are no more
    assert some.candidates.shape == (n_examples, 12)
    assert all(len(set(rows)) == 12 for rows in some.candidates.tolist())
    best = whole.candidates.gather(1, whole.logits.topk(5).indices)
    assert some.candidates[:, :5].tolist() == best.tolist()
    assert int(some.candidates.max()) <= 35


def test_what_a_user_had_is_ruled_out_where_items_are_had_once() -> None:
    asked = batch()
    teacher, told = teacher_of("gpt2"), Distillation(top=40)
    once = TeacherGuide([teacher], TEXTS, KNOWN, config=told, seed=0, repeats=False)(asked)
    which, last = np.nonzero(asked.weights > 0)
    had = [set(asked.rows[user, : at + 1]) for user, at in zip(which, last, strict=True)]
    for rows, logits, own in zip(once.candidates.tolist(), once.logits, had, strict=True):
        is_out = (logits <= NEVER).tolist()
        assert is_out == [row in own for row in rows]


@pytest.mark.parametrize("backbone", ["gpt2", "bert"])
def test_logits_are_the_teachers_for_the_history_up_to_the_example(backbone: str) -> None:
    asked = batch()
    found = guide(backbone, top=40)(asked)
    teacher = teacher_of(backbone)
    which, last = np.nonzero(asked.weights > 0)
    example = 5
    own = [
        torch.zeros((1, 50), dtype=torch.int64)
        for _ in (asked.rows, asked.types, asked.gaps, asked.ages)
    ]
    place = int(last[example]) + 1
    for made, column in zip(own, (asked.rows, asked.types, asked.gaps, asked.ages), strict=True):
        made[0, 50 - place :] = torch.from_numpy(column[which[example], :place])
    with torch.no_grad():
        table = teacher.item_table(torch.from_numpy(TEXTS))
        state = teacher.states(table, *own)[:, -1]
        logits = teacher.users(state, None, own[3][:, -1]) @ table[1:36].T
    assert torch.allclose(found.logits[example], logits[0], atol=1e-5)


def test_of_several_teachers_each_batch_hears_one_by_turns() -> None:
    asked = batch()
    first, second = teacher_of("gpt2"), teacher_of("gpt2")
    with torch.no_grad():
        second.user_out.bias.add_(1.0)
    told = Distillation(top=40)
    both = TeacherGuide([first, second], TEXTS, KNOWN, config=told)
    heard = [both(asked).logits for _ in range(3)]
    alone = [
        TeacherGuide([own], TEXTS, KNOWN, config=told)(asked).logits for own in (first, second)
    ]
    assert not torch.equal(alone[0], alone[1])
    for found, own in zip(heard, (alone[0], alone[1], alone[0]), strict=True):
        assert torch.equal(found, own)


def test_vectors_to_match_are_told_where_they_are_asked_for() -> None:
    asked = batch()
    n_examples = int((asked.weights > 0).sum())
    teacher = teacher_of("gpt2")
    told = Distillation(top=40, matching=0.5)
    found = TeacherGuide([teacher], TEXTS, KNOWN, config=told)(asked)
    assert found.users is not None
    assert found.users.shape == (n_examples, 24)
    table = teacher.item_table(torch.from_numpy(TEXTS))
    torch.testing.assert_close(found.users @ table[1:36].T, found.logits)
    assert guide("gpt2", top=40, matching=0)(asked).users is None
