"""A trial of candidates: settings are chosen on one period, and all methods judged on the next.

Reads   `Data`: items, users and events in time order.
Emits   `Result`: what each method's lists are worth.
Owns    which methods are tried, and how the baselines' settings are chosen.

    |---- known ----|-- validation: settings are chosen --|-- test: what is reported --|

A recording has few items without a past, so the test is made once more with a seeded share of
all items hidden from what is learned: what is said of cold and warm items comes from there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from flows.candidate_cases import Learner, cases_of
from flows.candidate_period import K, Lists, Period, Worth
from models.baselines import GRIDS, Baseline, Options, make, matrix_of, settings_of
from models.candidate_metrics import Mean
from models.repeat_source import RepeatSource
from models.sources import ContentSource, NeighbourSource, Source, TrendSource
from operators.candidates import WEIGHTS
from operators.messages import Event, Item, UserProfile

MERGED: Final = "merged"
TUNED: Final = "merged, tuned"
Tell = Callable[[str], None]


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
    tune: bool  # whether the merge's weights are tried too


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
    lead: dict[str, Mean]  # recall of the merge less that of each other method, in pairs


def run(data: Data, split: Split, plan: Plan, tell: Tell) -> Result:
    """Make the trial; `tell` is told what is under way.

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
    tell("learning from events")
    learner = Learner(data.items)
    learner.learn(event for event in events if event.time_ms < split.validation_ms)
    catalogue = learner.catalogue(split.validation_ms)
    validation = Period(catalogue, early, events, split.validation_ms, seed=plan.seed)
    learner.learn(event for event in events if split.validation_ms <= event.time_ms < split.test_ms)
    catalogue = learner.catalogue(split.test_ms)
    test = Period(catalogue, late, events, split.test_ms, seed=plan.seed)
    tried = [
        *_of_baselines(validation, test, plan, tell),
        *_of_product(validation, test, plan, tell),
    ]
    counts = {"validation": validation.counts(), "test": test.counts()}
    cold = []
    if plan.hold_out:
        tell("learning without the hidden items")
        hidden = _hidden(data.items, plan)
        learner = Learner(data.items, hidden)
        learner.learn(event for event in events if event.time_ms < split.test_ms)
        catalogue = learner.catalogue(split.test_ms)
        without = Period(catalogue, late, events, split.test_ms, hidden=hidden, seed=plan.seed)
        chosen = {row.name: row.options for row, _ in tried}
        cold = _of_cold(without, chosen, plan, tell)
        counts["cold"] = without.counts()
    return Result([row for row, _ in tried], cold, counts, _lead(test, tried))


def _of_baselines(
    validation: Period, test: Period, plan: Plan, tell: Tell
) -> Iterator[tuple[Row, Lists]]:
    for name in GRIDS:
        options, n_tried = _chosen(name, validation, plan, tell)
        tell(f"{name}: test")
        lists = test.of_baseline(_fitted(name, options, test, plan.seed))
        yield Row(name, "baseline", test.worth(lists), options, n_tried), lists


def _of_product(
    validation: Period, test: Period, plan: Plan, tell: Tell
) -> Iterator[tuple[Row, Lists]]:
    for source in sources():
        tell(f"{source.name}: test")
        lists = test.of_source(source)
        yield Row(source.name, "source", test.worth(lists), {}, 0), lists
    tell(f"{MERGED}: test")
    lists = test.of_merge(WEIGHTS)
    yield Row(MERGED, "merge", test.worth(lists), dict(WEIGHTS), 1), lists
    if plan.tune:
        weights, n_tried = _weights(validation, plan, tell)
        lists = test.of_merge(weights)
        yield Row(TUNED, "merge", test.worth(lists), weights, n_tried), lists


def _of_cold(without: Period, chosen: Mapping[str, Options], plan: Plan, tell: Tell) -> list[Row]:
    """Judge the product where items are hidden, and, to compare, what knows them as little."""
    rows = []
    for name in GRIDS:
        tell(f"{name}: hidden items")
        lists = without.of_baseline(_fitted(name, chosen[name], without, plan.seed), is_all=False)
        rows.append(Row(name, "baseline", without.worth(lists), chosen[name], 1))
    for source in sources():
        rows.append(Row(source.name, "source", without.worth(without.of_source(source)), {}, 1))
    for name in (MERGED, TUNED):
        if name in chosen:
            worth = without.worth(without.of_merge(chosen[name]))
            rows.append(Row(name, "merge", worth, chosen[name], 1))
    return rows


def sources() -> list[Source]:
    """Return the sources that can be tried alone, each with as many rows as the merge has."""
    return [NeighbourSource(K), ContentSource(K), TrendSource(K), RepeatSource(K)]


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


def _weights(validation: Period, plan: Plan, tell: Tell) -> tuple[dict[str, float], int]:
    """Return the weights of best recall in the validation period; the usual ones are tried too."""
    rng = np.random.default_rng(plan.seed)
    tried = [dict(WEIGHTS)]
    for _ in range(plan.budget - 1):
        factors = np.exp2(rng.uniform(-3, 3, len(WEIGHTS)))
        tried.append(
            {
                name: round(weight * factor, 3)
                for (name, weight), factor in zip(WEIGHTS.items(), factors.tolist(), strict=True)
            }
        )
    found = []
    for number, weights in enumerate(tried, start=1):
        tell(f"{TUNED}: weights {number} of {len(tried)}")
        lists = validation.of_merge(weights)
        found.append(float(np.nanmean(validation.recall(lists))))
    return tried[int(np.argmax(found))], len(tried)


def _hidden(items: Sequence[Item], plan: Plan) -> frozenset[str]:
    """Return the ids of a seeded share of the items."""
    ids = sorted(item.item_id for item in items)
    is_hidden = np.random.default_rng(plan.seed).random(len(ids)) < plan.hold_out
    return frozenset(item_id for item_id, hides in zip(ids, is_hidden, strict=True) if hides)


def _lead(test: Period, tried: list[tuple[Row, Lists]]) -> dict[str, Mean]:
    """Return how much more the merge finds than each other method, on the same cases."""
    shares = {row.name: test.recall(lists) for row, lists in tried}
    own = shares.pop(MERGED)
    return {name: test.resampling.mean(own - other) for name, other in shares.items()}
