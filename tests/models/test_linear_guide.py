"""What a student hears of weights from item to item."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from models.dataset import Histories, Windows, build_histories, training_windows
from models.features import EVENT_CODE, FADING
from models.linear_guide import CrossFitted, LinearGuide, cross_fitted
from models.student import TeacherLogits

ITEMS = ["a", "b", "c", "d"]
LATER = 10**6
CANDIDATES = torch.tensor([2, 4, 1])


def pairs_of(n_users: int, first: str, second: str, *, name: str) -> list[tuple[str, str, int]]:
    """Return events of users who take one item and then the other."""
    users = [f"{name}{n:03d}" for n in range(n_users)]
    return [(user, item, at) for user in users for at, item in ((0, first), (100, second))]


def histories_of(events: list[tuple[str, str, int]]) -> Histories:
    users, items, times = zip(*events, strict=True)
    views = [EVENT_CODE["view"]] * len(events)
    return build_histories(users, items, views, times, item_ids=ITEMS)


def teacher(batch: Windows) -> TeacherLogits:
    """Say nothing of three candidates."""
    n_examples = len(batch.asked()[0])
    return TeacherLogits(CANDIDATES.expand(n_examples, -1), torch.zeros(n_examples, 3))


def batch_of(histories: Histories) -> Windows:
    rng = np.random.default_rng(0)
    return next(training_windows(histories, until_s=LATER, batch_size=1_000, rng=rng))


def test_a_pair_of_one_user_is_said_to_others_and_never_to_the_user() -> None:
    lone = pairs_of(1, "c", "d", name="lone")
    histories = histories_of(pairs_of(300, "a", "b", name="many") + lone)
    found = cross_fitted(histories, len(ITEMS), LATER, seed=0)
    own = found.folds[histories.user_ids.index("lone000")]
    for fold, matrix in enumerate(found.matrices):
        assert matrix[0, 1] > 0.2  # a says b, whoever is left out
        assert matrix[2, 3] == 0.0 or fold != own
    assert len(set(found.folds)) == len(found.matrices)
    again = cross_fitted(histories, len(ITEMS), LATER, seed=0)
    assert found.folds.tolist() == again.folds.tolist()


def test_what_was_wanted_from_the_moment_on_says_nothing() -> None:
    histories = histories_of(pairs_of(300, "a", "b", name="many"))
    assert not any(matrix.nnz for matrix in cross_fitted(histories, len(ITEMS), 50, 0).matrices)


def test_the_weights_of_the_users_own_fold_are_added_to_what_the_teacher_says() -> None:
    events = [("u", "a", 0), ("u", "c", 100), ("u", "b", 200), ("v", "a", 0), ("v", "b", 100)]
    histories = histories_of(events)
    says = np.zeros((4, 4))
    says[0, 1], says[2, 1], says[0, 3] = 0.5, 0.25, 0.125  # a -> b, c -> b, a -> d
    weights = CrossFitted(np.array([0, 1]), [sp.csr_matrix(says), sp.csr_matrix(2 * says)])
    batch = batch_of(histories)
    told = LinearGuide(teacher, weights, loudness=8.0)(batch)
    which, at = batch.asked()
    heard = {
        (histories.user_ids[batch.users[window]], ["", *ITEMS][batch.rows[window, place]]): logits
        for window, place, logits in zip(which, at, told.logits.tolist(), strict=True)
    }
    assert heard["u", "a"] == pytest.approx([4.0, 1.0, 0.0])  # of b, d and a
    assert heard["u", "c"] == pytest.approx([8 * (0.25 + FADING * 0.5), FADING, 0.0])
    assert heard["v", "a"] == pytest.approx([8.0, 2.0, 0.0])
    assert heard["u", ""] == heard["v", ""] == [0.0, 0.0, 0.0]  # before their first item
    assert len(heard) == 5
    assert torch.equal(told.candidates, teacher(batch).candidates)
