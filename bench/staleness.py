"""Staleness: what it costs in regret that `decide` has the learners' rows later.

    python -m bench.staleness [--seconds 600] [--seeds 5] [--intervals 0.1 1 10 60]

After the table of sync intervals in Liu et al., "Monolith: Real Time Recommendation System With
Collisionless Embedding Table", 2022, section 4: there click AUC by interval, here what a bandit
loses, in a world of known truth.

World   2,000 events a second, of which 5% are triggers: 100 decisions a second among 20 arms of 16
        features, opened by a logistic model. How a push is answered is known 5 s later on average,
        exponentially. `steady`: one model for all the time, learned from nothing. `moving`: the
        model turns towards another one every 45 s, and learners forget with a half-life of 30 s.
Runs    `models.learner.RewardLearner` in 4 shards, as many as `learn` has partitions by default;
        `models.posterior.merge` and SquareCB as the policy table makes them, every interval. In
        pairs: a seed is the same world and the same answers for each interval.
Leaves out  Kafka: `python -m bench.path` has how long a reward takes to the policy in use. Wall
        time: the clock is that of the events.
Writes  bench/staleness.png; prints a table and one JSON object on the last line. Regret is what
        the best arm's rate is above the chosen one's, per 1,000 decisions; policy age is the event
        time from the newest reward in the policy to the decision, the metric
        `pushflow_policy_age_seconds`.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from models.learner import RewardLearner
from models.policies import make
from models.policy import sample
from models.posterior import merge

matplotlib.use("Agg")  # before pyplot: there may be no display
from matplotlib import pyplot as plt

EVENTS_A_SECOND: Final = 2_000
TRIGGER_SHARE: Final = 0.05
STEP_MS: Final = round(1_000 / (EVENTS_A_SECOND * TRIGGER_SHARE))  # between two decisions
ARMS: Final = 20
NAMES: Final = tuple(f"f{column}" for column in range(16))
SHARDS: Final = 4
ANSWER_MS: Final = 5_000  # mean time to what a push earned
TURN_MS: Final = 45_000  # of the moving world; apart from every interval, or they would lock
HALF_LIFE_MS: Final = 30_000
GAMMA: Final = 100.0  # as `PUSHFLOW_RANKING__GAMMA`, for opens that are far apart
START_MS: Final = 1_700_000_000_000
_PICTURE: Final = Path(__file__).with_name("staleness.png")

Floats = NDArray[np.float64]


class Outcome(NamedTuple):
    """What one run lost, and how old its policy was."""

    regret: Floats  # (decisions,)
    age_ms: float  # mean over decisions


class World(NamedTuple):
    """What would be opened: the same for every interval."""

    arms: Floats  # (decisions, K, D)
    rates: Floats  # (decisions, K)
    draws: Floats  # (decisions,), uniform: below its rate the chosen arm is opened
    answers_ms: Floats  # (decisions,), from a decision to what it earned

    @classmethod
    def of(cls, n: int, seed: int, *, is_moving: bool) -> "World":
        """Draw a world."""
        rng = np.random.default_rng(seed)
        arms = rng.normal(size=(n, ARMS, len(NAMES)))
        arms[:, :, 0] = 1.0
        weights = np.repeat(rng.normal(size=(1, len(NAMES))), n, axis=0)
        if is_moving:
            # From corner to corner, each a turn apart.
            corners = rng.normal(size=(n * STEP_MS // TURN_MS + 2, len(NAMES)))
            turn, share = np.divmod(np.arange(n) * STEP_MS / TURN_MS, 1.0)
            at, share = turn.astype(int), share[:, None]
            weights = (1 - share) * corners[at] + share * corners[at + 1]
        logits = np.einsum("nkd,nd->nk", arms, weights) / 2 - 1.5
        return cls(
            arms, 1 / (1 + np.exp(-logits)), rng.random(n), rng.exponential(ANSWER_MS, size=n)
        )


def run(world: World, interval_ms: int, half_life_ms: int) -> Outcome:
    """Decide through a world with a policy that is merged every `interval_ms`."""
    shards = [
        RewardLearner(NAMES, spec_hash="-" * 16, half_life_ms=half_life_ms) for _ in range(SHARDS)
    ]
    regret = np.empty(len(world.draws))
    waiting: list[tuple[float, int, int]] = []  # when known, decision, arm
    merged_ms, newest_ms, ages = START_MS, float(START_MS), 0.0
    known_ms = float(START_MS)  # of the newest reward in the policy
    policy = make("squarecb", merge([one.statistics() for one in shards], 1.0), gamma=GAMMA)
    for n, x in enumerate(world.arms):
        now_ms = START_MS + n * STEP_MS
        while waiting and waiting[0][0] <= now_ms:
            newest_ms, decided, arm = heappop(waiting)
            reward = 1.0 if world.draws[decided] < world.rates[decided, arm] else -0.05
            decided_ms = START_MS + decided * STEP_MS
            shards[decided % SHARDS].learn(world.arms[decided, arm], reward, decided_ms)
        if now_ms - merged_ms >= interval_ms:
            posterior = merge([one.statistics() for one in shards], 1.0)
            policy = make("squarecb", posterior, gamma=GAMMA)
            merged_ms, known_ms = now_ms, newest_ms
        shares = policy.distribution(x)[1][:-1]  # a push is always sent: "none" teaches nothing
        arm = sample(shares / shares.sum(), n.to_bytes(8))
        heappush(waiting, (now_ms + world.answers_ms[n], n, arm))
        regret[n] = world.rates[n].max() - world.rates[n, arm]
        ages += now_ms - known_ms
    return Outcome(regret, ages / len(regret))


def runs_of(job: tuple[int, int, bool, Sequence[float]]) -> list[Outcome]:
    """Run one seed's world with every interval."""
    seed, n, is_moving, intervals = job
    world = World.of(n, seed, is_moving=is_moving)
    half_life_ms = HALF_LIFE_MS if is_moving else 0
    return [run(world, round(1_000 * seconds), half_life_ms) for seconds in intervals]


