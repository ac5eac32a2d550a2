"""What became of pushes, as the student's loss takes it: counterfactually, from the log.

Reads   the log of pushes, and the histories of their users.
Emits   a term of the student's loss, from pushes before the first cut; what the student's own order
        would have earned with pushes between the cuts, and with those after.
Owns    how a push is weighed.

The log holds what a policy chose: what it liked is there often, what it doubted seldom. So each
push counts by 1 / its probability among the items it was chosen from (inverse propensity scores),
cut at ten times the mean, and by what it earned. The term is the cross-entropy of what was pushed
in the student's softmax over these items: its minimum gives each item a share that is what it earns
on average, whatever the log liked. Rewards are as `learn` adds them up; one below 0 counts as none.

Pushes after the first cut judge by the self-normalised estimator: rewards weighed by the student's
probability over the log's.

References
----------
Chen et al., "Top-K Off-Policy Correction for a REINFORCE Recommender System", WSDM 2019.
Ionides, "Truncated Importance Sampling", JCGS 2008.
Swaminathan and Joachims, "The self-normalized estimator for counterfactual learning", NIPS 2015.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models.dataset import Histories, requests_when
from models.push_log import PushLog
from models.softmax import NEVER
from models.student import Student
from models.student_scores import users_of

_MOST_WEIGHT: Final = 10.0  # of a push, in units of the mean
_FEWEST: Final = 10  # pushes before the cut
_BLOCK: Final = 256  # pushes asked at a time
_TINY: Final = 1e-9


class PushOutcomes:
    """A log of pushes for `models.train.fit_student(outcomes=...)`.

    Parameters
    ----------
    log
        Pushes of at least two items that are known count; "send nothing" is no item.
    histories, item_ids
        As the student is trained on; a push is asked about by what its user had done before it.
    cuts
        Of the training, seconds: pushes before the first teach, those up to the second help to
        choose the epoch, the newest are looked at once.
    loudness
        What the term, per push that earned, counts for beside the next item's cross-entropy.
    batch_size
        Pushes a step.
    seed
        Of their order.

    Raises
    ------
    ValueError
        If fewer than ten pushes before the cut count, or none earned anything.
    """

    def __init__(
        self,
        log: PushLog,
        histories: Histories,
        item_ids: Sequence[str],
        *,
        cuts: tuple[int, int],
        loudness: float = 1.0,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        self._log, self._histories = log, histories
        self._loudness, self._batch_size = loudness, batch_size
        self._rng = np.random.default_rng(seed)
        rows, self._chosen, self._weights = _arms(log, item_ids)
        self._rows = rows
        counts = np.flatnonzero(self._weights > 0)
        parts = np.digitize(log.decided_ms[counts] // 1_000, cuts)
        self._past, self._between, self._later = (counts[parts == part] for part in range(3))
        if len(self._past) < _FEWEST:
            raise ValueError(
                f"{len(self._past)} pushes of two known items or more, decided before the "
                f"validation begins, are too few to learn from: at least {_FEWEST}"
            )
        earned = self._weights * np.maximum(log.rewards, 0.0)  # (N,)
        mean = float(earned[self._past].mean())
        if not mean:
            raise ValueError("no push before the validation begins earned anything")
        self._earned = earned / mean
        self._queue = self._past[:0]

    def loss(self, student: Student, table: Tensor) -> Tensor:
        """Return the term for the next pushes; `table` is the step's, of `item_table`."""
        if len(self._queue) < min(self._batch_size, len(self._past)):
            self._queue = self._rng.permutation(self._past)
        pushes = self._queue[: self._batch_size]
        self._queue = self._queue[self._batch_size :]
        logs = self._log_shares(student, table, pushes)  # (E,)
        earned = torch.from_numpy(self._earned[pushes].astype(np.float32)).to(logs.device)
        return -self._loudness * (logs * earned).mean()

    def worth(self, student: Student, texts: Tensor) -> float:
        """Return the factor by which an epoch's validation counts: 1 where there is no telling.

        It is what the student's order would have earned between the cuts, at least a little: a
        percent of reward counts as much as a percent of NDCG.
        """
        if not len(self._between):
            return 1.0
        return max(self._reward(student, texts, self._between)[0], _TINY)

    def metrics(self, student: Student, texts: Tensor) -> dict[str, float]:
        """Return what the newest pushes earned, and what they would have by the student.

        The estimate is worth as much as one of `pushes_effective` pushes that the student chose.
        """
        found = {"pushes": float(len(self._past)), "pushes_later": float(len(self._later))}
        if len(self._later):
            found["reward_later"] = float(self._log.rewards[self._later].mean())
            reward, effective = self._reward(student, texts, self._later)
            found |= {"reward_later_by_student": reward, "pushes_effective": effective}
        return found

    def _reward(
        self, student: Student, texts: Tensor, pushes: NDArray[np.int64]
    ) -> tuple[float, float]:
        """Return the self-normalised estimate, and its effective sample size."""
        student.eval()
        shares = []
        with torch.no_grad():
            table = student.item_table(texts)
            for start in range(0, len(pushes), _BLOCK):
                part = pushes[start : start + _BLOCK]
                shares.append(self._log_shares(student, table, part).exp().cpu().numpy())
        weights = np.concatenate(shares) * self._weights[pushes]
        total = max(float(weights.sum()), _TINY)
        reward = float((weights * self._log.rewards[pushes]).sum()) / total
        return reward, total**2 / max(float((weights**2).sum()), _TINY)

    def _log_shares(self, student: Student, table: Tensor, pushes: NDArray[np.int64]) -> Tensor:
        """Return the log of the student's probability of what was pushed, shape (E,)."""
        asked = requests_when(
            self._histories,
            [self._log.user_ids[push] for push in pushes],
            self._log.decided_ms[pushes] // 1_000,
        )
        users = users_of(student, table, asked)  # (E, W)
        given = self._rows[pushes], self._chosen[pushes]
        arms, chosen = (torch.from_numpy(own).to(table.device) for own in given)
        scores = (F.embedding(arms, table) @ users[:, :, None])[..., 0]  # (E, K)
        scores = scores.masked_fill(arms == 0, NEVER)
        logs: Tensor = torch.log_softmax(scores, dim=1).gather(1, chosen[:, None])[:, 0]
        return logs


def _arms(
    log: PushLog, item_ids: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the rows of each push's items, which one was sent, and weights.

    Shapes (N, K), 0 where there is none or it is not known; (N,); and (N,), 0 where the push
    does not count: its item is unknown or alone.
    """
    row_of = {item_id: row for row, item_id in enumerate(item_ids, start=1)}
    of_arms = np.array([row_of.get(item, 0) for item in log.item_ids], np.int64)  # (M,)
    sizes = np.diff(log.offsets)
    pushes = np.repeat(np.arange(len(sizes)), sizes)
    places = np.arange(len(of_arms)) - np.repeat(log.offsets[:-1], sizes)
    rows = np.zeros((len(sizes), int(sizes.max(initial=1))), np.int64)
    rows[pushes, places] = of_arms
    chosen = log.chosen - log.offsets[:-1]
    among = np.bincount(pushes, log.probabilities * (of_arms > 0), minlength=len(sizes))
    does_count = (of_arms[log.chosen] > 0) & ((rows > 0).sum(axis=1) > 1)
    weights = np.where(does_count, among / np.maximum(log.propensities, _TINY), 0.0)
    cut = _MOST_WEIGHT * weights[does_count].mean() if does_count.any() else 0.0
    return rows, chosen, np.minimum(weights, cut)
