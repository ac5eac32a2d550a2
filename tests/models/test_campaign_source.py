"""What a campaign puts forward."""

from models.campaign_source import CampaignSource
from tests.models.moments import ids_by, items_of, query, rows_of

IDS = ["h1", "h2", "s1", "s2", "t1"]
HATS, SHOES, TEA = 1, 2, 3


def shop(**columns: list[int]) -> object:
    plain = {"category": [HATS, HATS, SHOES, SHOES, TEA], "trend": [5, 9, 8, 7, 99]}
    return items_of(IDS, **{**plain, **columns})


def test_named_items_come_in_the_campaigns_order_though_they_were_seen() -> None:
    items = shop()
    picks = rows_of(items, "t1", "h1").tolist()
    asked = query(items, picks=picks, seen=rows_of(items, "h1"))
    assert ids_by(CampaignSource(), asked) == ["t1", "h1"]


def test_categories_take_turns_the_most_popular_first() -> None:
    asked = query(shop(), pick_categories=[SHOES, HATS])
    assert sorted(ids_by(CampaignSource(), asked)[:2]) == ["h2", "s1"]
    assert sorted(ids_by(CampaignSource(), asked)[2:]) == ["h1", "s2"]


def test_items_come_before_categories_and_no_row_twice() -> None:
    items = shop()
    asked = query(items, picks=rows_of(items, "h1").tolist(), pick_categories=[HATS])
    assert ids_by(CampaignSource(), asked) == ["h1", "h2"]


def test_unknown_names_and_what_cannot_be_had_are_passed_over() -> None:
    items = shop(is_servable=[True, True, False, True, True])
    asked = query(items, picks=[0], pick_categories=[0, SHOES], closed=rows_of(items, "h2"))
    assert ids_by(CampaignSource(), asked) == ["s2"]


def test_lists_follow_the_tables() -> None:
    items, source = shop(), CampaignSource()
    asked = query(items, pick_categories=[HATS])
    assert ids_by(source, asked) == ["h2", "h1"]
    items.trend[items.row("h1")] = 50
    items.touch(items.row("h1"))
    items.settle()
    assert ids_by(source, asked) == ["h1", "h2"]


def test_a_campaign_without_picks_proposes_nothing() -> None:
    assert ids_by(CampaignSource(), query(shop())) == []
