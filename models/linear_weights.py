"""Weights from item to item: what having the one says of wanting the other.

Owns    their form, by a student's items and by rows of a catalogue. `models.linear` makes them.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.ragged import Ragged

UNIT: Final = 2**15  # steps of a weight of 1; the most that fits is 2


class ItemWeights(NamedTuple):
    """Weights from each of I items to others, the strongest of an item first; E in all."""

    starts: NDArray[np.int64]  # where each item's begin in the other two, and E; shape (I + 1,)
    others: NDArray[np.int32]  # items, shape (E,)
    steps: NDArray[np.uint16]  # weights x `UNIT`, above 0, shape (E,)

    @property
    def n_items(self) -> int:
        """I."""
        return len(self.starts) - 1

    def table(self) -> NDArray[np.float32]:
        """Return the item, the other and the steps of each weight, exact; shape (E, 3)."""
        items = np.repeat(np.arange(self.n_items), np.diff(self.starts))
        return np.stack([items, self.others, self.steps], axis=1).astype(np.float32)

    @classmethod
    def of_table(cls, table: NDArray[np.float32], n_items: int) -> "ItemWeights":
        """Return the weights of a table; a ValueError says that it is none.

        >>> weights = ItemWeights(np.array([0, 2, 2]), np.int32([1, 0]), np.uint16([9, 4]))
        >>> [part.tolist() for part in ItemWeights.of_table(weights.table(), 2)]
        [[0, 2, 2], [1, 0], [9, 4]]
        """
        if table.shape[1] != 3:
            raise ValueError(f"a table of weights has 3 columns, not {table.shape[1]}")
        items, others = table[:, 0].astype(np.int64), table[:, 1].astype(np.int32)
        if table.min(initial=0) < 0 or max(items.max(initial=0), others.max(initial=0)) >= n_items:
            raise ValueError(f"weights of other items than {n_items}")
        starts = np.searchsorted(items, np.arange(n_items + 1))
        return cls(starts, others, table[:, 2].astype(np.uint16))


def by_row(weights: ItemWeights, numbers: NDArray[np.integer]) -> Ragged:
    """Return the same by rows of a catalogue, in the form of `models.item_rows.NEIGHBOUR`.

    What a weight loses by half the precision is less than 0.1% of it.

    Parameters
    ----------
    weights
        Of I items; what the catalogue has not is left out.
    numbers
        By row which of them it is, I where it is none; shape (R,).

    Examples
    --------
    >>> steps = np.uint16([UNIT // 2, UNIT // 4])
    >>> weights = ItemWeights(np.array([0, 2, 2]), np.int32([1, 0]), steps)
    >>> [parts, lengths] = by_row(weights, np.array([2, 1, 2, 0])).take(np.array([3, 2, 1]))
    >>> [part.tolist() for part in parts], lengths.tolist()
    ([[1, 3], [0.5, 0.25]], [2, 0, 0])
    """
    rows = np.zeros(weights.n_items + 1, np.int32)  # by item, 0 where the catalogue has it not
    rows[numbers] = np.arange(len(numbers))
    starts = np.append(weights.starts, weights.starts[-1])
    lengths = np.diff(starts)[numbers]  # (R,)
    before = np.cumsum(lengths) - lengths
    at = np.repeat(starts[numbers] - before, lengths)
    at += np.arange(len(at))
    others = rows[weights.others[at]]
    is_held = others > 0
    owners = np.repeat(np.arange(len(numbers)), lengths)[is_held]
    strengths = (weights.steps[at] / UNIT).astype(np.float16)
    n_of = np.bincount(owners, minlength=len(numbers))
    return Ragged.of(n_of, others[is_held], strengths[is_held])
