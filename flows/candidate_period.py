"""A period of cases, and the measure that every method's lists are held to.

Reads   cases, the catalogue as it stood at the split, everybody's interactions.
Emits   lists of methods, and what they are worth.
Owns    what may be proposed, and what counts as new, cold and warm.

All methods know the same: what happened before the split, and each user's past up to the case.
None proposes what could not be had at that moment. What counts as **new** is what the product does
not remember of the user (50 items of the history, 200 purchases, the cart); no method may propose
that then, so the merge is asked without the sources that do. Under **all** a wanted item counts
whether it is new or not, and methods propose what they will. A wanted item that could not be had
before the case counts for nobody: in a recording an item is there from its first sale on. **Cold**
items have no interaction before the split that a method could have learned from; all others are
warm.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.candidate_cases import Case, is_interest
from flows.settings import Candidates, SourceDepths, SourceWeights
from models.baselines import Baseline, Interactions, lists_of
from models.candidate_metrics import (
    Mean,
    Resampling,
    Shares,
    coverage,
    is_found,
    novelty,
    pairs_of,
    share_by_case,
)
from models.features import CANDIDATES
from models.serving import StudentScorer
from models.sources import Query, Source
from models.student_items import StudentItems
from operators.candidates import CandidateGenerator, make_query
from operators.catalogue import Catalogue
from operators.messages import Event
from operators.ranking import user_vectors

K: Final = CANDIDATES
CUTS: Final = (10, 50, 100)
_DAY_MS: Final = 86_400_000
_BATCH: Final = 32  # triggers at a time, as `decide` has them under load
_OF_KNOWN: Final = ("unfinished", "repeat")  # sources of what the user has met

Rows = NDArray[np.int64]


class Lists(NamedTuple):
    """What a method proposes for each case, shape (C, K) each, padded with 0."""

    new: Rows
    all: Rows


class Merging(NamedTuple):
    """Settings of the merge, those of `flows.settings.Candidates`."""

    weights: Mapping[str, float] = SourceWeights().model_dump()
    depths: Mapping[str, int] = SourceDepths().model_dump()
    rrf: int = Candidates().rrf


class Worth(NamedTuple):
    """What a method's lists are worth; shares with 95% intervals over users."""

    recall: dict[int, Mean]  # of new items, by cut
    recall_all: Mean  # at K
    warm: Mean  # recall of new items at K, of those with interactions before the split
    cold: Mean  # and of those without
    coverage: float  # at K, of the items available at the end of the period
    novelty: float  # at K, bits


class Log:
    """Interactions as arrays, user after user in time order."""

    def __init__(self, events: Sequence[Event], catalogue: Catalogue) -> None:
        number: dict[str, int] = {}
        told = [event for event in events if is_interest(event)]
        users = [number.setdefault(event.user_id, len(number)) for event in told]
        order = np.argsort(users, kind="stable")
        self.number = number
        self.user = np.array(users, np.int64)[order]
        self.row = np.array(catalogue.rows_of(event.item_id or "" for event in told))[order]
        self.time_ms = np.array([event.time_ms for event in told], np.int64)[order]
        self.start = np.searchsorted(self.user, np.arange(len(number)))

    def before(self, time_ms: int, hidden: Collection[int] = ()) -> Interactions:
        """Return what was known at a time, less the hidden rows."""
        is_known = (self.time_ms < time_ms) & ~np.isin(self.row, list(hidden))
        (at,) = np.nonzero(is_known)
        return self._newest(self.user[at], at, np.full(len(at), time_ms), len(self.number))

    def pasts(self, cases: Sequence[Case]) -> Interactions:
        """Return what each case's user had before; `user` is the case."""
        starts = [int(self.start[self.number[case.trigger.user_id]]) for case in cases]
        sizes = [case.n_before for case in cases]
        at = np.concatenate(
            [np.arange(start, start + n) for start, n in zip(starts, sizes, strict=True)]
        )
        of_case = np.repeat(np.arange(len(cases)), sizes)
        now_ms = np.repeat([case.trigger.time_ms for case in cases], sizes)
        return self._newest(of_case, at, now_ms, len(cases))

    def _newest(self, user: Rows, at: Rows, now_ms: Rows, n_users: int) -> Interactions:
        """Return the entries `at`, only the newest of a user and item."""
        n_rows = int(self.row.max(initial=0)) + 1
        keys = user * n_rows + self.row[at]
        # The first of the reversed is the newest.
        _, last = np.unique(keys[::-1], return_index=True)
        kept = len(keys) - 1 - last
        kept = kept[self.row[at[kept]] > 0]
        ages = (now_ms[kept] - self.time_ms[at[kept]]) / _DAY_MS
        return Interactions(user[kept], self.row[at[kept]], np.maximum(ages, 0.0), n_users)


