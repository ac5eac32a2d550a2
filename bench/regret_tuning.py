"""Settings for `bench.regret`: the grids, what is drawn from them, and which one is kept.

Owns    the budget: every tuned contestant may try as many settings, on the same seeds.

Vowpal Wabbit's squarecb and regcb are each tuned for each world. Ours has one setting for all
worlds, as a product's default has: the one with the least product of its worlds' regrets. The
grids leave out for VW what did badly in a wider look: sgd and coin updates, gamma below 300.
"""

import json
import math
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.regret_worlds import WORLDS

Settings = dict[str, Any]

BUDGET: Final = 16  # settings
FIRST_SEED: Final = 100  # of tuning; those of reports count from 0
TUNED: Final = Path(__file__).with_name("regret_tuned.json")

_RANGE: Final = "--cb_min_cost -1 --cb_max_cost 0"  # of costs that are -reward
_UPDATES: Final = [
    *(f"-l {rate} --power_t {power}" for rate in (0.5, 1, 2, 4) for power in (0.25, 0.5)),
    *(
        f"-l {rate} --power_t {power} --adaptive --invariant"
        for rate in (0.01, 0.02, 0.05, 0.1)
        for power in (0, 0.25)
    ),
]
_COSTS: Final = [(_RANGE, "-r"), ("", "1-r")]
_SQUARECB: Final = [
    f"--squarecb --gamma_scale {scale} --gamma_exponent {exponent}"
    for scale in (300, 1000, 3000, 10000)
    for exponent in (0.25, 0.5)
]
_REGCB: Final = [
    f"--{name} --mellowness {mellowness}"
    for name in ("regcb", "regcbopt")
    for mellowness in (0.0001, 0.001, 0.01, 0.1)
]


def _vw(explorations: list[str]) -> list[Settings]:
    return [
        {"options": " ".join([exploration, update, *filter(None, [limits])]), "cost": cost}
        for exploration, update, (limits, cost) in product(explorations, _UPDATES, _COSTS)
    ]


def _ours() -> list[Settings]:
    """Return every setting of ours: policies and what each is set by, forgetting, alarms."""
    policies: list[Settings] = [
        *({"policy": "squarecb", "gamma": gamma} for gamma in (2_000.0, 20_000.0)),
        *(
            {"policy": name, "width": width}
            for name in ("linucb", "logistic_ucb", "logistic_thompson")
            for width in (0.3, 1.0)
        ),
    ]
    return [
        {**policy, "floor": 0.0, "prior": 1.0, "half_life": half_life, "drift_keeps": keeps}
        for policy, half_life, keeps in product(policies, (0, 3_000, 10_000), (100, 0))
    ]


GRIDS: Final[Mapping[str, list[Settings]]] = {
    "ours": _ours(),
    "VW squarecb": _vw(_SQUARECB),
    "VW regcb": _vw(_REGCB),
}


def drawn(name: str, budget: int) -> Iterator[Settings]:
    """Yield as many settings of a grid as the budget has, in any order, none twice.

    >>> len(list(drawn("ours", 5))), list(drawn("ours", 5)) == list(drawn("ours", 5))
    (5, True)
    """
    grid = GRIDS[name]
    order = np.random.default_rng([7, list(GRIDS).index(name)]).permutation(len(grid))
    yield from (grid[place] for place in order[:budget].tolist())


def best_of_each(regrets: Mapping[str, list[tuple[Settings, float]]]) -> dict[str, Settings]:
    """Return each world's setting of least regret, from what each earned there."""
    return {world: min(tried, key=lambda pair: pair[1])[0] for world, tried in regrets.items()}


def best_of_all(regrets: Mapping[str, list[tuple[Settings, float]]]) -> Settings:
    """Return the setting whose regrets have the least product over the worlds.

    Settings stand in the same order in every world.

    >>> one, two = {"x": 1}, {"x": 2}
    >>> best_of_all({"a": [(one, 10.0), (two, 3.0)], "b": [(one, 1.0), (two, 2.0)]})
    {'x': 2}
    """
    worlds = list(regrets.values())
    logs = [
        sum(math.log(max(tried[place][1], 1.0)) for tried in worlds)
        for place in range(len(worlds[0]))
    ]
    return worlds[0][int(np.argmin(logs))][0]


def read() -> dict[str, Any]:
    """Return what was tuned: by contestant and world, the setting."""
    tuned: dict[str, Any] = json.loads(TUNED.read_text())["settings"]
    return tuned


def kept(found: Mapping[str, Mapping[str, list[tuple[Settings, float]]]]) -> dict[str, Any]:
    """Return by contestant and world the setting to keep, from all that was tried."""
    ours = best_of_all(found["ours"])
    return {
        name: dict.fromkeys(WORLDS, ours) if name == "ours" else best_of_each(tried)
        for name, tried in found.items()
    }
