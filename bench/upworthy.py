"""Headline tests of Upworthy replayed: which share of the best headline's clicks a bandit earns.

    python -m bench.upworthy [--tests N] [--impressions 2000] [--data PATH]

A test is one story in 2 to 14 packages, headline and picture, of which each reader saw one at
random. The replay takes each package's rate of clicks as its truth, and draws clicks from it: an
arm that is shown earns a click with that probability. Tests of weeks 201325 to 201402 are left
out, whose randomisation the data's authors doubt. What the policies are set by comes from the
tests before that gap; the tests after it are reported.

Ours    `models.logistic` and a policy of `models.policies`, new for each test, through the same
        calls as `decide` and `learn`; its belief is taken anew every 10 impressions. Arms of a
        story share headlines and pictures, so the columns are a constant, one for each headline,
        for each picture and for each arm, scaled so that a prior of 1 says what the earlier tests
        say: headlines of a story differ by some 30%, its pictures by 20%, the rest by 17%. "None"
        is not on offer.
Beside  uniform; Thompson sampling with a Beta(1, 1) for each arm, and with the Beta of the earlier
        tests' rates.
Shows   clicks as a share of what the best arm would earn, over all tests, twice: while learning,
        the sum of the first N impressions; and after them, the arm then held best. A mean of 30
        clicks a test tells little of differences of 30%, whoever looks at them: the share while
        learning is the cost of finding out.

Prints a table, and one JSON object on the last line.
"""

import argparse
import csv
import gzip
import json
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from models.logistic import LogisticLearner
from models.policies import make
from models.policy import sample
from models.posterior import merge

Floats = NDArray[np.float64]

DATA: Final = Path("../shared/data/upworthy/packages.csv.gz")
DOUBTED: Final = ("201325", "201402")  # weeks, both left out
_PUBLISH: Final = 10  # impressions
_LEVEL: Final = 4.0  # size of the log-odds that all of a story have in common
# Standard deviations of log rates in a story, from pairs of arms of the earlier tests: those that
# share headline and picture differ by 2 x 0.17^2, those that share a headline by 2 x 0.2^2 more.
_HEADLINE, _PICTURE, _REST = 0.3, 0.2, 0.17
_BLOCK: Final = 25  # tests that a process takes at a time


class Story(NamedTuple):
    """A test of one story: its arms' rates of clicks, headlines and pictures, K of each."""

    test_id: str
    week: str
    rates: Floats
    headlines: list[str]
    pictures: list[str]

    def rows(self) -> Floats:
        """Return the columns of each arm: a constant, its headline, its picture, itself, (K, D).

        >>> Story("a", "201301", np.zeros(2), ["x", "y"], ["p", "p"]).rows().tolist()
        [[4.0, 0.3, 0.0, 0.2, 0.17, 0.0], [4.0, 0.0, 0.3, 0.2, 0.0, 0.17]]
        """
        n_arms = len(self.rates)
        parts = [
            np.full((n_arms, 1), _LEVEL),
            _one_hot(self.headlines) * _HEADLINE,
            _one_hot(self.pictures) * _PICTURE,
            np.eye(n_arms) * _REST,
        ]
        return np.concatenate(parts, axis=1)


class Earned(NamedTuple):
    """Clicks of a contestant, expected, and of the best arm: sums over tests."""

    learning: float  # share of the best while learning
    after: float  # of the arm that is then held best


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


def luck(test: Story, impressions: int) -> Floats:
    """Return what a rate must be above to be clicked, shape (impressions,), one for all who play.

    >>> test = Story("a", "201301", np.array([0.1, 0.2]), ["x", "y"], ["p", "p"])
    >>> bool((luck(test, 5) == luck(test, 5)).all())
    True
    """
    return np.random.default_rng(list(test.test_id.encode())).random(impressions)


def ours(test: Story, impressions: int, policy_id: str, width: float) -> tuple[float, float]:
    """Return the clicks earned on average, and the rate of the arm that is then held best."""
    rows = test.rows()
    names = [f"x{i}" for i in range(rows.shape[1])]
    learner = LogisticLearner(names, spec_hash="bench", prior=1.0)
    thresholds, earned = luck(test, impressions), 0.0
    for start in range(0, impressions, _PUBLISH):
        posterior = merge([learner.statistics()], 1.0)
        policy = make(policy_id, posterior, width=width, floor=0.0)
        shares = policy.distribution(rows, b"%s-%d" % (test.test_id.encode(), start))[1][:-1]
        shares /= shares.sum()  # "none", worth less than any click, never has all
        for step in range(start, min(start + _PUBLISH, impressions)):
            arm = sample(shares, b"%s-%d" % (test.test_id.encode(), step))
            earned += test.rates[arm]
            learner.learn(rows[arm], float(thresholds[step] < test.rates[arm]))
    held_best = int((rows @ merge([learner.statistics()], 1.0).mean).argmax())
    return earned, float(test.rates[held_best])


