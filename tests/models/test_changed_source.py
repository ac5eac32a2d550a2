"""Whose price dropped, and what is back: where that is why we ask."""

from models.changed_source import ChangedSource
from tests.models.moments import ids_by, items_of, query, rows_of

SHOP = items_of(["a", "b", "c"])


def test_the_changed_items_are_proposed_once_each_though_they_were_seen() -> None:
    about = rows_of(SHOP, "b", "a", "b").tolist()
    asked = query(SHOP, about=about, seen=rows_of(SHOP, "a", "b"))
    assert ids_by(ChangedSource(), asked) == ["b", "a"]


def test_what_was_bought_meanwhile_or_cannot_be_had_is_not() -> None:
    gone = items_of(["a", "b", "c"], is_servable=[True, False, True])
    asked = query(gone, about=[0, 1, 2, 3], closed=rows_of(gone, "a"))
    assert ids_by(ChangedSource(), asked) == ["c"]


def test_a_trigger_that_is_about_nothing_has_none() -> None:
    assert ids_by(ChangedSource(), query(SHOP)) == []