class Period:
    """A split's tables and the cases after it.

    Parameters
    ----------
    catalogue
        As it stood at the split.
    cases
        Of the period, at least one.
    events
        All of them, for the baselines; those of the split and later are not looked at but for
        the cases' own pasts.
    split_ms
        What is before is known.
    hidden
        Items whose interactions no method was shown.
    student
        That was trained on what is known; None: nothing is found by the user's vector.
    seed
        Of the intervals.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        cases: Sequence[Case],
        events: Sequence[Event],
        split_ms: int,
        *,
        hidden: Collection[str] = (),
        student: StudentScorer | None = None,
        seed: int = 0,
    ) -> None:
        self.catalogue, self.cases, self.has_student = catalogue, cases, student is not None
        log = Log(events, catalogue)
        self.known = log.before(split_ms, catalogue.rows_of(hidden))
        self.pasts = log.pasts(cases)
        self.resampling = Resampling(
            np.unique([case.trigger.user_id for case in cases], return_inverse=True)[1], seed
        )
        n = catalogue.n_rows
        self._n_users_of = np.bincount(self.known.row, minlength=n)  # (N,)
        self._all_rows = np.arange(n)
        self._tie_order = np.argsort(catalogue.id_hash[:n], kind="stable")
        self.wanted = pairs_of([catalogue.rows_of(case.wanted) for case in cases])
        if student is None:
            self._queries = [make_query(case.trigger, catalogue) for case in cases]
        else:
            self._queries = self._queries_with(student)
        self._is_open = np.zeros(len(self.wanted.row), np.bool_)
        self._is_new = np.zeros(len(self.wanted.row), np.bool_)
        self._mark_wanted()

    def _queries_with(self, student: StudentScorer) -> list[Query]:
        """Return the cases' queries with the users' vectors, over items that these can search."""
        own = StudentItems(self.catalogue, student)
        own.follow()
        items, triggers = own.view(), [case.trigger for case in self.cases]
        queries = [make_query(trigger, items) for trigger in triggers]
        return own.asked(user_vectors(student, own.table, triggers, queries), queries)

    def _mark_wanted(self) -> None:
        ends = np.searchsorted(self.wanted.case, np.arange(len(self.cases) + 1))
        for case, query in enumerate(self._queries):
            part = slice(ends[case], ends[case + 1])
            rows = self.wanted.row[part]
            self._is_open[part] = self.catalogue.is_open(rows, query.time_ms)
            self._is_new[part] = ~query.is_seen(rows)

    def of_baseline(self, baseline: Baseline, k: int = K, *, is_all: bool = True) -> Lists:
        """Return the lists of a fitted baseline; those of `all` only if asked for."""
        new = lists_of(baseline, self.pasts, self._may_be_new, self._tie_order, k)
        if not is_all:
            return Lists(new, new)
        return Lists(new, lists_of(baseline, self.pasts, self._may_be_had, self._tie_order, k))

    def of_source(self, source: Source) -> Lists:
        """Return the lists of one source."""
        lists = np.zeros((len(self.cases), K), np.int64)
        for start in range(0, len(self.cases), _BATCH):
            proposed = source.propose(self._queries[start : start + _BATCH])
            for case, rows in enumerate(proposed, start=start):
                lists[case, : min(len(rows), K)] = rows[:K]
        return Lists(lists, lists)

    def of_merge(self, merging: Merging, *, is_all: bool = True) -> Lists:
        """Return the lists of the product's merge with some settings; `all` only if asked for."""
        weights = merging.weights
        discovering = {name: 0.0 if name in _OF_KNOWN else w for name, w in weights.items()}
        new = self._merged(merging._replace(weights=discovering))
        return Lists(new, self._merged(merging) if is_all else new)

    def _merged(self, merging: Merging) -> Rows:
        usual = Candidates()
        generator = CandidateGenerator(
            self.catalogue,
            weights=merging.weights,
            max_per_category=usual.max_per_category,
            copy_cosine=usual.copy_cosine,
            rrf=merging.rrf,
            depths=merging.depths,
            explore_share=0.0,  # its places are there to learn by, not to be right
        )
        lists = np.zeros((len(self.cases), K), np.int64)
        for start in range(0, len(self.cases), _BATCH):
            queries = self._queries[start : start + _BATCH]
            for case, found in enumerate(generator.answer(queries), start):
                lists[case, : len(found.rows)] = found.rows
        return lists

    def recall(self, lists: Lists, k: int = K) -> Shares:
        """Return the share of new wanted items found by case, NaN where there are none."""
        return self._share(lists.new, k, self._is_new)

    def worth(self, lists: Lists) -> Worth:
        """Return what lists are worth."""
        mean, share = self.resampling.mean, self._share
        is_warm = self._n_users_of[self.wanted.row] > 0
        return Worth(
            recall={cut: mean(share(lists.new, cut, self._is_new)) for cut in CUTS},
            recall_all=mean(share(lists.all, K, self._is_open)),
            warm=mean(share(lists.new, K, self._is_new & is_warm)),
            cold=mean(share(lists.new, K, self._is_new & ~is_warm)),
            coverage=coverage(lists.new, K, self._n_available()),
            novelty=novelty(lists.new, K, self._n_users_of, self.known.n_users),
        )

    def counts(self) -> dict[str, int]:
        """Return how many cases, users and wanted items there are."""
        is_warm = self._n_users_of[self.wanted.row] > 0
        return {
            "cases": len(self.cases),
            "users": len({case.trigger.user_id for case in self.cases}),
            "wanted": len(self.wanted.row),
            "not_to_be_had": int(np.count_nonzero(~self._is_open)),
            "new": int(np.count_nonzero(self._is_new)),
            "new_cold": int(np.count_nonzero(self._is_new & ~is_warm)),
        }

    def _share(self, lists: Rows, k: int, counted: NDArray[np.bool_]) -> Shares:
        found = is_found(lists, self.wanted, k)
        return share_by_case(found, self.wanted, len(self.cases), counted)

    def _n_available(self) -> int:
        last_ms = max(case.trigger.time_ms for case in self.cases)
        return int(np.count_nonzero(self.catalogue.is_open(self._all_rows, last_ms)))

    def _may_be_had(self, part: slice) -> NDArray[np.bool_]:
        rows, queries = self._all_rows, self._queries[part]
        return np.array([self.catalogue.is_open(rows, query.time_ms) for query in queries])

    def _may_be_new(self, part: slice) -> NDArray[np.bool_]:
        return np.array([~query.is_seen(self._all_rows) for query in self._queries[part]])
