"""The softmax in blocks against the same loss written out."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.softmax import NEVER, Soft, cross_entropy_sum, ruled_out

E, S, M, K = 300, 80, 16, 20  # more examples than two blocks


class Case:
    """Random vectors, answers, and a teacher."""

    def __init__(self) -> None:
        made = torch.Generator().manual_seed(0)
        self.users = torch.randn(E, M, generator=made)
        self.items = torch.randn(S, M, generator=made)
        self.targets = torch.randint(S, (E,), generator=made)
        self.weights = torch.rand(E, generator=made)
        self.had = torch.randint(S, (E, 5), generator=made) + 1  # rows; places are one less
        self.had = self.had.masked_fill(self.had == self.targets[:, None] + 1, 0)
        self.ruled = ruled_out(self.had, torch.arange(1, S + 1))
        places = torch.stack([torch.randperm(S, generator=made)[:K] for _ in range(E)])
        logits = torch.randn(E, K, generator=made)
        logits[:, 3] = NEVER
        self.soft = Soft(places, logits, 2.0, torch.rand(E, generator=made))

    def written_out(self, users: Tensor, items: Tensor, *, soft: bool) -> Tensor:
        scores = users @ items.T
        kept = scores.clone()
        for example, row in torch.nonzero(self.had).tolist():
            kept[example, int(self.had[example, row]) - 1] = -torch.inf
        losses = F.cross_entropy(kept, self.targets, reduction="none") * self.weights
        if soft:
            own = scores.gather(1, self.soft.places).masked_fill(self.soft.logits <= NEVER, NEVER)
            mine = F.log_softmax(own / 2, 1)
            theirs = F.log_softmax(self.soft.logits / 2, 1)
            losses = losses + self.soft.weights * (theirs.exp() * (theirs - mine)).sum(1)
        return losses.sum()


@pytest.mark.parametrize("soft", [False, True])
def test_loss_and_gradients_are_those_of_the_loss_written_out(soft: bool) -> None:
    case = Case()
    found = []
    for ask in ("blocks", "whole"):
        users, items = case.users.clone().requires_grad_(), case.items.clone().requires_grad_()
        if ask == "blocks":
            told = case.soft if soft else None
            loss = cross_entropy_sum(
                users, items, case.targets, case.weights, ruled=case.ruled, soft=told
            )
        else:
            loss = case.written_out(users, items, soft=soft)
        (loss / 3).backward()  # type: ignore[no-untyped-call]
        found.append((loss.detach(), users.grad, items.grad))
    for blocks, whole in zip(*found, strict=True):
        torch.testing.assert_close(blocks, whole, rtol=1e-4, atol=1e-4)


def test_bfloat16_vectors_are_summed_as_float32() -> None:
    case = Case()
    users = case.users.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy_sum(users, case.items, case.targets, case.weights)
    loss.backward()  # type: ignore[no-untyped-call]
    exact = cross_entropy_sum(users.detach().float(), case.items, case.targets, case.weights)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(exact), rel=1e-6)
    assert users.grad is not None
    assert users.grad.dtype == torch.bfloat16
