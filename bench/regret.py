"""Regret: ours, Vowpal Wabbit's, River's and MABWiser's bandits in four worlds of known truth.

    python -m bench.regret [--steps 50000] [--seeds 10] [--worlds logistic ...]
    python -m bench.regret --tune [--budget 20]

Worlds  `bench.regret_worlds`; what each contestant sees: `bench.regret_contestants`. A step is one
        choice among 20 arms and its reward; regret is what the best arm earns on average more than
        the chosen one, summed. Contestants are paired: seed by seed they meet the same world.
Shows   mean and 95% interval (Student's t) over the seeds, and ours beside the better of VW's two
        tuned algorithms, in pairs. River's LinUCB and MABWiser's take some 30 s a run: `--others 2`
        gives them, and others that the verdict is not about, fewer seeds.
Tuning  `--tune` tries the same number of settings for ours, VW squarecb and VW regcb, on seeds that
        are not reported, and writes what was best to bench/regret_tuned.json, which stands in the
        repository: VW's for each world apart, ours one for all. The other policies of ours have
        the forgetting of ours and their defaults.
Writes  bench/regret.png; prints a table and one JSON object on the last line.
"""

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from bench import regret_tuning as tuning
from bench.regret_contestants import FAMILIES
from bench.regret_worlds import WORLDS

matplotlib.use("Agg")  # before pyplot: there may be no display
from matplotlib import pyplot as plt

Curve = NDArray[np.float64]

_POINTS: Final = 200  # of a curve
_PRODUCT_FLOOR: Final = 0.002
_OTHERS: Final = tuple("greedy epsilon_greedy squarecb linucb thompson logistic_thompson".split())
_PICTURE: Final = Path(__file__).with_name("regret.png")
_DRAWN: Final = {
    "ours": "C3",
    "greedy": "C7",
    "squarecb": "C1",
    "VW squarecb, as it comes": "C0",
    "VW squarecb, tuned": "C9",
    "VW regcb, tuned": "C2",
    "River LinUCBDisjoint": "C4",
    "MABWiser LinUCB": "C5",
    "uniform": "k",
}

console = Console(stderr=True, highlight=False, soft_wrap=True)


class Run(NamedTuple):
    """A contestant in a world."""

    name: str
    family: str
    settings: Mapping[str, Any]
    world: str
    seed: int
    n_steps: int


class Ran(NamedTuple):
    """What came of it: regret so far at `_POINTS` steps, and the time of a step, us, all told."""

    run: Run
    curve: Curve
    step_us: float


class Contestant(NamedTuple):
    """Who runs, and its settings by world."""

    name: str
    family: str
    settings: Mapping[str, Mapping[str, Any]]


# Whom the verdict is about, and what everybody knows.
_JUDGED: Final = frozenset(
    (
        "ours",
        "VW squarecb, as it comes",
        "VW squarecb, tuned",
        "VW regcb, as it comes",
        "VW regcb, tuned",
        "squarecb",
        "greedy",
        "epsilon_greedy",
    )
)


@lru_cache(maxsize=4)
def best_means(world: str, seed: int, n_steps: int) -> Curve:
    """Return `World.best_means`."""
    return WORLDS[world](seed, n_steps).best_means()


def play(run: Run) -> Ran:
    """Let a contestant meet a world."""
    world = WORLDS[run.world](run.seed, run.n_steps)
    best = best_means(run.world, run.seed, run.n_steps)
    contestant = FAMILIES[run.family](run.settings, run.seed)
    earned = np.empty(run.n_steps)
    began = time.process_time()
    for step in range(run.n_steps):
        arm = contestant.choose(step, world.moment(step))
        earned[step] = world.means(step)[arm]
        contestant.learn(world.play(step, arm))
    step_us = (time.process_time() - began) / run.n_steps * 1e6
    ends = np.linspace(0, run.n_steps, _POINTS + 1).astype(np.int64)[1:] - 1
    return Ran(run, (best - earned).cumsum()[ends], step_us)


