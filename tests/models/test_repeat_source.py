"""Bought, and due again: by the item's usual pause, and by how many come back."""

from models.repeat_source import RepeatSource
from tests.models.moments import ids_by, items_of, query, rows_of

DAY_S = 86_400
SHOP = items_of(
    ["coffee", "filters", "sofa", "soap"],
    repeat_s=[30 * DAY_S, 30 * DAY_S, 0, 10 * DAY_S],
    repeat_share=[0.5, 0.25, 0.0, 0.5],
)


def bought(**days: float) -> list[tuple[int, int]]:
    """Return purchases, each so many days ago."""
    return [(SHOP.row(item_id), int(ago * DAY_S)) for item_id, ago in days.items()]


def test_what_is_due_is_proposed_though_it_was_bought() -> None:
    asked = query(SHOP, bought=bought(coffee=30), closed=rows_of(SHOP, "coffee"))
    assert ids_by(RepeatSource(), asked) == ["coffee"]


def test_what_was_bought_a_moment_ago_or_is_long_given_up_is_not() -> None:
    assert ids_by(RepeatSource(), query(SHOP, bought=bought(coffee=23.9))) == []
    assert ids_by(RepeatSource(), query(SHOP, bought=bought(coffee=24))) == ["coffee"]
    assert ids_by(RepeatSource(), query(SHOP, bought=bought(coffee=90))) == ["coffee"]
    assert ids_by(RepeatSource(), query(SHOP, bought=bought(coffee=90.1))) == []


def test_an_item_that_nobody_buys_again_is_not_due() -> None:
    assert ids_by(RepeatSource(), query(SHOP, bought=bought(sofa=30))) == []


def test_who_comes_back_more_often_and_what_is_nearer_to_being_due_comes_first() -> None:
    alike = query(SHOP, bought=bought(filters=30, coffee=30))
    assert ids_by(RepeatSource(), alike) == ["coffee", "filters"]
    late = query(SHOP, bought=bought(coffee=85, soap=11))
    assert ids_by(RepeatSource(), late) == ["soap", "coffee"]


def test_the_last_purchase_of_an_item_counts() -> None:
    again = bought(coffee=1) + bought(coffee=30)  # newest first
    assert ids_by(RepeatSource(), query(SHOP, bought=again)) == []


def test_what_the_user_has_blocked_is_not_proposed() -> None:
    asked = query(SHOP, bought=bought(coffee=30), blocked=rows_of(SHOP, "coffee"))
    assert ids_by(RepeatSource(), asked) == []


def test_the_limit_keeps_the_likeliest() -> None:
    asked = query(SHOP, bought=bought(filters=30, coffee=30, soap=20))
    assert ids_by(RepeatSource(limit=1), asked) == ["coffee"]