def beta(test: Story, impressions: int, clicks: float, others: float) -> tuple[float, float]:
    """Return the same of Thompson sampling with Beta(clicks, others) for each arm."""
    rng = np.random.default_rng([1, *test.test_id.encode()])
    n_arms = len(test.rates)
    hits, misses = np.full(n_arms, clicks), np.full(n_arms, others)
    thresholds, earned = luck(test, impressions), 0.0
    for step in range(impressions):
        arm = int(rng.beta(hits, misses).argmax())
        earned += test.rates[arm]
        is_click = thresholds[step] < test.rates[arm]
        hits[arm] += is_click
        misses[arm] += not is_click
    return earned, float(test.rates[(hits / (hits + misses)).argmax()])


def uniform(test: Story, impressions: int) -> tuple[float, float]:
    """Return the same of any arm alike, which learns nothing."""
    rate = float(test.rates.mean())
    return rate * impressions, rate


def beta_of(tests: list[Story]) -> tuple[float, float]:
    """Return the Beta whose mean and variance are those of all arms' rates.

    >>> clicks, others = beta_of([Story("a", "201301", np.array([0.01, 0.02, 0.03]), [], [])])
    >>> round(clicks / (clicks + others), 3)
    0.02
    """
    rates = np.concatenate([test.rates for test in tests])
    mean, variance = float(rates.mean()), float(rates.var())
    size = mean * (1 - mean) / variance - 1
    return mean * size, (1 - mean) * size


class Task(NamedTuple):
    """Some tests, for one contestant."""

    name: str
    tests: list[Story]
    impressions: int
    prior: tuple[float, float]


# Widths: of 1, 1.5, 2 and 3, on 300 tests before the gap, the one that earned most while learning
# (0.874, 0.869, 0.860, 0.843), and the one that found most (0.919, 0.927, 0.929, 0.926).
OURS: Final = {
    "ours, to earn while learning": ("logistic_ucb", 1.0),
    "ours, to find the best": ("logistic_ucb", 2.0),
}


def play(task: Task) -> list[tuple[float, float]]:
    """Return of each test the clicks while learning, and the rate after."""
    if task.name in OURS:
        return [ours(test, task.impressions, *OURS[task.name]) for test in task.tests]
    match task.name:
        case "uniform":
            return [uniform(test, task.impressions) for test in task.tests]
        case "Thompson, Beta(1, 1)":
            return [beta(test, task.impressions, 1.0, 1.0) for test in task.tests]
    return [beta(test, task.impressions, *task.prior) for test in task.tests]


NAMES: Final = (*OURS, "Thompson, Beta(1, 1)", "Thompson, Beta of earlier tests", "uniform")


def play_all(
    tests: list[Story], impressions: int, prior: tuple[float, float], processes: int
) -> dict[str, Earned]:
    """Return what each contestant earned, as a share of the best arm's."""
    blocks = [tests[start : start + _BLOCK] for start in range(0, len(tests), _BLOCK)]
    tasks = [Task(name, block, impressions, prior) for name in NAMES for block in blocks]
    sums: dict[str, Floats] = defaultdict(lambda: np.zeros(2))
    with ProcessPoolExecutor(processes) as pool:
        for task, played in zip(tasks, pool.map(play, tasks), strict=True):
            sums[task.name] += np.sum(played, axis=0)
    best = sum(float(test.rates.max()) for test in tests)
    return {
        name: Earned(float(clicks) / impressions / best, float(after) / best)
        for name, (clicks, after) in sums.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--tests", type=int, help="the first so many; all")
    parser.add_argument("--impressions", type=int, default=2_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--earlier", action="store_true", help="report the tests before the gap")
    args = parser.parse_args()
    began = time.monotonic()
    every = read(args.data)
    earlier = [test for test in every if test.week < DOUBTED[0]]
    reported = earlier if args.earlier else [test for test in every if test.week > DOUBTED[1]]
    reported = reported[: args.tests]
    results = play_all(reported, args.impressions, beta_of(earlier), args.processes)
    table = Table(title=f"{len(reported)} tests, {args.impressions} impressions each")
    for column in ("clicks / best arm's", "while learning", "after"):
        table.add_column(column, justify="left" if "/" in column else "right", no_wrap=True)
    for name, earned in sorted(results.items(), key=lambda pair: -pair[1].learning):
        table.add_row(name, f"{earned.learning:.3f}", f"{earned.after:.3f}")
    Console(width=100).print(table)
    result = {
        "bench": "upworthy",
        "tests": len(reported),
        "impressions": args.impressions,
        "seconds": round(time.monotonic() - began),
        **{
            name: {"while_learning": round(earned.learning, 4), "after": round(earned.after, 4)}
            for name, earned in results.items()
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
