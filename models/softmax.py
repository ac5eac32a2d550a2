"""The softmax over a whole catalogue, and its gradient, in blocks of examples.

Reads   user vectors, item vectors, what came next, what a teacher thinks.
Emits   the weighted sum of losses, to be differentiated once.
Owns    what such a loss costs: of E examples and S items no array of E x S is ever made.

Scores of a thousand examples and ten thousand items are 40 MB. Written, read again and given back
for each term of a loss they cost more than the products that make them. A block's scores stay in
the processor's cache, and the gradient is made of them at once: forward does all the work.
"""

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NEVER: Final = -1e4  # a logit that takes no part in a softmax
_BLOCK: Final = 128  # examples: 5 MB of scores at 10,000 items


class Soft(NamedTuple):
    """What a teacher thinks of some of the items."""

    places: Tensor  # in the items, int64, shape (E, K)
    logits: Tensor  # float32, shape (E, K)
    temperature: float
    weights: Tensor  # of each example's distance, float32, shape (E,)


class Ruled(NamedTuple):
    """Items that are no wrong answers of an example, sorted by example."""

    examples: Tensor  # int64, shape (R,)
    places: Tensor  # int64, shape (R,)


def ruled_out(rows: Tensor, among: Tensor) -> Ruled:
    """Return which of each example's rows (E, T), padded with 0, stand where in `among`, sorted.

    >>> [own.tolist() for own in ruled_out(torch.tensor([[0, 5], [7, 6]]), torch.tensor([5, 7]))]
    [[0, 1], [0, 1]]
    """
    places = torch.searchsorted(among, rows).clamp(max=len(among) - 1)  # (E, T)
    examples, at = torch.nonzero((rows > 0) & (among[places] == rows), as_tuple=True)
    return Ruled(examples, places[examples, at])


def cross_entropy_sum(
    users: Tensor,
    items: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    ruled: Ruled | None = None,
    soft: Soft | None = None,
) -> Tensor:
    """Return the weighted sum of E cross-entropies over S items, and of distances to a teacher.

    Parameters
    ----------
    users, items
        Vectors, float32, shape (E, M) and (S, M): a score is their product.
    targets, weights
        Places of what came next, int64, and what each counts for, float32, shape (E,).
    ruled
        Take no part in the cross-entropy.
    soft
        Adds KL(teacher, student) over the teacher's items, at its temperature.

    Notes
    -----
    Time: three products of E x S x M, whether a gradient is asked for or not.

    Examples
    --------
    >>> users, items = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    >>> one = torch.ones(1)
    >>> round(float(cross_entropy_sum(users, items, torch.tensor([1]), one)), 3)
    2.127
    """
    none = torch.empty(0, dtype=torch.int64, device=users.device)
    ruled = ruled or Ruled(none, none)
    with torch.autocast(users.device.type, enabled=False):  # sums of exponents want float32
        asked = _Asked(targets, weights, ruled, soft)
        found: Tensor = _Blocks.apply(users.float(), items.float(), asked)
    return found


class _Asked(NamedTuple):
    """What no gradient is asked of."""

    targets: Tensor
    weights: Tensor
    ruled: Ruled
    soft: Soft | None


class _Blocks(torch.autograd.Function):
    """Forward makes the gradients; backward hands them out."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, asked: _Asked) -> Tensor:
        targets, weights, ruled, soft = asked
        n_examples = len(users)
        of_users, of_items = torch.zeros_like(users), torch.zeros_like(items)
        total = users.new_zeros(())
        starts = range(0, n_examples, _BLOCK)
        borders = torch.searchsorted(
            ruled.examples, torch.tensor([*starts, n_examples], device=users.device)
        ).tolist()
        for number, start in enumerate(starts):
            part = slice(start, start + _BLOCK)
            own, at, weight = users[part], targets[part, None], weights[part, None]
            scores = own @ items.T  # (B, S), becomes the gradient
            pulls = None
            if soft is not None:
                distance, pulls = _to_teacher(scores, Soft(*(_of(one, part) for one in soft)))
                total += distance
            mine = slice(borders[number], borders[number + 1])
            scores[ruled.examples[mine] - start, ruled.places[mine]] = -torch.inf
            right, highest = scores.gather(1, at), scores.amax(1, keepdim=True)
            sums = scores.sub_(highest).exp_().sum(1, keepdim=True)
            total += (weight * (sums.log() + highest - right)).sum()
            scores.mul_(weight / sums).scatter_add_(1, at, -weight)
            if soft is not None and pulls is not None:
                scores.scatter_add_(1, soft.places[part], pulls)
            of_users[part] = scores @ items
            of_items.addmm_(scores.T, own)
        ctx.save_for_backward(of_users, of_items)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, None]:
        of_users, of_items = ctx.saved_tensors
        return outer * of_users, outer * of_items, None


def _of(value: Tensor | float, part: slice) -> Any:
    return value[part] if isinstance(value, Tensor) else value


def _to_teacher(scores: Tensor, soft: Soft) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of distances, and their gradient by the scores, shape (B, K)."""
    is_out = soft.logits <= NEVER
    chosen = scores.gather(1, soft.places).masked_fill(is_out, NEVER)
    mine = torch.log_softmax(chosen / soft.temperature, 1)
    theirs = torch.log_softmax(soft.logits / soft.temperature, 1)
    wanted, weight = theirs.exp(), soft.weights[:, None]
    distance = (weight * wanted * (theirs - mine)).sum()
    return distance, weight * (mine.exp() - wanted) / soft.temperature
