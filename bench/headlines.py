"""The headline tests of Upworthy: their arms, and what headlines let expect of them.

Reads   `upworthy/packages.csv.gz` of the shared data, a row for each arm.
Owns    which tests count, an arm's columns and how far arms differ, and what text adds to it.
"""

import csv
import gzip
from collections import defaultdict
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.encoders import load_encoder

Floats = NDArray[np.float64]

DOUBTED: Final = ("201325", "201402")  # weeks, both left out
_LEVEL: Final = 0.6  # standard deviation of what all of a story have in common, in log-odds
# Standard deviations of log rates in a story, from pairs of arms of the earlier tests: those that
# share headline and picture differ by 2 x 0.17^2, those that share a headline by 2 x 0.2^2 more.
_HEADLINE, _PICTURE, _REST = 0.3, 0.2, 0.17
_STRENGTHS: Final = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # precisions of a prior of the text's


class Story(NamedTuple):
    """A test of one story: its arms' rates, headlines, pictures, how often shown; K of each."""

    test_id: str
    week: str
    rates: Floats
    headlines: list[str]
    pictures: list[str]
    shown: Floats

    def rows(self) -> Floats:
        """Return the columns of each arm: a constant, its headline, its picture, itself, (K, D).

        >>> story = Story("a", "201301", np.zeros(2), ["x", "y"], ["p", "p"], np.ones(2))
        >>> story.rows().tolist()
        [[0.6, 0.3, 0.0, 0.2, 0.17, 0.0], [0.6, 0.0, 0.3, 0.2, 0.0, 0.17]]
        """
        n_arms = len(self.rates)
        parts = [
            np.full((n_arms, 1), _LEVEL),
            _one_hot(self.headlines) * _HEADLINE,
            _one_hot(self.pictures) * _PICTURE,
            np.eye(n_arms) * _REST,
        ]
        return np.concatenate(parts, axis=1)

    def expected(self, level: float, text: Floats) -> Floats:
        """Return the mean of the columns' weights before any click, (D,).

        `level` in log-odds; `text`, (K,), what headlines add to it.

        >>> story = Story("a", "201301", np.zeros(2), ["x", "y"], ["p", "p"], np.ones(2))
        >>> (story.rows() @ story.expected(-4.0, np.array([0.5, -0.5]))).round(9).tolist()
        [-3.5, -4.5]
        """
        names, first = np.unique(self.headlines, return_index=True)
        weights = np.zeros(self.rows().shape[1])
        weights[0] = level / _LEVEL
        weights[1 : 1 + len(names)] = text[first] / _HEADLINE
        return weights


def read(path: Path) -> list[Story]:
    """Return the tests that count, in order of week and id.

    A test counts that has two arms or more and a click.
    """
    arms: dict[str, list[dict[str, str]]] = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            arms[row["clickability_test_id"]].append(row)
    stories = [
        Story(
            test_id,
            min(row["test_week"] for row in rows),
            np.array([int(row["clicks"]) / int(row["impressions"]) for row in rows]),
            [row["headline"] for row in rows],
            [row["eyecatcher_id"] for row in rows],
            np.array([float(row["impressions"]) for row in rows]),
        )
        for test_id, rows in arms.items()
        if not any(DOUBTED[0] <= row["test_week"] <= DOUBTED[1] for row in rows)
    ]
    counted = [story for story in stories if len(story.rates) > 1 and story.rates.max() > 0]
    return sorted(counted, key=lambda story: (story.week, story.test_id))


def _one_hot(labels: list[str]) -> Floats:
    """Return a column for each label, shape (K, L)."""
    _, places = np.unique(labels, return_inverse=True)
    columns: Floats = np.eye(places.max() + 1)[places]
    return columns


def within(story: Story, columns: Floats) -> tuple[Floats, Floats, Floats]:
    """Return columns less their mean in the story, arms' weights, and the noise of log rates.

    A column's mean is the weighted one. A count of clicks c has a logarithm of variance 1 / c.
    """
    noise = 1.0 / (story.rates * story.shown + 1.0)
    weights = 1.0 / (_HEADLINE**2 + _PICTURE**2 + noise)
    return columns - np.average(columns, axis=0, weights=weights), weights, noise


def log_rates(story: Story) -> Floats:
    """Return the logarithms of the arms' rates, with half a click more than there were, (K,)."""
    rates: Floats = np.log((story.rates * story.shown + 0.5) / story.shown)
    return rates


def scores(stories: list[Story], vectors: dict[str, Floats]) -> list[Floats]:
    """Return what headlines let expect of arms' log rates, less their story's mean, (K,) each.

    A ridge regression of the stories of all weeks before the story's, anew each week. Its strength
    is the one that has erred least in those weeks. In the first week nothing is expected.

    Parameters
    ----------
    stories
        In order of weeks.
    vectors
        Of each headline, shape (D,).
    """
    dim = len(next(iter(vectors.values())))
    precision, moment = np.zeros((dim, dim)), np.zeros(dim)
    errors = np.zeros(len(_STRENGTHS))
    expected: list[Floats] = []
    for _, group in groupby(stories, key=lambda story: story.week):
        fits = np.array(
            [np.linalg.solve(precision + strength * np.eye(dim), moment) for strength in _STRENGTHS]
        )
        # At the start all have erred alike: the strongest, which expects least.
        chosen = len(_STRENGTHS) - 1 - int(errors[::-1].argmin())
        for story in list(group):
            columns = np.stack([vectors[headline] for headline in story.headlines])
            x, weights, _ = within(story, columns)
            y, _, _ = within(story, log_rates(story))
            told = columns @ fits[chosen]
            expected.append(told - told.mean())  # the weights are the story's own clicks
            errors += weights @ (y[:, None] - x @ fits.T) ** 2
            precision += (x * weights[:, None]).T @ x
            moment += (x * weights[:, None]).T @ y
    return expected


def explained(stories: list[Story], texts: list[Floats]) -> float:
    """Return the share of the variance of log rates within stories that scores explain.

    The noise of the clicks that were counted is taken off that variance.
    """
    total = missed = noisy = 0.0
    for story, text in zip(stories, texts, strict=True):
        y, weights, noise = within(story, log_rates(story))
        told, _, _ = within(story, text)
        total += float(weights @ y**2)
        missed += float(weights @ (y - told) ** 2)
        noisy += float(weights @ noise - weights**2 @ noise / weights.sum())
    return (total - missed) / (total - noisy)


def texts_of(stories: list[Story], encoder: str) -> list[Floats]:
    """Return `scores` by the vectors of an encoder; EncoderError if it is not installed."""
    headlines = sorted({headline for story in stories for headline in story.headlines})
    vectors = load_encoder(encoder).encode(headlines).astype(np.float64)
    return scores(stories, dict(zip(headlines, vectors, strict=True)))
