"""Triggers become action sets, a batch at a time, and no trigger feels the others beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import Counter

from models.arms import ARM, N_ARM, N_NEURAL
from models.checkpoint import write_model
from models.export import export_student
from models.features import EVENT_CODE
from models.neighbours import to_grid
from models.serving import StudentScorer
from models.student import Student, StudentConfig
from models.taste import pack_vectors
from models.text import encode_texts
from operators import metrics
from operators.campaigns import CampaignTable
from operators.candidates import CandidateGenerator
from operators.catalogue import Catalogue
from operators.hops import Engagement, Forget, History, Ranked, Tried, Trigger
from operators.messages import (
    Consent,
    Experiment,
    Item,
    ItemStats,
    ModelCard,
    ModelTrial,
    Picks,
    TrialStage,
    UserProfile,
)
from operators.model_table import ModelTable
from operators.ranking import Ranker
from tests.conftest import T0_MS
from tests.operators.test_decider import campaign, trigger

torch.set_num_threads(1)  # shared cores
N_ITEMS = 40
RARE = [f"x{n:03d}" for n in range(200)]
COUNTERS = {"candidates": metrics.CANDIDATES, "arms": metrics.ARMS}


def catalogue() -> Catalogue:
    table = Catalogue()
    for n in range(N_ITEMS):
        item = Item(item_id=f"i{n:02d}", title=f"thing {n} of kind {n % 5}", price=float(n))
        table.apply(item.item_id, item)
        neighbours = [(f"i{(n + k) % N_ITEMS:02d}", 1 / k) for k in range(1, 9)]
        table.apply_stats(popular(item.item_id, float(n), neighbours=neighbours))
    table.refresh()
    return table


def popular(item_id: str, views: float, **fields: Any) -> ItemStats:
    """Return the statistics of an old item that many were told of."""
    nothing = ("clicks", "carts", "purchases", "favorites", "opens", "rating_sum", "rating_count")
    values: dict[str, Any] = {
        "as_of_ms": T0_MS,
        "views": views,
        "popularity_1d": views,
        "pushes": 100.0,
        "first_seen_ms": T0_MS - 1_000,
        "by_country": {},
        "neighbours": [],
    }
    return ItemStats(item_id=item_id, **{**dict.fromkeys(nothing, 0.0), **values, **fields})


def counted(metric: Counter, source: str) -> float:
    return metric.labels(source)._value.get()


def ranker(
    table: Catalogue,
    explore_share: float = 0.0,
    models: ModelTable | None = None,
    **fields: Any,
) -> Ranker:
    campaigns = CampaignTable()
    campaigns.apply("c1", campaign(**fields))
    return Ranker(
        campaigns=campaigns,
        catalogue=table,
        models=models or ModelTable(table),
        generator=CandidateGenerator(table, explore_share=explore_share),
        action_set=20,
        explore_share=explore_share,
        refresh=lambda: None,
        clock=lambda: 0.0,
    )


def saw(user_id: str, *items: str, **fields: Any) -> Trigger:
    history = History(list(items), [EVENT_CODE["view"]] * len(items), [T0_MS // 1_000] * len(items))
    profile = UserProfile(user_id=user_id, consent=Consent(push=True))
    values = {"user_id": user_id, "history": history, "profile": profile}
    return trigger(f"e-{user_id}", **{**values, **fields})


def sets(entries: Sequence[Ranked | Forget]) -> list[tuple[Any, ...]]:
    return [
        (r.candidates, r.scores.tobytes(), r.arm_features.tobytes())
        for r in entries
        if isinstance(r, Ranked)
    ]


def test_each_trigger_gets_its_set_in_order() -> None:
    out = ranker(catalogue()).on_batch([saw("u1", "i01"), saw("u2", "i07"), saw("u3")])

    assert [r.trigger.user_id for r in out if isinstance(r, Ranked)] == ["u1", "u2", "u3"]
    assert [len(r.candidates) for r in out if isinstance(r, Ranked)] == [20, 20, 20]
    assert all(r.arm_features.shape == (20, N_ARM) for r in out if isinstance(r, Ranked))


def test_no_set_depends_on_who_shares_the_batch() -> None:
    triggers = [saw(f"u{n}", *(f"i{(n * k) % N_ITEMS:02d}" for k in range(n))) for n in range(9)]
    subject = ranker(catalogue())

    together = sets(subject.on_batch(list(triggers)))
    alone = [one for trigger in triggers for one in sets(subject.on_batch([trigger]))]
    assert together == alone


def test_sets_of_different_sizes_may_share_a_batch() -> None:
    small = Catalogue()
    for n in range(3):
        small.apply(f"i{n}", Item(item_id=f"i{n}", title=f"thing {n}"))
    small.refresh()
    bought_two = saw("u2", bought=["i0", "i1"])

    out = ranker(small).on_batch([saw("u1"), bought_two, saw("u3", bought=["i0", "i1", "i2"])])
    assert [len(r.candidates) for r in out if isinstance(r, Ranked)] == [3, 1, 0]


def test_without_a_model_the_candidates_order_stands() -> None:
    table = catalogue()
    moment = saw("u1", "i01")

    [ranked] = ranker(table).on_batch([moment])
    assert isinstance(ranked, Ranked)
    assert ranked.candidates == CandidateGenerator(table).generate(moment)[:20]
    assert ranked.model_version == "none"


def test_explored_items_get_their_share_of_the_arms_and_no_more() -> None:
    table = catalogue()
    for n in range(300):
        item = Item(item_id=f"n{n:03d}", title=f"novelty {n}", created_ms=T0_MS - 1_000)
        table.apply(item.item_id, item)
    for n in range(N_ITEMS, 150):  # enough that is popular to leave no room by itself
        table.apply(f"i{n:02d}", Item(item_id=f"i{n:02d}", title=f"sort {n}", created_ms=1))
        table.apply_stats(popular(f"i{n:02d}", 500.0 + n))
    table.refresh()
    subject = ranker(table, explore_share=0.15)

    found = subject.on_batch([saw(f"u{n}", "i01") for n in range(30)])
    arms = [r.candidates for r in found if isinstance(r, Ranked)]
    assert [len(own) for own in arms] == [20] * 30
    assert [sum(c.source == "explore" for c in own) for own in arms] == [3] * 30
    assert len({c.item_id for own in arms for c in own if c.source == "explore"}) > 20
    assert sets(found) == [s for r in found for s in sets(subject.on_batch([r.trigger]))]


def test_candidates_and_arms_are_counted_by_source() -> None:
    before = {name: counted(metric, "unfinished") for name, metric in COUNTERS.items()}
    ranker(catalogue()).on_batch([saw("u1", "i01"), saw("u2", "i07", "i03")])
    after = {name: counted(metric, "unfinished") for name, metric in COUNTERS.items()}
    assert {name: after[name] - before[name] for name in before} == {"candidates": 3, "arms": 3}


def told(entry: Ranked | Forget, name: str) -> np.ndarray:
    """Return a column of a trigger's arms."""
    assert isinstance(entry, Ranked)
    return entry.arm_features[:, ARM.index(name)]


