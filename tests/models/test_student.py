import numpy as np
import pytest
import torch
from torch import Tensor

from models.features import HISTORY, N_CONTEXT, TEXT_DIM
from models.softmax import NEVER
from models.student import (
    Negatives,
    Student,
    StudentConfig,
    TeacherLogits,
    next_item_loss,
    unmatched,
)

N_ITEMS = 40
# Two of torch's threads on shared cores wait for each other more than they work.
torch.set_num_threads(1)
NO_DROPOUT = StudentConfig(dropout=0.0, id_dropout=0.0, context_dropout=0.0)


@pytest.fixture
def student() -> Student:
    torch.manual_seed(3)
    made = Student(NO_DROPOUT, N_ITEMS)
    torch.nn.init.normal_(made.request_context.weight, std=0.1)
    torch.nn.init.normal_(made.request_age.weight, std=0.1)
    torch.nn.init.normal_(made.pool.weight, std=0.1)
    for block in made.blocks:
        torch.nn.init.normal_(block.distance, std=0.5)  # type: ignore[arg-type]
    return made.eval()


@pytest.fixture
def table(student: Student) -> Tensor:
    return student.item_table(torch.randn(N_ITEMS, TEXT_DIM)).detach()


def sequences(n_users: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (n_users, HISTORY)
    rows = torch.randint(1, N_ITEMS + 1, shape, generator=generator)
    kinds = torch.randint(1, 12, shape, generator=generator)
    return rows, kinds, torch.randint(0, 32, shape, generator=generator)


def test_shapes_are_as_documented(student: Student, table: Tensor) -> None:
    states = student.encode(table, *sequences(3))
    users = student.users(
        states, torch.zeros(3, HISTORY, N_CONTEXT), torch.zeros(3, HISTORY).long()
    )
    assert table.shape == (N_ITEMS + 1, 64)
    assert states.shape == (3, HISTORY, 2 * 64)
    assert users.shape == (3, HISTORY, 64)
    assert not table[0].any()


def test_what_follows_a_position_does_not_change_its_state(student: Student, table: Tensor) -> None:
    rows, kinds, gaps = sequences(2)
    before = student.encode(table, rows, kinds, gaps)
    rows[:, 30:], kinds[:, 30:], gaps[:, 30:] = 7, 2, 5
    after = student.encode(table, rows, kinds, gaps)
    torch.testing.assert_close(after[:, :30], before[:, :30], atol=1e-6, rtol=0)
    assert not torch.allclose(after[:, 30:], before[:, 30:])


def test_what_lies_in_padding_does_not_change_an_items_state(
    student: Student, table: Tensor
) -> None:
    rows, kinds, gaps = sequences(2)
    rows[:, :20] = 0
    before = student.encode(table, rows, kinds, gaps)[:, 20:]
    kinds[:, :20], gaps[:, :20] = 3, 9
    after = student.encode(table, rows, kinds, gaps)[:, 20:]
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)


def test_where_a_history_stands_in_the_window_does_not_matter(
    student: Student, table: Tensor
) -> None:
    rows, kinds, gaps = (torch.zeros(1, HISTORY).long() for _ in range(3))
    rows[0, -3:], kinds[0, -3:], gaps[0, -3:] = torch.tensor([4, 9, 2]), 1, 6
    late = student.encode(table, rows, kinds, gaps)[:, -3:]
    shifted = [torch.roll(x, -20, dims=1) for x in (rows, kinds, gaps)]
    early = student.encode(table, *shifted)[:, -23:-20]
    torch.testing.assert_close(early, late, atol=1e-6, rtol=0)


def test_order_types_gaps_context_and_trigger_age_all_matter(
    student: Student, table: Tensor
) -> None:
    rows, kinds, gaps = sequences(1)
    state = student.encode(table, rows, kinds, gaps)[:, -1]
    swapped = rows.clone()
    swapped[0, [3, 40]] = rows[0, [40, 3]]
    assert not torch.allclose(student.encode(table, swapped, kinds, gaps)[:, -1], state)
    assert not torch.allclose(student.encode(table, rows, kinds % 11 + 1, gaps)[:, -1], state)
    assert not torch.allclose(student.encode(table, rows, kinds, (gaps + 1) % 32)[:, -1], state)
    user = student.users(state, torch.zeros(1, N_CONTEXT), torch.tensor([3]))
    assert not torch.allclose(
        student.users(state, torch.ones(1, N_CONTEXT), torch.tensor([3])), user
    )
    assert not torch.allclose(student.users(state, None, torch.tensor([30])), user)


def test_a_new_student_heeds_no_context_it_was_not_trained_on() -> None:
    fresh = Student(NO_DROPOUT, N_ITEMS).eval()
    state, age = torch.randn(1, 2 * 64), torch.tensor([0])
    assert torch.equal(
        fresh.users(state, torch.ones(1, N_CONTEXT), age), fresh.users(state, None, age)
    )


def test_it_learns_one_batch_by_heart_and_every_weight_gets_a_gradient() -> None:
    torch.manual_seed(0)
    small = StudentConfig(
        width=32, feed_forward=64, request=32, dropout=0.0, id_dropout=0.0, context_dropout=0.0
    )
    student = Student(small, N_ITEMS)
    texts, contexts = torch.randn(N_ITEMS, TEXT_DIM), torch.randn(8, N_CONTEXT)
    rows, kinds, gaps = sequences(8)
    targets, ages = torch.arange(1, 9), torch.arange(8)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)

    def step() -> float:
        table = student.item_table(texts)
        states = student.encode(table, rows, kinds, gaps)[:, -1]
        loss = next_item_loss(student.users(states, contexts, ages), table, targets, torch.ones(8))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(loss.detach())

    first = step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    last = [step() for _ in range(50)][-1]
    assert first > 3
    assert last < 0.05


