"""How often intervals of off-policy evaluation hold the truth, where the truth is known.

    python -m bench.ope [--runs 500]

Simulates logs in four worlds whose policies' values are known exactly, for contexts come from a
        pool of 400. Clicks are logistic in products of features that the reward model lacks.
Judges  in each world the share of runs in which the 95% interval holds the true value, and the
        root mean squared error of each estimator.
Prints  a table, and one JSON object on the last line: least coverage of `snips` and `dr` over the
        worlds, which should be 0.93 at least in 500 runs.

    near    the policy resembles the one that logged
    far     it does not: a tenth of the decisions count
    rare    near, with 2% of decisions answered
    users   near, with 5 decisions a user, who clicks always or never more than others
"""

import argparse
import json
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from models.ope_estimators import evidence, form
from models.ope_interval import Resampling, intervals
from models.ope_log import BanditLog
from models.ope_reward import cross_fitted
from models.ope_support import support

Floats = NDArray[np.float64]

N: Final = 2_000  # decisions a log
_POOL: Final = 400  # contexts
_ARMS: Final = (4, 9)  # least and most of a context, and "send nothing"
_D: Final = 4  # of a context, and of an arm
_FLOOR: Final = 0.02


class Spec(NamedTuple):
    """What a world is like."""

    bias: float  # log-odds of a click
    sharpness: float  # of the policy judged: inverse temperature
    agreement: float  # of the scores that it goes by with those of the logging policy, 0 to 1
    per_user: int = 1
    user_effect: float = 0.0  # standard deviation of a user's own log-odds


WORLDS: Final = {
    "near": Spec(bias=-1.0, sharpness=1.0, agreement=0.7),
    "far": Spec(bias=-1.0, sharpness=3.0, agreement=0.0),
    "rare": Spec(bias=-4.2, sharpness=1.0, agreement=0.7),
    "users": Spec(bias=-1.0, sharpness=1.0, agreement=0.7, per_user=5, user_effect=2.0),
}
_USER_QUANTILES: Final = np.array([-1.5, -0.5, 0.5, 1.5])  # a user's own log-odds, in deviations


class World:
    """A pool of contexts with their arms, two policies, and the value of the second."""

    def __init__(self, spec: Spec, seed: int = 7) -> None:
        rng = np.random.default_rng(seed)
        self._spec = spec
        lengths = rng.integers(*_ARMS, _POOL)
        contexts = rng.normal(size=(_POOL, _D))
        self._rows, self._logging, self._target, self._rates = [], [], [], []
        taste = rng.normal(size=(_D, _D))
        for context, length in zip(contexts, lengths, strict=True):
            arms = rng.normal(size=(length, _D))
            worth = np.tanh(arms @ taste @ context / 2) + arms[:, 0] / 2
            other = rng.normal(size=length)
            seen = worth + rng.normal(size=length)
            scores = spec.agreement * seen + (1 - spec.agreement) * other
            self._rows.append(_design(context, arms))
            self._logging.append(_policy(np.append(seen, 0.0), 1.0))
            self._target.append(_policy(np.append(scores, 0.0), spec.sharpness))
            own = spec.bias + worth[None] + spec.user_effect * _USER_QUANTILES[:, None]
            rates = np.zeros((len(_USER_QUANTILES), length + 1))  # "send nothing" earns 0
            rates[:, :-1] = 1 / (1 + np.exp(-own))
            self._rates.append(rates)
        self.value = float(
            np.mean([t @ r.mean(axis=0) for t, r in zip(self._target, self._rates, strict=True)])
        )

    def log(self, n: int, seed: int) -> tuple[BanditLog, Floats]:
        """Return a log of n decisions, and the second policy's probabilities of its arms."""
        rng = np.random.default_rng(seed)
        groups = np.arange(n) // self._spec.per_user
        at = rng.integers(0, _POOL, n)
        kinds = rng.integers(0, len(_USER_QUANTILES), n)[groups]
        offsets = np.concatenate([[0], np.cumsum([len(self._logging[c]) for c in at])])
        probabilities = np.concatenate([self._logging[c] for c in at])
        # Inverse of each decision's running sum, all at once.
        ends = probabilities.cumsum()
        starts = np.append(0.0, ends)[offsets[:-1]]
        chosen = np.searchsorted(ends, starts + rng.random(n) * (1 - 1e-9), side="right")
        places = chosen - offsets[:-1]
        rates = [self._rates[c][k, p] for c, k, p in zip(at, kinds, places, strict=True)]
        log = BanditLog(
            offsets=offsets,
            probabilities=probabilities,
            chosen=chosen,
            rewards=(rng.random(n) < rates).astype(np.float64),
            groups=groups,
            reward_range=(0.0, 1.0),
            rows=lambda decision: self._rows[at[decision]],
            segments=[""] * n,
        )
        return log, np.concatenate([self._target[c] for c in at])