def test_what_a_user_wrote_is_told_of_each_arm_by_cosine() -> None:
    table = catalogue()
    wrote = to_grid(encode_texts(["thing 7 of kind 2", "kind 3"]))
    intent, taste = pack_vectors(wrote)
    subject = ranker(table)
    searched, liked, silent = subject.on_batch(
        [saw("u1", "i01", intent=intent), saw("u2", taste=taste), saw("u3", "i02")]
    )

    of_first = np.array(table.rows_of(c.item_id for c in searched.candidates))
    of_second = np.array(table.rows_of(c.item_id for c in liked.candidates))
    near = table.content.vectors(of_first) @ wrote[0]
    np.testing.assert_allclose(told(searched, "intent_cosine"), near, atol=1e-4)
    near = table.content.vectors(of_second) @ wrote[1]
    np.testing.assert_allclose(told(liked, "taste_cosine"), near, atol=1e-4)
    assert told(searched, "intent_cosine")[of_first == table.row("i07")] > 0.99
    assert not told(searched, "taste_cosine").any()
    assert not told(liked, "intent_cosine").any()
    assert not told(silent, "intent_cosine").any()
    assert not told(silent, "taste_cosine").any()


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a student that has learned nothing, but has strong views on items of its own."""
    return opinionated(tmp_path_factory.mktemp("student") / "s.pfm", seed=3)


def opinionated(path: Path, seed: int) -> Path:
    """Write a student of random views."""
    torch.manual_seed(seed)
    made = Student(StudentConfig(), len(RARE)).eval()
    torch.nn.init.normal_(made.ids.weight, std=2.0)
    write_model(path, export_student(made, RARE, {}))
    return path


def studious(path: Path) -> Ranker:
    """Return a ranker with a student, and items behind the popular ones and like no other."""
    table = catalogue()
    for n, name in enumerate(RARE):
        table.apply(name, Item(item_id=name, title=f"{n * n} {n**3 % 101}", created_ms=n))
    table.refresh()
    models = ModelTable(table)
    models.load(path)
    return ranker(table, models=models)


def test_the_student_finds_items_that_nothing_else_would(student: Path) -> None:
    [entry] = studious(student).on_batch([saw("u1", "i01", "i02")])
    assert isinstance(entry, Ranked)
    first = entry.candidates[int(np.argmax(entry.scores))]
    assert entry.model_version == StudentScorer(student).version
    assert (first.item_id[0], first.source) == ("x", "tower")


def test_with_a_student_too_no_set_depends_on_who_shares_the_batch(student: Path) -> None:
    subject = studious(student)
    seen = [[f"i{(n * k) % N_ITEMS:02d}" for k in range(n)] for n in range(9)]
    triggers = [saw(f"u{n}", *items, RARE[n]) for n, items in enumerate(seen)]

    together = sets(subject.on_batch(list(triggers)))
    alone = [one for trigger in triggers for one in sets(subject.on_batch([trigger]))]
    assert together == alone


def test_the_students_columns_stand_behind_the_arms_own(student: Path) -> None:
    plain, wide = studious(student), studious(student)
    wide._is_neural = True
    triggers = [saw("u1", "i01", RARE[3]), saw("u2")]
    for one, other in zip(
        plain.on_batch(list(triggers)), wide.on_batch(list(triggers)), strict=True
    ):
        assert isinstance(one, Ranked)
        assert isinstance(other, Ranked)
        assert other.candidates == one.candidates
        assert (other.arm_features[:, :N_ARM] == one.arm_features).all()
        assert other.arm_features.shape == (20, N_ARM + N_NEURAL)
        assert other.arm_features[:, N_ARM:].any()


def test_without_a_student_its_columns_are_zeros() -> None:
    subject = ranker(catalogue())
    subject._is_neural = True
    [entry] = subject.on_batch([saw("u1", "i01")])
    assert isinstance(entry, Ranked)
    assert not entry.arm_features[:, N_ARM:].any()


@pytest.fixture(scope="module")
def rival(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write another student, as sure of its views."""
    return opinionated(tmp_path_factory.mktemp("rival") / "r.pfm", seed=4)