def loss_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(N_ITEMS + 1, 8, generator=generator)
    table[0] = 0
    users = torch.randn(6, 8, generator=generator)
    return users, table, torch.tensor([3, 3, 9, 20, 1, 40]), torch.tensor([1.0, 2, 1, 1, 0, 1])


def test_loss_is_the_weighted_mean_of_cross_entropies_over_real_items() -> None:
    users, table, targets, weights = loss_inputs()
    logits = (users @ table[1:].T).double().numpy()
    each = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), targets.numpy() - 1]
    expected = (each * weights.numpy()).sum() / 6
    assert float(next_item_loss(users, table, targets, weights)) == pytest.approx(
        expected, rel=1e-5
    )


def test_items_left_out_of_the_answers_do_not_count_as_wrong() -> None:
    users, table, targets, weights = loss_inputs()
    among = torch.tensor([1, 3, 9, 20, 40])
    before = next_item_loss(users, table, targets, weights, among=among)
    table[30] = 100.0
    after = next_item_loss(users, table, targets, weights, among=among)
    assert torch.equal(after, before)
    assert before < next_item_loss(users, table, targets, weights)


def test_sampled_softmax_with_correction_comes_near_the_full_one() -> None:
    users, table, targets, weights = loss_inputs()
    rng = np.random.default_rng(0)
    share = rng.random(N_ITEMS) + 0.1
    share /= share.sum()
    size = 100_000
    rows = torch.from_numpy(1 + rng.choice(N_ITEMS, size, p=share))
    log_q = torch.from_numpy(np.concatenate(([0.0], np.log(size * share))).astype(np.float32))
    # The target stands beside the sample, which has none of it: its own draws are masked.
    sampled = next_item_loss(users, table, targets, weights, negatives=Negatives(rows, log_q))
    right = (users * table[targets]).sum(1)
    wrong = torch.exp(users @ table[1:].T).sum(1) - torch.exp(right)
    each = torch.log(torch.exp(right - log_q[targets]) + wrong) - (right - log_q[targets])
    expected = float((each * weights).sum() / weights.sum())
    assert float(sampled) == pytest.approx(expected, rel=0.02)


def test_what_a_user_had_is_no_wrong_answer_unless_it_is_the_right_one() -> None:
    users, table, targets, weights = loss_inputs()
    had = torch.tensor([[5, 0], [3, 6], [0, 0], [7, 5], [0, 5], [1, 2]])
    found = next_item_loss(users, table, targets, weights, had=had)
    logits = (users @ table[1:].T).double().numpy()
    logits[[0, 1, 3, 3, 4, 5, 5], [4, 5, 6, 4, 4, 0, 1]] = -np.inf
    each = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), targets.numpy() - 1]
    assert float(found) == pytest.approx((each * weights.numpy()).sum() / 6, rel=1e-5)


def test_a_candidate_that_the_teacher_rules_out_teaches_nothing() -> None:
    users, table, targets, weights = loss_inputs()
    logits = torch.tensor([[0.0, 4.0, 2.0]] * 6)
    two = TeacherLogits(torch.tensor([[5, 6]] * 6), logits[:, :2], share=1.0)
    ruled_out = torch.tensor([[0.0, 4.0, NEVER]] * 6)
    three = TeacherLogits(torch.tensor([[5, 6, 7]] * 6), ruled_out, share=1.0)
    of_two, of_three = (
        float(next_item_loss(users, table, targets, weights, teacher=own)) for own in (two, three)
    )
    assert of_three == pytest.approx(of_two, rel=1e-5)


def test_distillation_pulls_the_student_to_the_teachers_order() -> None:
    users, table, targets, _ = loss_inputs()
    candidates = torch.tensor([[5, 6, 7]] * 6)
    teacher = TeacherLogits(candidates, torch.tensor([[0.0, 4.0, 2.0]] * 6), share=1.0)
    users = users.requires_grad_()
    optimizer = torch.optim.SGD([users], lr=0.2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = next_item_loss(users, table, targets, torch.ones(6), teacher=teacher)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    logits = (users @ table[5:8].T).detach()
    torch.testing.assert_close(logits - logits[:, :1], teacher.logits, atol=0.05, rtol=0)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-4)


def test_matching_pulls_the_student_to_a_map_of_the_teachers_vectors() -> None:
    users, table, targets, weights = loss_inputs()
    made = torch.Generator().manual_seed(5)
    theirs = torch.randn(6, 2, generator=made)
    candidates = torch.tensor([[5, 6, 7]] * 6)
    silent = TeacherLogits(candidates, torch.zeros(6, 3), share=0.0)
    plain = next_item_loss(users, table, targets, weights, teacher=silent)
    matched = silent._replace(users=theirs, matching=0.5)
    found = next_item_loss(users, table, targets, weights, teacher=matched)
    share = (unmatched(users, theirs) * weights).sum() / weights.sum()
    assert float(found) == pytest.approx(float(plain + 0.5 * share), rel=1e-5)
    # A map of the teacher's vectors is as good as they are; it costs nothing more.
    twisted = theirs @ torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, -1.0]])
    assert float(unmatched(twisted, theirs).max()) < 1e-4