def _design(context: Floats, arms: Floats) -> Floats:
    shared = np.tile(np.append(1.0, context), (len(arms), 1))
    return np.vstack([np.hstack([shared, arms]), np.zeros((1, 1 + 2 * _D))])


def _policy(scores: Floats, sharpness: float) -> Floats:
    shares = np.exp(sharpness * (scores - scores.max()))
    return _FLOOR + (1 - len(scores) * _FLOOR) * shares / shares.sum()


class Tally(NamedTuple):
    """What came of the runs in a world, by estimator."""

    covered: dict[str, float]  # share of runs
    error: dict[str, float]  # root mean squared
    width: dict[str, float]  # of intervals, mean
    ess: float  # mean


def run(
    world: World, runs: int, *, n: int = N, draws: int = 1_000, first_seed: int = 1_000
) -> Tally:
    """Estimate from so many logs, each with seeds of its own."""
    covered: dict[str, list[bool]] = {}
    errors: dict[str, list[float]] = {}
    widths: dict[str, list[float]] = {}
    ess = []
    for seed in range(first_seed, first_seed + runs):
        log, target = world.log(n, seed)
        of = evidence(log, target, cross_fitted(log, seed=seed))
        formed = form(of)
        how = Resampling(draws=draws, seed=seed)
        ratios = [own.ratios for own in formed.values()]
        for name, found in zip(formed, intervals(ratios, log.groups, how), strict=True):
            covered.setdefault(name, []).append(found.low <= world.value <= found.high)
            errors.setdefault(name, []).append((found.value - world.value) ** 2)
            widths.setdefault(name, []).append(found.high - found.low)
        ess.append(support(log, target).ess)
    return Tally(
        {name: _mean(values) for name, values in covered.items()},
        {name: _mean(values) ** 0.5 for name, values in errors.items()},
        {name: _mean(values) for name, values in widths.items()},
        _mean(ess),
    )


def _mean(values: list[float] | list[bool]) -> float:
    return float(np.mean(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=500)
    runs = parser.parse_args().runs
    table = Table("world", "value", "ESS", "estimator", "covered", "RMSE", "mean width")
    found = {}
    for name, spec in WORLDS.items():
        world = World(spec)
        tally = found[name] = run(world, runs)
        head = [name, f"{world.value:.4f}", f"{tally.ess:.0f} of {N}"]
        for estimator, share in tally.covered.items():
            numbers = (tally.error[estimator], tally.width[estimator])
            table.add_row(*head, estimator, f"{share:.1%}", *(f"{x:.4f}" for x in numbers))
            head = ["", "", ""]
    Console().print(table)
    least = {
        estimator: min(tally.covered[estimator] for tally in found.values())
        for estimator in ("snips", "dr")
    }
    worlds = {name: tally._asdict() for name, tally in found.items()}
    print(json.dumps({"runs": runs, "least_covered": least, "worlds": worlds}))


if __name__ == "__main__":
    main()