def ranker_with(student: Path, rival: Path | None, stage: TrialStage, share: float) -> Ranker:
    """Return a ranker of one student, and another on trial."""
    table = catalogue()
    for n, name in enumerate(RARE):
        table.apply(name, Item(item_id=name, title=f"{n * n} {n**3 % 101}", created_ms=n))
    table.refresh()
    models = ModelTable(table, max_slowdown=1e9)
    named = {"version": "", "checksum": "", "feature_spec": ""}
    trial = None
    if rival is not None:
        trial = ModelTrial(path=str(rival), stage=stage, share=share, **named)
    models.apply("student", ModelCard(name="student", path=str(student), trial=trial, **named))
    models.settle()
    return ranker(table, models=models)


def crowd(n: int = 40) -> list[Trigger]:
    """Return triggers of users with histories of many lengths."""
    seen = [[f"i{(u * k) % N_ITEMS:02d}" for k in range(u % 9)] for u in range(n)]
    return [saw(f"u{u}", *items, RARE[u]) for u, items in enumerate(seen)]


def tried(entries: Sequence[Ranked | Forget]) -> list[Tried]:
    return [r.tried for r in entries if isinstance(r, Ranked) and r.tried is not None]


def test_a_model_in_the_shadow_changes_nothing_but_what_is_logged(
    student: Path, rival: Path
) -> None:
    plain = ranker_with(student, None, "shadow", 0.0).on_batch(list(crowd()))
    shadowed = ranker_with(student, rival, "shadow", 0.5).on_batch(list(crowd()))

    assert sets(shadowed) == sets(plain)
    logged = tried(shadowed)
    assert 8 < len(logged) < 32
    assert {(one.version, one.stage) for one in logged} == {
        (StudentScorer(rival).version, "shadow")
    }