def contestants() -> Iterator[Contestant]:
    """Yield all that are compared."""
    tuned = tuning.read()
    ours = next(iter(tuned["ours"].values()))
    shared = {key: ours[key] for key in ("half_life", "prior", "drift_keeps")}

    def same(settings: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        return dict.fromkeys(WORLDS, settings)

    yield Contestant("ours", "ours", tuned["ours"])
    yield Contestant(
        "ours, with the product's floor", "ours", same(ours | {"floor": _PRODUCT_FLOOR})
    )
    # Of two draws for the product's 256 the chosen arm has the same distribution; only the
    # propensity that would be logged is coarser.
    others = {"floor": 0.0, "draws": 2, **shared}
    for policy in _OTHERS:
        yield Contestant(policy, "ours", same({"policy": policy, **others}))
    for name in ("squarecb", "regcb"):
        # Costs within [0, 1], as VW takes them to be; squarecb learns better from -reward.
        cost = "-r" if name == "squarecb" else "1-r"
        yield Contestant(
            f"VW {name}, as it comes", "vw", same({"options": f"--{name}", "cost": cost})
        )
        yield Contestant(f"VW {name}, tuned", "vw", tuned[f"VW {name}"])
    yield Contestant("River LinUCBDisjoint", "river linucb", same({"alpha": 1.0}))
    clicks = {world: {"is_click": world != "sparse"} for world in WORLDS}
    yield Contestant("River ThompsonSampling", "river thompson", clicks)
    yield Contestant("River EpsilonGreedy", "river epsilon", same({"epsilon": 0.1}))
    yield Contestant("MABWiser LinUCB", "mabwiser linucb", same({"alpha": 1.0}))
    yield Contestant("MABWiser LinTS", "mabwiser lints", same({"alpha": 1.0}))
    yield Contestant("uniform", "uniform", same({}))


def play_all(runs: list[Run], processes: int) -> Iterator[Ran]:
    """Yield what came of all runs, in their order, telling of progress."""
    began = time.monotonic()
    with ProcessPoolExecutor(processes) as pool:
        for n_done, ran in enumerate(pool.map(play, runs), 1):
            if n_done % 20 == 0 or n_done == len(runs):
                console.print(f"{n_done} of {len(runs)} runs, {time.monotonic() - began:.0f} s")
            yield ran


def mean_and_half_width(values: Iterable[float]) -> tuple[float, float]:
    """Return the mean and half its 95% interval, by Student's t; infinite for one value.

    >>> [round(x, 3) for x in mean_and_half_width([1.0, 2.0, 3.0])]
    [2.0, 2.484]
    """
    each = np.array(list(values))
    if len(each) < 2:  # there is no spread of one
        return float(each.mean()), math.inf
    spread = float(each.std(ddof=1)) / math.sqrt(len(each))
    return float(each.mean()), spread * float(stats.t.ppf(0.975, len(each) - 1))


Results = dict[str, dict[str, list[Ran]]]  # by world and contestant, seeds in their order


def verdict(by_name: Mapping[str, list[Ran]]) -> dict[str, Any]:
    """Return ours beside VW's in one world."""
    final = {name: [float(ran.curve[-1]) for ran in rans] for name, rans in by_name.items()}
    tuned = [name for name in final if name.startswith("VW") and name.endswith("tuned")]
    best = min(tuned, key=lambda name: float(np.mean(final[name])))
    ours, width = mean_and_half_width(final["ours"])
    gain = mean_and_half_width(np.subtract(final["ours"], final[best]).tolist())
    default = float(np.mean(final["VW squarecb, as it comes"]))
    return {
        "ours": round(ours, 1),
        "ours_95": _rounded(width),
        "best_tuned_vw": best,
        "vs_best_tuned_vw": round(ours / float(np.mean(final[best])), 3),
        "minus_best_tuned_vw": [_rounded(x) for x in gain],  # in pairs: mean, half its interval
        "vs_vw_default": round(ours / default, 3),
        "vs_greedy": round(ours / float(np.mean(final["greedy"])), 3),
    }


def _rounded(value: float) -> float | None:
    return round(value, 1) if math.isfinite(value) else None  # JSON has no infinity


def show(results: Results) -> None:
    for world, by_name in results.items():
        table = Table(title=f"{world}: regret")
        for column in ("", "mean", "95%", "ours / it", "seeds", "us a step"):
            table.add_column(column, justify="left" if not column else "right", no_wrap=True)
        ours = float(np.mean([ran.curve[-1] for ran in by_name["ours"]]))
        for name, rans in sorted(by_name.items(), key=lambda pair: _mean_regret(pair[1])):
            mean, width = mean_and_half_width(float(ran.curve[-1]) for ran in rans)
            cost = float(np.median([ran.step_us for ran in rans]))
            cells = (f"{mean:.0f}", f"± {width:.0f}", f"{ours / mean:.2f}", str(len(rans)))
            table.add_row(name, *cells, f"{cost:.0f}")
        Console(width=100).print(table)


def _mean_regret(rans: list[Ran]) -> float:
    return float(np.mean([ran.curve[-1] for ran in rans]))


def draw(results: Results, n_steps: int) -> None:
    figure, panels = plt.subplots(1, len(results), figsize=(4.2 * len(results), 3.6), squeeze=False)
    steps = np.linspace(0, n_steps, _POINTS + 1)[1:]
    for panel, (world, by_name) in zip(panels[0], results.items(), strict=True):
        for name, colour in _DRAWN.items():
            curve = np.mean([ran.curve for ran in by_name[name]], axis=0)
            panel.plot(steps, curve, color=colour, label=name, lw=2 if name == "ours" else 1)
        panel.set(title=world, xlabel="step", yscale="log", ylim=(5, None))
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("regret")
    panels[0][-1].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(_PICTURE, dpi=90)


def compare(args: argparse.Namespace) -> None:
    everyone = list(contestants())
    n_seeds = args.seeds or 10
    runs = [
        Run(who.name, who.family, who.settings[world], world, seed, args.steps)
        for world in args.worlds
        for seed in range(n_seeds)
        for who in everyone
        if seed < args.others or who.name in _JUDGED
    ]
    results: Results = {world: defaultdict(list) for world in args.worlds}
    for ran in play_all(runs, args.processes):
        results[ran.run.world][ran.run.name].append(ran)
    show(results)
    draw(results, args.steps)
    worlds = {world: verdict(by_name) for world, by_name in results.items()}
    result = {
        "bench": "regret",
        "steps": args.steps,
        "seeds": n_seeds,
        "ours_settings": everyone[0].settings[args.worlds[0]],
        "worlds": worlds,
        "worst_vs_best_tuned_vw": max(each["vs_best_tuned_vw"] for each in worlds.values()),
        "vs_vw_default": worlds.get("logistic", {}).get("vs_vw_default"),
    }
    print(json.dumps(result))


def tune(args: argparse.Namespace) -> None:
    """Try settings and keep the best."""
    n_seeds = args.seeds or 2
    runs = [
        Run(name, "ours" if name == "ours" else "vw", settings, world, seed, args.steps)
        for settings_of_all in zip(
            *(tuning.drawn(n, args.budget) for n in tuning.GRIDS), strict=True
        )
        for world in WORLDS
        for seed in range(tuning.FIRST_SEED, tuning.FIRST_SEED + n_seeds)
        for name, settings in zip(tuning.GRIDS, settings_of_all, strict=True)
    ]
    tried: dict[str, dict[str, dict[str, list[float]]]] = {
        name: {world: defaultdict(list) for world in WORLDS} for name in tuning.GRIDS
    }
    for run, curve, _ in play_all(runs, args.processes):
        tried[run.name][run.world][json.dumps(run.settings)].append(float(curve[-1]))
        console.print(f"{run.world} {run.name} {run.seed} {run.settings}: {curve[-1]:.0f}")
    means = {
        name: {
            world: [(json.loads(key), float(np.mean(each))) for key, each in by_setting.items()]
            for world, by_setting in by_world.items()
        }
        for name, by_world in tried.items()
    }
    found = {
        "made_by": f"python -m bench.regret --tune --budget {args.budget} --seeds {n_seeds}"
        f" --steps {args.steps}",
        "settings": tuning.kept(means),
        "tried": means,
    }
    tuning.TUNED.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({"bench": "regret", "tuned": found["settings"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, help="10; to tune, 2")
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument(
        "--others", type=int, default=10, help="seeds of those that the verdict is not about"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--budget", type=int, default=tuning.BUDGET)
    args = parser.parse_args()
    (tune if args.tune else compare)(args)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
