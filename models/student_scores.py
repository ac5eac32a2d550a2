"""What a student says of the whole catalogue, by torch: for training and measuring.

Reads   requests, and the items' text vectors.
Emits   scores of all items.
Owns    nothing; `models.serving` is what serves.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.dataset import Requests, gap_buckets, time_bucket
from models.features import scale_context
from models.student import Student


def catalogue_scores(
    student: Student, texts: NDArray[np.float32] | Tensor
) -> Callable[[Requests], NDArray[np.float32]]:
    """Return a function that scores the whole catalogue for requests, shape (B, N)."""
    student.eval()
    device = next(student.parameters()).device
    with torch.no_grad():
        table = student.item_table(torch.as_tensor(texts, device=device))  # (N + 1, W)

    def score(requests: Requests) -> NDArray[np.float32]:
        with torch.no_grad():
            users = users_of(student, table, requests)  # (B, W)
            scores: NDArray[np.float32] = (users @ table[1:].T).cpu().numpy()
        return scores

    return score


def users_of(student: Student, table: Tensor, requests: Requests) -> Tensor:
    """Return the vectors of the users who ask, shape (B, W); `table` of `Student.item_table`."""
    rows, gaps = requests.rows, gap_buckets(requests.rows, requests.age_s)
    ages = np.where(rows[:, -1] > 0, time_bucket(requests.age_s[:, -1]), 0)
    asked = (rows, requests.types, gaps, scale_context(requests.contexts), ages)
    *columns, contexts, ages_of = (torch.from_numpy(own).to(table.device) for own in asked)
    newest = student.encode(table, *columns)[:, -1]  # (B, 2W)
    return student.users(newest, contexts, ages_of)