def interval_of(values: Floats) -> tuple[float, float]:
    """Return the mean over seeds, and half of its 95% interval (Student's t)."""
    if len(values) < 2:
        return float(values.mean()), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def summary(found: list[list[Outcome]], intervals: Sequence[float]) -> list[dict[str, float]]:
    """Return one row an interval: regret per 1,000 decisions, and beside the shortest's."""
    rows = []
    losses = np.array([[1_000 * one.regret.mean() for one in seed] for seed in found])  # (S, I)
    for place, seconds in enumerate(intervals):
        mean, half = interval_of(losses[:, place])
        more, more_half = interval_of(losses[:, place] - losses[:, 0])
        rows.append(
            {
                "interval_s": seconds,
                "policy_age_s": round(float(np.mean([s[place].age_ms for s in found])) / 1_000, 2),
                "regret": round(mean, 2),
                "regret_half": round(half, 2),
                "more": round(more, 2),
                "more_half": round(more_half, 2),
                "more_share": round(more / float(losses[:, 0].mean()), 4),
            }
        )
    return rows


def plot(worlds: dict[str, list[list[Outcome]]], intervals: Sequence[float], path: Path) -> None:
    """Draw regret over time, by interval."""
    figure, axes = plt.subplots(1, len(worlds), figsize=(11, 4), sharey=True)
    for axis, (name, found) in zip(axes, worlds.items(), strict=True):
        for place, seconds in enumerate(intervals):
            regret = np.mean([seed[place].regret for seed in found], axis=0)
            width = 5_000 // STEP_MS  # 5 s
            whole = len(regret) // width * width
            points = regret[:whole].reshape(-1, width).mean(axis=1)
            axis.plot(5 * np.arange(len(points)), 1_000 * points, label=f"{seconds:g} s", lw=1)
        axis.set_title(f"{name} world")
        axis.set_xlabel("event time, s")
    axes[0].set_ylabel("regret per 1,000 decisions")
    axes[0].legend(title="sync interval")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=600, help="event time of a run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--intervals", type=float, nargs="+", default=[0.1, 1.0, 10.0, 60.0])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--picture", type=Path, default=_PICTURE)
    options = parser.parse_args()
    n = round(options.seconds * 1_000 / STEP_MS)
    result: dict[str, Any] = {"bench": "staleness", "seconds": options.seconds}
    worlds: dict[str, list[list[Outcome]]] = {}
    table = Table("world", "sync interval", "policy age", "regret/1,000", "more than the shortest")
    with ProcessPoolExecutor(options.processes) as pool:
        for name in ("steady", "moving"):
            jobs = [(seed, n, name == "moving", options.intervals) for seed in range(options.seeds)]
            worlds[name] = list(pool.map(runs_of, jobs))
            result[name] = summary(worlds[name], options.intervals)
            for row in result[name]:
                table.add_row(
                    name,
                    f"{row['interval_s']:g} s",
                    f"{row['policy_age_s']:.1f} s",
                    f"{row['regret']:.1f} ± {row['regret_half']:.1f}",
                    f"{row['more']:+.1f} ± {row['more_half']:.1f} ({row['more_share']:+.0%})",
                )
    plot(worlds, options.intervals, options.picture)
    Console().print(table)
    print(json.dumps(result | {"seeds": options.seeds, "decisions": n, "arms": ARMS}))


if __name__ == "__main__":
    main()
