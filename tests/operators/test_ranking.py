"""Triggers become action sets, a batch at a time, and no trigger feels the others beside it."""

from collections.abc import Sequence
from typing import Any

import pytest

from models.arms import N_ARM
from models.features import EVENT_CODE
from operators.campaigns import CampaignTable
from operators.candidates import CandidateGenerator
from operators.catalogue import Catalogue
from operators.hops import Engagement, Forget, History, Ranked, Trigger
from operators.messages import Consent, Experiment, Item, ItemStats, UserProfile
from operators.model_table import ModelTable
from operators.ranking import Ranker
from tests.conftest import T0_MS
from tests.operators.test_decider import campaign, trigger

N_ITEMS = 40


def catalogue() -> Catalogue:
    table = Catalogue()
    for n in range(N_ITEMS):
        item = Item(item_id=f"i{n:02d}", title=f"thing {n} of kind {n % 5}", price=float(n))
        table.apply(item.item_id, item)
        table.apply_stats(
            ItemStats(
                item_id=item.item_id,
                as_of_ms=T0_MS,
                views=float(n),
                clicks=0.0,
                carts=0.0,
                purchases=0.0,
                favorites=0.0,
                pushes=0.0,
                opens=0.0,
                rating_sum=0.0,
                rating_count=0.0,
                popularity_1d=float(n),
                first_seen_ms=T0_MS - 1_000,
                by_country={},
                neighbours=[(f"i{(n + k) % N_ITEMS:02d}", 1 / k) for k in range(1, 9)],
            )
        )
    table.refresh()
    return table


def ranker(table: Catalogue, **fields: Any) -> Ranker:
    campaigns = CampaignTable()
    campaigns.apply("c1", campaign(**fields))
    return Ranker(
        campaigns=campaigns,
        catalogue=table,
        models=ModelTable(on_change=lambda scorer: None),
        generator=CandidateGenerator(table),
        action_set=20,
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
