"""A trial of candidates: settings are chosen on one period, and all methods judged on the next.

Reads   `Data`: items, users and events in time order.
Emits   `Result`: what each method's lists are worth.
Owns    which methods are tried, and how their settings are chosen.

    |---- known ----|-- validation: settings are chosen --|-- test: what is reported --|

A recording has few items without a past, so the test is made once more with a seeded share of
all items hidden from what is learned: what is said of cold and warm items comes from there.

The merge may choose its settings as the baselines do: as many are tried as of each of them, drawn
from a grid, by recall in the validation period.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import product
from typing import Final, NamedTuple

import numpy as np

from flows.candidate_cases import Case, Learner, cases_of
from flows.candidate_period import K, Lists, Merging, Period, Worth
from models.baselines import GRIDS, Baseline, Options, make, matrix_of, settings_of
from models.candidate_metrics import Mean
from models.neighbour_source import NeighbourSource
from models.repeat_source import RepeatSource
from models.serving import StudentScorer
from models.sources import ContentSource, Source, TrendSource
from models.tower_source import TowerSource
from operators.messages import Event, Item, UserProfile

MERGED: Final = "merged"
TUNED: Final = "merged, tuned"
# Beside the neighbours' weight of 1: the others that speak of new items.
MERGE_GRID: Final[dict[str, tuple[float, ...]]] = {
    "content": (0.1, 0.2, 0.4, 0.6),
    "trend": (0.1, 0.25, 0.5, 0.8),
    "tower": (0.3, 0.6, 1.0, 1.5),
    "rrf": (60.0, 100.0, 200.0),
    "depth": (100.0, 200.0, 300.0),
}
Tell = Callable[[str], None]
# Makes a student of events in time order and of items, with a seed.
Train = Callable[[Sequence[Event], Sequence[Item], int, Tell], StudentScorer]


class Data(NamedTuple):
    """A data set."""

    items: list[Item]
    users: list[UserProfile]
    events: list[Event]  # in time order


class Split(NamedTuple):
    """Where time is cut, milliseconds: what is before `validation_ms` is known from the start."""

    validation_ms: int
    test_ms: int
    end_ms: int


class Plan(NamedTuple):
    """How a trial is made."""

    budget: int  # settings tried of each method that has any
    hold_out: float  # share of the items hidden in the trial of cold ones, 0 to 1
    seed: int
    tune: bool  # whether settings of the merge are tried too


class Row(NamedTuple):
    """A method's line in the report."""

    name: str
    kind: str  # "baseline", "source" or "merge"
    worth: Worth
    options: Options  # those chosen
    n_tried: int


class Result(NamedTuple):
    """What came out of a trial."""

    rows: list[Row]
    cold: list[Row]  # of the trial with items hidden
    counts: dict[str, dict[str, int]]  # by period
    lead: dict[str, dict[str, Mean]]  # recall of a merge less that of each other method, in pairs
    tuned: Merging | None  # what --tune chose


def run(data: Data, split: Split, plan: Plan, tell: Tell, train: Train | None = None) -> Result:
    """Make the trial; `tell` is told what is under way.

    `train` makes the student of each period; without it nothing is found by the user's vector.

    Raises
    ------
    ValueError
        If there is nobody to ask for in one of the periods.
    """
    tell("following users")
    events = [event for event in data.events if event.time_ms < split.end_ms]
    cases = cases_of(events, data.items, data.users, split.validation_ms)
    late = [case for case in cases if case.trigger.time_ms >= split.test_ms]
    early = [case for case in cases if case.trigger.time_ms < split.test_ms]
    if not early or not late:
        raise ValueError(
            f"{len(early)} cases to choose settings by and {len(late)} to test on: each needs one "
            "at least. A case is what a user with a past does from a split on"
        )
    past = _Past(data.items, events, plan, tell, train)
    validation = past.period(early, split.validation_ms)
    test = past.period(late, split.test_ms)
    tuned, n_tried = _merging(validation, plan, tell) if plan.tune else (None, 0)
    tried = [
        *_of_baselines(validation, test, plan, tell),
        *_of_sources(test, tell),
        *_of_merges(test, tuned, n_tried, tell),
    ]
    counts = {"validation": validation.counts(), "test": test.counts()}
    cold = []
    if plan.hold_out:
        past = _Past(data.items, events, plan, tell, train, hidden=_hidden(data.items, plan))
        without = past.period(late, split.test_ms)
        chosen = {row.name: row.options for row, _ in tried}
        cold = _of_cold(without, chosen, tuned, plan, tell)
        counts["cold"] = without.counts()
    return Result([row for row, _ in tried], cold, counts, _leads(test, tried), tuned)


class _Past:
    """What was known at each of some dates, in order; interactions of `hidden` items are not."""

    def __init__(
        self,
        items: Sequence[Item],
        events: Sequence[Event],
        plan: Plan,
        tell: Tell,
        train: Train | None,
        *,
        hidden: Collection[str] = (),
    ) -> None:
        self._items, self._events, self._plan, self._tell = items, events, plan, tell
        self._train, self._hidden = train, hidden
        self._learner = Learner(items, hidden)
        self._learned_ms = 0

    def period(self, cases: Sequence[Case], split_ms: int) -> Period:
        """Return a split's tables and the cases after it."""
        self._tell("learning from events")
        known = [event for event in self._events if event.time_ms < split_ms]
        self._learner.learn(event for event in known if event.time_ms >= self._learned_ms)
        self._learned_ms = split_ms
        return Period(
            self._learner.catalogue(split_ms),
            cases,
            self._events,
            split_ms,
            hidden=self._hidden,
            student=self._student(known),
            seed=self._plan.seed,
        )

    def _student(self, known: Sequence[Event]) -> StudentScorer | None:
        if self._train is None:
            return None
        shown = [event for event in known if event.item_id not in self._hidden]
        return self._train(shown, self._items, self._plan.seed, self._tell)


