"""A student's file as it serves: how well it ranks, what it costs, how far it is from torch.

Reads   a model file, and the catalogue that it is asked about.
Emits   scores of the whole catalogue, NDCG@10, milliseconds.
Owns    how a step from a trained student to the served file is measured (`flows.compress`,
        `flows.demo_models`).

Times are CPU time of this thread, the least of many calls, and models that are compared are called
turn and turn about: whatever else the machine does is no part of them.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.dataset import Histories, Requests
from models.next_item import Exam, Score, answers, of_requests, values
from models.serving import StudentScorer
from models.student import Student
from models.student_scores import catalogue_scores

PARITY: Final = 1e-3  # of a score's spread, between torch and the served float network
ROUNDS: Final = 60  # of timing, as many as decide anything


class ServedStudent:
    """A student's file, opened, with its vectors of a catalogue.

    Parameters
    ----------
    path
        Of the file.
    item_ids
        The catalogue, in the order of the histories' rows.
    texts
        Of the items, float32, shape (N, TEXT_DIM).
    """

    def __init__(self, path: Path, item_ids: list[str], texts: NDArray[np.float32]) -> None:
        self.scorer = StudentScorer(path)
        vectors = self.scorer.embed_items(item_ids, texts)
        none = np.zeros((1, self.scorer.dim), np.float32)
        self.table = np.vstack((none, vectors))  # (N + 1, M)
        self._texts = texts

    def users(self, asked: Requests) -> NDArray[np.float32]:
        """Return what users want, shape (B, M)."""
        return self.scorer.user_vectors(
            self.table, asked.rows, asked.types, asked.age_s, asked.contexts
        )

    def scores(self, asked: Requests) -> NDArray[np.float32]:
        """Return the scores of the whole catalogue, shape (B, N)."""
        scores: NDArray[np.float32] = self.users(asked) @ self.table[1:].T
        return scores

    def score(self, histories: Histories) -> Score:
        """Return the scores at events of histories."""
        return of_requests(self.scores, histories)

    def call(self, asked: Requests) -> Callable[[], object]:
        """Return a call that makes the users' vectors, to be timed."""
        return partial(self.users, asked)

    def parity(self, student: Student, asked: Requests) -> float:
        """Return how far scores are from torch's at most, in standard deviations of a score."""
        theirs = catalogue_scores(student, self._texts)(asked)
        return float(np.abs(self.scores(asked) - theirs).max() / theirs.std())


def ndcg(score: Score, asked: Exam) -> float:
    """Return NDCG@10; 0 where nothing is asked."""
    if not len(asked.events):
        return 0.0
    return float(values(answers(score, asked).rank)["ndcg@10"].mean())


def longest(asked: Requests, n: int) -> Requests:
    """Return the n requests with the longest histories."""
    order = np.argsort(-(asked.rows > 0).sum(axis=1), kind="stable")[:n]
    return Requests(
        asked.rows[order],
        asked.types[order],
        asked.age_s[order],
        asked.contexts[order],
        asked.targets[order],
    )


def milliseconds(calls: Sequence[Callable[[], object]], rounds: int = ROUNDS) -> list[float]:
    """Return each call's least CPU time of this thread, turn and turn about."""
    least = [float("inf")] * len(calls)
    for _ in range(rounds):
        for at, call in enumerate(calls):
            began = time.thread_time()
            call()
            least[at] = min(least[at], 1_000 * (time.thread_time() - began))
    return least