def test_the_scores_in_the_shadow_are_those_that_the_model_would_give(
    student: Path, rival: Path
) -> None:
    shadowed = ranker_with(student, rival, "shadow", 1.0).on_batch(list(crowd(9)))
    alone = ranker_with(rival, None, "shadow", 0.0).on_batch(list(crowd(9)))

    n_common = 0
    for one, other in zip(shadowed, alone, strict=True):
        assert isinstance(one, Ranked)
        assert isinstance(other, Ranked)
        assert one.tried is not None
        own = dict(zip([c.item_id for c in one.candidates], one.tried.scores, strict=True))
        its = dict(zip([c.item_id for c in other.candidates], other.scores, strict=True))
        for item_id in own.keys() & its.keys():
            assert own[item_id].tobytes() == its[item_id].tobytes()
            n_common += 1
    assert n_common > 20


def test_a_canary_decides_for_its_users_as_if_it_were_alone_and_for_no_others(
    student: Path, rival: Path
) -> None:
    mixed = ranker_with(student, rival, "canary", 0.5).on_batch(list(crowd()))
    served = ranker_with(student, None, "shadow", 0.0).on_batch(list(crowd()))
    other = ranker_with(rival, None, "shadow", 0.0).on_batch(list(crowd()))

    version = StudentScorer(rival).version
    is_canary = [isinstance(r, Ranked) and r.model_version == version for r in mixed]
    assert 8 < sum(is_canary) < 32
    expected = [
        b if is_ else a for a, b, is_ in zip(sets(served), sets(other), is_canary, strict=True)
    ]
    assert sets(mixed) == expected
    assert [r.tried is not None for r in mixed if isinstance(r, Ranked)] == is_canary


@pytest.mark.parametrize("stage", ["shadow", "canary"])
def test_on_trial_too_no_set_depends_on_who_shares_the_batch(
    student: Path, rival: Path, stage: TrialStage
) -> None:
    subject = ranker_with(student, rival, stage, 0.5)
    together = subject.on_batch(list(crowd()))
    alone = [one for trigger in crowd() for one in subject.on_batch([trigger])]

    assert sets(together) == sets(alone)
    scores = [[one.scores.tobytes() for one in tried(found)] for found in (together, alone)]
    assert scores[0] == scores[1]


def test_a_campaigns_picks_are_among_the_arms() -> None:
    [entry] = ranker(catalogue(), picks=Picks(item_ids=["i05"])).on_batch([saw("u1")])
    assert isinstance(entry, Ranked)
    assert "campaign" in {c.source for c in entry.candidates}


@pytest.mark.parametrize(
    "fields",
    [
        {"profile": None},
        {"profile": UserProfile(user_id="u1")},
        {"engagement": Engagement(0.0, 0.0, 0, True)},
    ],
)
def test_nothing_is_ranked_for_users_who_may_not_be_sent_to(fields: dict[str, Any]) -> None:
    [ranked] = ranker(catalogue()).on_batch([saw("u1", "i01", **fields)])

    assert isinstance(ranked, Ranked)
    assert (ranked.campaign_id, ranked.candidates) == ("c1", [])


def test_nothing_is_ranked_for_the_holdout_or_without_a_campaign() -> None:
    [held] = ranker(catalogue(), experiment=Experiment(holdout=1.0)).on_batch([saw("u1", "i01")])
    [other] = ranker(catalogue(), trigger="idle").on_batch([saw("u1", "i01")])

    assert isinstance(held, Ranked)
    assert isinstance(other, Ranked)
    assert (held.campaign_id, held.candidates) == ("c1", [])
    assert (other.campaign_id, other.candidates) == ("", [])


def test_who_is_to_be_forgotten_is_passed_on_in_order() -> None:
    gone = Forget("u9", "00")

    out = ranker(catalogue()).on_batch([saw("u1"), gone, saw("u2")])
    assert [entry == gone for entry in out] == [False, True, False]