def _of_baselines(
    validation: Period, test: Period, plan: Plan, tell: Tell
) -> Iterator[tuple[Row, Lists]]:
    for name in GRIDS:
        options, n_tried = _chosen(name, validation, plan, tell)
        tell(f"{name}: test")
        lists = test.of_baseline(_fitted(name, options, test, plan.seed))
        yield Row(name, "baseline", test.worth(lists), options, n_tried), lists


def _of_sources(test: Period, tell: Tell) -> Iterator[tuple[Row, Lists]]:
    for source in sources(test):
        tell(f"{source.name}: test")
        lists = test.of_source(source)
        yield Row(source.name, "source", test.worth(lists), {}, 0), lists


def _of_merges(
    test: Period, tuned: Merging | None, n_tried: int, tell: Tell
) -> Iterator[tuple[Row, Lists]]:
    for name, merging, n in ((MERGED, Merging(), 1), (TUNED, tuned, n_tried)):
        if merging is not None:
            tell(f"{name}: test")
            lists = test.of_merge(merging)
            yield Row(name, "merge", test.worth(lists), options_of(merging), n), lists


def _of_cold(
    without: Period,
    chosen: Mapping[str, Options],
    tuned: Merging | None,
    plan: Plan,
    tell: Tell,
) -> list[Row]:
    """Judge the product where items are hidden, and, to compare, what knows them as little."""
    rows = []
    for name in GRIDS:
        tell(f"{name}: hidden items")
        lists = without.of_baseline(_fitted(name, chosen[name], without, plan.seed), is_all=False)
        rows.append(Row(name, "baseline", without.worth(lists), chosen[name], 1))
    rows += [row for row, _ in _of_sources(without, tell)]
    rows += [row for row, _ in _of_merges(without, tuned, 1, tell)]
    return rows


def sources(period: Period) -> list[Source]:
    """Return the sources that can be tried alone, each with as many rows as the merge has."""
    own: list[Source] = [NeighbourSource(K), ContentSource(K), TrendSource(K), RepeatSource(K)]
    return [*own, TowerSource(K)] if period.has_student else own


def options_of(merging: Merging) -> Options:
    """Return settings of the merge by name, for the report."""
    depths = {f"depth_{name}": float(rows) for name, rows in merging.depths.items()}
    return {**merging.weights, **depths, "rrf": float(merging.rrf)}


def _chosen(name: str, validation: Period, plan: Plan, tell: Tell) -> tuple[Options, int]:
    """Return the settings of best recall in the validation period, and how many were tried."""
    tried = list(settings_of(name, plan.budget, plan.seed))
    if len(tried) == 1:
        return tried[0], 1
    found = []
    for number, options in enumerate(tried, start=1):
        tell(f"{name}: settings {number} of {len(tried)}")
        baseline = _fitted(name, options, validation, plan.seed)
        lists = validation.of_baseline(baseline, is_all=False)
        found.append(float(np.nanmean(validation.recall(lists))))
    return tried[int(np.argmax(found))], len(tried)


def _fitted(name: str, options: Options, period: Period, seed: int) -> Baseline:
    baseline = make(name, options, seed)
    baseline.fit(matrix_of(period.known, period.catalogue.n_rows, baseline.half_life))
    return baseline


def _merging(validation: Period, plan: Plan, tell: Tell) -> tuple[Merging, int]:
    """Return the merge's settings of best recall in the validation period; the usual are tried."""
    tried = list(mergings_of(plan.budget, plan.seed))
    found = []
    for number, merging in enumerate(tried, start=1):
        tell(f"{TUNED}: settings {number} of {len(tried)}")
        lists = validation.of_merge(merging, is_all=False)
        found.append(float(np.nanmean(validation.recall(lists))))
    return tried[int(np.argmax(found))], len(tried)


def mergings_of(budget: int, seed: int) -> Iterator[Merging]:
    """Yield at most `budget` settings: the usual ones, and others from `MERGE_GRID`.

    >>> [merging.rrf for merging in mergings_of(3, 0)][0], len(list(mergings_of(10, 0)))
    (60, 10)
    """
    usual = Merging()
    yield usual
    every = [dict(zip(MERGE_GRID, values, strict=True)) for values in product(*MERGE_GRID.values())]
    order = np.random.default_rng(seed).permutation(len(every))
    for place in order[: budget - 1].tolist():
        own = every[place]
        depth, rrf = int(own.pop("depth")), int(own.pop("rrf"))
        yield Merging({**usual.weights, **own}, dict.fromkeys(usual.depths, depth), rrf)


def _hidden(items: Sequence[Item], plan: Plan) -> frozenset[str]:
    """Return the ids of a seeded share of the items."""
    ids = sorted(item.item_id for item in items)
    is_hidden = np.random.default_rng(plan.seed).random(len(ids)) < plan.hold_out
    return frozenset(item_id for item_id, hides in zip(ids, is_hidden, strict=True) if hides)


def _leads(test: Period, tried: list[tuple[Row, Lists]]) -> dict[str, dict[str, Mean]]:
    """Return how much more a merge finds than each other method, on the same cases."""
    shares = {row.name: test.recall(lists) for row, lists in tried}
    return {
        row.name: {
            name: test.resampling.mean(shares[row.name] - other)
            for name, other in shares.items()
            if name != row.name
        }
        for row, _ in tried
        if row.kind == "merge"
    }
